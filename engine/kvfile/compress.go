// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Weights returns the weights of the tokens of a layer, by the model's number, and a KV head:
// [tokens], each finite and at least 0; or nil if all count the same. Calls come from any goroutine,
// one at a time, in any order.
type Weights func(layer, kvHead int) ([]float32, error)

// Result says what Compress made.
type Result struct {
	Bytes        int64   // of the file
	Values       int64   // of K and V, or of all rows
	BitsPerValue float64 // 8 * Bytes / Values
	// SeenValues counts those of tokens that a later query can see, all but those outside the windows of their
	// layers; BitsPerSeen is 8 * Bytes / SeenValues.
	SeenValues    int64
	BitsPerSeen   float64
	OriginalBytes int64   // f16 bytes of the values
	Ratio         float64 // OriginalBytes / Bytes
	SourceBytes   int64   // bytes of the values in the types of the capture
	// Config and Profile are what the file holds: the settings, with automatic ones decided, and the
	// hash of the profile.
	Config, Profile string
	// TargetBytes is the target in bytes, 0 for a target of another kind. Lossless reports that every
	// bit was kept, because it was asked for or because the target is enough for it.
	TargetBytes int64
	Lossless    bool
	// Predicted is the expected mean relative squared error of attention outputs, or of rows for
	// activations. It is rehearsed on the last queries of the capture. Without queries it is the
	// planner's sum, which a profile's sensitivities scale. It is NaN with a memo. Archives rehearse some of the
	// layers, and it is NaN without queries and beyond 16,384 tokens. MeasuredError is
	// the mean future-attention error, if MaxError asked for it.
	Predicted     float64
	MeasuredError float64
	// Damage is the planner's own sum, on the same scale. It is too small, because plans are made
	// with weights of past attention, which they fit too well.
	Damage   float64
	Sections Sections
	// Codings counts the values of the original by the coding that they are stored in, "dropped" for
	// those of dropped tokens. Values of merged rows count for every token.
	Codings    map[string]int64
	Importance weigh.Use
	Prices     damage.Use
}

// made copies what the result tells of the header.
func (r *Result) made(h *container.Header) {
	r.SeenValues = h.SeenValues()
	r.BitsPerSeen = quant.BitsPerValue(r.Bytes, r.SeenValues)
	r.Config, r.Profile, r.SourceBytes = h.Config, cold.ProfileText(h.Profile), captured.SourceBytes(h)
}

// Sections says where the bytes of a file went.
type Sections struct {
	Header, Payload, Tables, Side, Index int64
}

// compressor holds what files of both forms are made with.
type compressor struct {
	from   origin
	in     *input.Data
	be     backend.Backend
	cfg    Config
	say    progress.Func
	caller sync.Mutex // held while functions of the caller run: weights and progress
	header *container.Header
	aux    []*container.Aux
	// weights are kept because merged rows are means by weight: 4 bytes a token and KV head.
	seg *segment.Builder
	use weigh.Use
}

// Compress reads src and writes a .kvist file to w, which need not be able to seek.
//
// Errors: quant.ErrShape for a config that cannot be or a profile of another model
// (*profile.MismatchError), quant.ErrBudget, quant.ErrRange,
// quant.ErrUnsupported; *capture.FormatError; those of w.
func Compress(ctx context.Context, src *capture.Source, w io.Writer, o Options) (*Result, error) {
	return o.compress(ctx, fileOrigin{src}, w)
}

// compress opens a backend where none was given.
func (o *Options) compress(ctx context.Context, from origin, w io.Writer) (*Result, error) {
	cfg, err := o.config()
	if err != nil {
		return nil, err
	}
	be, done, err := o.backend()
	if err != nil {
		return nil, err
	}
	res, err := compress(ctx, from, w, be, cfg, o.Weights, o.Progress)
	if e := done(); e != nil && err == nil {
		return nil, e
	}
	return res, err
}

func compress(ctx context.Context, from origin, w io.Writer, be backend.Backend, cfg Config,
	weights Weights, say progress.Func) (*Result, error) {
	cfg.Weighted = weights != nil
	c, err := newCompressor(from, be, cfg, say)
	if err != nil {
		return nil, err
	}
	if cfg.Form == FormArchive {
		res, err := (&archiver{c}).write(ctx, w, weights)
		if err == nil {
			res.TargetBytes = c.targetBytes()
		}
		return res, err
	}
	hf := newHotFile(c)
	if err := hf.prepare(ctx, weights); err != nil {
		return nil, err
	}
	choice, measured, err := hf.choose(ctx)
	if err != nil {
		return nil, err
	}
	res, err := hf.write(ctx, w, choice)
	if err != nil {
		return nil, err
	}
	res.MeasuredError, res.Importance, res.TargetBytes = measured, c.use, c.targetBytes()
	res.Prices = c.prices()
	res.Damage = choice.Damage
	if cfg.Memo != nil {
		res.Predicted = math.NaN()
		return res, nil
	}
	if res.Predicted, err = predict(ctx, hf, choice); err != nil {
		return nil, err
	}
	return res, nil
}

func newCompressor(from origin, be backend.Backend, cfg Config,
	say progress.Func) (*compressor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Weighted {
		cfg.Importance = "none" // weights that are given take its place
	}
	in, err := from.data(from.segment(&cfg))
	if err != nil {
		return nil, err
	}
	if err := checkInput(in, cfg.Lossless); err != nil {
		return nil, err
	}
	sensitivity, err := checkProfile(cfg.Profile, in)
	if err != nil {
		return nil, err
	}
	c := &compressor{from: from, in: in, be: be, cfg: cfg, say: say, use: weigh.Use{Profile: cfg.Importance},
		seg: &segment.Builder{Specs: segment.LevelsOf(cfg.levels(in.Values(), in.SeenValues()))}}
	if c.cfg.RowBias == rowBiasAuto {
		c.cfg.RowBias = "false"
		weighs := c.cfg.Weighted || c.cfg.Importance != "none"
		if c.cfg.Form == FormHot && (len(c.seg.Specs) == 0 || !weighs) {
			c.cfg.RowBias = "true" // FULL alone
		}
	}
	c.seg = &segment.Builder{Backend: be, Input: in, Price: c.pricer(), Memo: cfg.Memo, Seed: cfg.Seed,
		Menus: segment.Menus{K: cfg.K, V: cfg.V, Rows: cfg.Rows}, Specs: c.seg.Specs, Sinks: cfg.Sinks, Window: cfg.Window,
		Unseen: cfg.Unseen, KeepNonfinite: cfg.AllowNonfinite, RowBias: c.rowBias(), Mean: c.mean(), Recipe: cfg.Importance,
		Weighted: cfg.Weighted, Factors: factors(sensitivity, in.Geo.KVHeads)}
	return c, nil
}

// weigher returns what weighs the tokens of layers.
func (c *compressor) weigher() *weigh.Weigher {
	return &weigh.Weigher{Backend: c.be, Geo: c.in.Geo, Sinks: c.cfg.Sinks, Recipe: c.cfg.Importance, Memo: c.cfg.Memo,
		Surprisal: c.in.Surprisal, Queries: c.queries()}
}

// queries returns what the profile knows of queries, nil where it does not.
func (c *compressor) queries() func(layer, head int) importance.QueryMoments {
	if c.cfg.Profile == nil {
		return nil
	}
	q, err := c.cfg.Profile.Queries() // it was checked when the profile was read
	if q == nil || err != nil {
		return nil
	}
	return func(layer, head int) (m importance.QueryMoments) {
		mean, variance := q.At(layer, head, c.in.Geo.Heads, c.in.Geo.HeadDim)
		for i := range mean {
			m.Mean, m.Variance = append(m.Mean, float64(mean[i])), append(m.Variance, float64(variance[i]))
		}
		return m
	}
}

// prices returns how the errors of all heads were priced.
func (c *compressor) prices() (u damage.Use) {
	for _, stats := range c.seg.Stats {
		u.Add(stats)
	}
	return u
}

// pricer returns what prices the errors of heads.
func (c *compressor) pricer() *damage.Pricer {
	return &damage.Pricer{Backend: c.be, Geo: c.in.Geo, Positions: c.in.Positions, Sinks: c.cfg.Sinks, Seed: c.cfg.Seed,
		Small: c.cfg.Form == FormArchive, RowBias: c.rowBias(), Mean: c.mean(), Metric: c.cfg.Metric, Memo: c.cfg.Memo}
}

// rowBias reports whether plans count on the row bias.
func (c *compressor) rowBias() bool { return c.cfg.RowBias == "true" }

// mean reports whether K may be coded without its means: prices of that are measured on queries.
func (c *compressor) mean() bool {
	for i := range c.in.Layers {
		if !c.in.Layers[i].HasQ {
			return false
		}
	}
	return c.cfg.Mean && c.cfg.Form == FormHot
}

// given returns the weights that the caller has for a layer, if any.
func (c *compressor) given(weights Weights, l *input.Layer) ([][]float32, error) {
	c.caller.Lock()
	defer c.caller.Unlock()
	return layerWeights(weights, l)
}

func layerWeights(weights Weights, l *input.Layer) ([][]float32, error) {
	if weights == nil {
		return nil, nil
	}
	all := make([][]float32, l.Heads)
	for h := range all {
		w, err := weights(l.Number, h)
		if err != nil {
			return nil, err
		}
		if w != nil && len(w) != l.Tokens {
			return nil, fmt.Errorf(
				"kvist/kvfile: weights of %s head %d: %d values, want one of %d tokens: %w",
				l.Name, h, len(w), l.Tokens, quant.ErrShape)
		}
		for t, v := range w {
			if !(v >= 0) || math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf(
					"kvist/kvfile: weights of %s head %d token %d: %v, want finite and at least 0: %w",
					l.Name, h, t, v, quant.ErrRange)
			}
		}
		all[h] = w
	}
	return all, nil
}

// prepareHeader makes header and side tensors, whose bytes do not depend on the plan.
func (c *compressor) prepareHeader() error {
	h := &container.Header{Seed: c.cfg.Seed, Config: c.cfg.String(), Profile: profileID(c.cfg.Profile),
		SegmentTokens: c.in.Layers[0].Segment}
	c.from.describe(h)
	if c.in.KV {
		h.Sinks, h.Window = min(c.cfg.Sinks, int(h.Tokens)), min(c.cfg.Window, int(h.Tokens))
		h.KType, h.VType = c.in.Layers[0].K.DType(), c.in.Layers[0].V.DType()
		withQ, anyQ := true, false
		for i, l := range c.in.Layers {
			withQ = withQ && l.HasQ
			if l.K.DType() != h.KType || l.V.DType() != h.VType {
				return fmt.Errorf(
					"kvist/kvfile: %s: %s is stored as %s and %s, %s as %s and %s; one file keeps one type: %w",
					c.in.Name, l.Name, l.K.DType(), l.V.DType(), c.in.Layers[0].Name, h.KType, h.VType,
					quant.ErrUnsupported)
			}
			for _, st := range c.seg.Stats[i] {
				energy := st.QueryEnergy
				if st.Metric != nil {
					energy, h.Metrics = st.MetricEnergy, make([]*frame.Metric, 0, len(c.in.Layers)*l.Heads)
				}
				h.QueryEnergy = append(h.QueryEnergy, float32(energy))
				anyQ = anyQ || st.By != damage.ByKeysBad
			}
		}
		if !withQ || !anyQ {
			h.QueryEnergy = nil
		}
	}
	if h.Metrics != nil {
		for _, stats := range c.seg.Stats {
			for _, st := range stats {
				h.Metrics = append(h.Metrics, st.Metric)
			}
		}
	}
	c.header = h
	sides, err := c.from.sides()
	c.aux = append(c.aux, sides...)
	return err
}

// keptSide reports whether a file keeps the side tensor of a KV capture. q, the _next tensors and
// o_weight are not kept; rope_inv_freq is part of the header. Names that start with llama. are those of
// engine/llamastate.
func keptSide(name string) bool {
	return name == "tokens" || name == "surprisal" || name == "positions" || strings.HasPrefix(name, "llama.")
}

// eachLayer is parallel.EachOf over the layers, and tells the caller of progress.
func (c *compressor) eachLayer(ctx context.Context, stage string, workers int, f func(l *input.Layer) error) error {
	done, n := int64(0), len(c.in.Layers)
	return parallel.EachOf(ctx, workers, n, func(i int) error {
		err := f(&c.in.Layers[i])
		c.caller.Lock()
		defer c.caller.Unlock()
		done++
		c.say.Say(stage, done, int64(n))
		return err
	})
}
