// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// SequenceStore lets a model run over a sequence of an engine.Cache. It implements model.KVStore: the
// first layer's Append begins a step, the last layer's Attend commits it. It belongs to one goroutine.
type SequenceStore struct {
	Ctx   context.Context
	Cache *engine.Cache
	Seq   *engine.Sequence

	layers int
	step   engine.Step
	open   bool
}

var _ model.KVStore = (*SequenceStore)(nil)

// NewSequenceStore returns a store over a new sequence of a cache of that many layers.
//
// Errors: those of the cache.
func NewSequenceStore(ctx context.Context, c *engine.Cache, layers int) (*SequenceStore, error) {
	s, err := c.NewSequence()
	if err != nil {
		return nil, err
	}
	return &SequenceStore{Ctx: ctx, Cache: c, Seq: s, layers: layers}, nil
}

// Append implements model.KVStore. pos must be the number of tokens of the sequence.
//
// Errors: quant.ErrShape; those of the cache.
func (s *SequenceStore) Append(layer, pos int, k, v []float32, n int) (err error) {
	if layer == 0 {
		if int64(pos) != s.Seq.Len() || s.open {
			return shapef("append to sequence", "position %d, want %d", pos, s.Seq.Len())
		}
		if s.step, err = s.Cache.Begin(s.Ctx, []engine.Row{{Seq: s.Seq, Tokens: n}}); err != nil {
			return err
		}
		s.open = true
	}
	return s.step.Append(layer, k, v)
}

// Attend implements model.KVStore.
//
// Errors: those of the cache.
func (s *SequenceStore) Attend(layer, _ int, q []float32, n int, out []float32) error {
	if err := s.step.Attend(layer, q, out); err != nil || layer < s.layers-1 {
		return err
	}
	s.open = false
	return s.step.Commit(n)
}

// ServingOptions configure MeasureServing.
type ServingOptions struct {
	Tokens  int       // of the text, at least two windows
	Chunk   int       // tokens a step. Default 16
	Window  int       // tokens that scores are averaged over. Default 256
	Shares  []float64 // budgets, as shares of the f16 bytes of all tokens
	Config  engine.Config
	OnChunk func(done int)
}

// ServingResult is what a cache under a budget did to a text.
type ServingResult struct {
	Share  float64
	Budget int64
	Peak   int64     // the most bytes that the cache held
	KL     []float64 // mean of each window of tokens
	Top1   float64
	Stats  engine.Stats
}

// MeasureServing runs a text through a model token by token, as a server does with a conversation: once
// over the exact cache, and once for each budget over an engine.Cache that holds it. Tokens are those
// of the text, so the runs stay comparable; errors of the cache feed back through later rows.
//
// Errors: quant.ErrShape; those of the model and of the cache.
func MeasureServing(ctx context.Context, be backend.Backend, m *model.Model, tokens []int32,
	o ServingOptions) ([]ServingResult, error) {
	if o.Chunk == 0 {
		o.Chunk = 16
	}
	if o.Window == 0 {
		o.Window = 256
	}
	if o.Tokens < 2*o.Window || len(tokens) < o.Tokens || o.Chunk < 1 || o.Window%o.Chunk != 0 {
		return nil, shapef("measure serving", "%d of %d tokens in steps of %d, windows of %d", o.Tokens, len(tokens),
			o.Chunk, o.Window)
	}
	exact, err := m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, err
	}
	g := m.Geometry()
	res := make([]ServingResult, len(o.Shares))
	stores := make([]*SequenceStore, len(o.Shares))
	for i, share := range o.Shares {
		cfg := servingConfig(m, o.Config)
		cfg.Budget = int64(share * float64(2*seen(m, 0, o.Tokens, o.Tokens)))
		c, err := engine.Open(be, g, cfg)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if stores[i], err = NewSequenceStore(ctx, c, g.Layers); err != nil {
			return nil, err
		}
		res[i] = ServingResult{Share: share, Budget: cfg.Budget, KL: make([]float64, o.Tokens/o.Window)}
	}
	for p := 0; p+o.Chunk <= o.Tokens; p += o.Chunk {
		chunk := tokens[p : p+o.Chunk]
		want, err := m.Forward(chunk, exact, p, model.ForwardOptions{Logits: model.LogitsAll})
		if err != nil {
			return nil, err
		}
		ref := newReference(m.Vocab, chunk)
		for i := range chunk {
			if err := ref.add(i, want[i*m.Vocab:(i+1)*m.Vocab]); err != nil {
				return nil, err
			}
		}
		for i, s := range stores {
			got, err := m.Forward(chunk, s, p, model.ForwardOptions{Logits: model.LogitsAll})
			if err != nil {
				return nil, fmt.Errorf("budget %g, position %d: %w", o.Shares[i], p, err)
			}
			sc := scorer{ref: ref}
			for t := range chunk {
				if err := sc.add(t, got[t*m.Vocab:(t+1)*m.Vocab]); err != nil {
					return nil, err
				}
			}
			if w := p / o.Window; w < len(res[i].KL) {
				res[i].KL[w] += sc.kl / float64(o.Window)
			}
			res[i].Top1 += float64(sc.agree)
		}
		if o.OnChunk != nil {
			o.OnChunk(p + o.Chunk)
		}
	}
	for i, s := range stores {
		res[i].Top1 /= float64(o.Tokens / o.Chunk * o.Chunk)
		res[i].Stats = s.Cache.Stats()
		res[i].Peak = res[i].Stats.PeakBytes
		if res[i].Peak > res[i].Budget || math.IsNaN(res[i].Top1) {
			return nil, fmt.Errorf("kvist/quality: measure serving: %d bytes held, the budget is %d: %w",
				res[i].Peak, res[i].Budget, quant.ErrBudget)
		}
	}
	return res, nil
}

// MeasureDecoding runs a text over what reference methods leave of it: rows older than window are compressed anew
// every window tokens; see Options.Decode. KL is the mean of each o.Window tokens, 0 for the first ones, which are
// exact. Budget and Peak are the bytes that are held at the end.
//
// Errors: those of NewRun and of the methods.
func MeasureDecoding(ctx context.Context, m *model.Model, tokens []int32, list []methods.Method, window int,
	o ServingOptions) ([]ServingResult, error) {
	if o.Window == 0 {
		o.Window = 256
	}
	var kl []float64
	opts := Options{Context: o.Window, Next: o.Tokens - o.Window, Decode: true, Window: window, Chunk: window,
		OnDecoding: func(i int, x float64) { kl[i/o.Window+1] += x / float64(o.Window) }}
	r, err := NewRun(ctx, m, Input{Name: "text", Tokens: tokens}, opts)
	if err != nil {
		return nil, err
	}
	var res []ServingResult
	for _, method := range list {
		kl = make([]float64, (o.Tokens+o.Window-1)/o.Window)
		s, err := r.decoded(ctx, method)
		if err != nil {
			return nil, methodErr("decoding", method, err)
		}
		res = append(res, ServingResult{Share: s.BitsPerValue / 16, Budget: s.Bytes, Peak: s.Bytes, KL: kl, Top1: s.Top1})
		if o.OnChunk != nil {
			o.OnChunk(len(res))
		}
	}
	return res, nil
}

// servingConfig adds how a model attends to the settings of a cache. The models that are measured have one scale
// and soft cap for all layers.
func servingConfig(m *model.Model, cfg engine.Config) engine.Config {
	cfg.LayerWindow = nil
	for _, a := range m.Attention() {
		cfg.LayerWindow = append(cfg.LayerWindow, a.Window)
		cfg.Scale, cfg.Softcap = float32(a.Scale), float32(a.Softcap)
	}
	return cfg
}
