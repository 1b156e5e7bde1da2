// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// Progress is told about long work: what is being done, and how much of it is.
type Progress func(stage string, done, total int64)

func (p Progress) say(stage string, done, total int64) {
	if p != nil {
		p(stage, done, total)
	}
}

// Weights gives what tokens are worth: weights of (layer number, kv_head) as [tokens], each
// finite and at least 0; or nil where all count the same.
type Weights func(layer, kvHead int) ([]float32, error)

// Result says what Compress made.
type Result struct {
	Bytes         int64   // of the file
	Values        int64   // of K and V, or of all rows
	BitsPerValue  float64 // 8 * Bytes / Values
	OriginalBytes int64   // f16 bytes of the values
	Ratio         float64 // OriginalBytes / Bytes
	// Predicted is the planner's mean relative squared error of attention outputs (of rows, for
	// activations); NaN where tokens were weighed, because a sum weighted by past attention is too
	// hopeful of attention to come. MeasuredError the mean future-attention error where MaxError asked for it.
	Predicted     float64
	MeasuredError float64
	Sections      Sections
	// Codings counts the values stored in each coding.
	Codings    map[string]int64
	Importance ImportanceUse
}

// Sections says where the bytes of a file went.
type Sections struct {
	Header, Payload, Tables, Side, Index int64
}

type compressor struct {
	in     *input
	be     backend.Backend
	cfg    Config
	say    Progress
	header *container.Header
	aux    []*container.Aux
	stats  [][]headStats // [layers][heads]
	cells  []cell
	items  []plan.Item
	use    ImportanceUse
	want   [][]float32 // [layers] outputs over the exact context, for MaxError
}

// Compress reads src and writes a .kvist file to w, which need not be able to seek.
//
// Errors: quant.ErrShape for a config that cannot be, quant.ErrBudget, quant.ErrRange,
// quant.ErrUnsupported; *capture.FormatError; those of w.
func Compress(ctx context.Context, src *capture.Source, w io.Writer, be backend.Backend, cfg Config,
	weights Weights, progress Progress) (*Result, error) {
	cfg.Weighted = weights != nil
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Weighted {
		cfg.Importance = "none" // weights that are handed in take its place
	}
	segment := cfg.Segment
	if cfg.Lossless {
		segment = max(segment, losslessSegment)
	}
	in, err := newInput(src, segment)
	if err != nil {
		return nil, err
	}
	c := &compressor{in: in, be: be, cfg: cfg, say: progress, use: ImportanceUse{Profile: cfg.Importance}}
	if cfg.Form == FormArchive {
		return c.archiveTo(ctx, w, weights)
	}
	if err := c.prepare(ctx, weights); err != nil {
		return nil, err
	}
	choice, measured, err := c.choose(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.write(ctx, w, choice)
	if err != nil {
		return nil, err
	}
	res.MeasuredError, res.Importance = measured, c.use
	if cfg.Weighted || c.use.Heads > 0 {
		res.Predicted = math.NaN()
	}
	return res, nil
}

// prepare surveys the capture and prices every block.
func (c *compressor) prepare(ctx context.Context, weights Weights) error {
	for i := range c.in.layers {
		l := &c.in.layers[i]
		c.say.say("measuring", int64(i), int64(len(c.in.layers)))
		w, err := layerWeights(weights, l)
		if err == nil && weights == nil {
			w, err = c.weigh(ctx, l)
		}
		if err != nil {
			return err
		}
		cells, stats, err := c.survey(ctx, l, w)
		if err != nil {
			return err
		}
		c.cells, c.stats = append(c.cells, cells...), append(c.stats, stats)
	}
	c.say.say("measuring", int64(len(c.in.layers)), int64(len(c.in.layers)))
	heads := 0
	for _, l := range c.in.layers {
		heads += l.heads
	}
	for i := range c.cells {
		b := &c.cells[i]
		l := &c.in.layers[b.layer]
		m, err := c.menuOf(l, b.kind)
		if err != nil {
			return fmt.Errorf("kvist/offline: %s: %w", l.name, err)
		}
		if l.hasV { // the mean over heads; rows: the mean over rows, below
			b.KDamage, b.VDamage = b.KDamage/float64(heads), b.VDamage/float64(heads)
		} else {
			b.KDamage /= float64(max(1, l.tokens)) * float64(heads)
		}
		it, err := m.Item(b.Block, l.k.Dim(), l.dimV())
		if err != nil {
			return fmt.Errorf("kvist/offline: %s: %w", l.name, err)
		}
		it.Options = plan.Prune(it.Options)
		c.items = append(c.items, it)
	}
	return c.prepareHeader()
}

func layerWeights(weights Weights, l *layerInput) ([][]float32, error) {
	if weights == nil {
		return nil, nil
	}
	all := make([][]float32, l.heads)
	for h := range all {
		w, err := weights(l.number, h)
		if err != nil {
			return nil, err
		}
		if w != nil && len(w) != l.tokens {
			return nil, fmt.Errorf(
				"kvist/offline: weights of %s head %d: %d values, want one of %d tokens: %w",
				l.name, h, len(w), l.tokens, quant.ErrShape)
		}
		for t, v := range w {
			if !(v >= 0) || math.IsInf(float64(v), 0) {
				return nil, fmt.Errorf(
					"kvist/offline: weights of %s head %d token %d: %v, want finite and at least 0: %w",
					l.name, h, t, v, quant.ErrRange)
			}
		}
		all[h] = w
	}
	return all, nil
}

// menuOf returns what the planner may choose for a block of a kind.
func (c *compressor) menuOf(l *layerInput, kind cellKind) (plan.Menu, error) {
	ek := exact(l.k)
	var ev quant.Coding
	if l.hasV {
		ev = exact(l.v)
	}
	only := func(k, v []quant.Coding) plan.Menu {
		if !l.hasV {
			v = nil
		}
		return plan.Menu{K: k, V: v}
	}
	switch kind {
	case cellExact:
		return only([]quant.Coding{ek}, []quant.Coding{ev}), nil
	case cellSink:
		u8 := quant.Coding{Format: quant.U8, Scale: quant.ScaleLog8}
		k, v := []quant.Coding{u8, ek}, []quant.Coding{u8, ev}
		if u8.CheckDim(l.k.Dim()) != nil {
			k = k[1:]
		}
		if l.hasV && u8.CheckDim(l.v.Dim()) != nil {
			v = v[1:]
		}
		return only(k, v), nil
	}
	if !l.hasV {
		return menu(c.cfg.Rows, nil, l.k.Dim(), 0, ek)
	}
	m, err := menu(c.cfg.K, c.cfg.V, l.k.Dim(), l.v.Dim(), ek)
	if err == nil && len(c.cfg.V) > 1 {
		m.V[len(m.V)-1] = ev
	}
	return m, err
}

// prepareHeader makes header and side tensors, whose bytes do not depend on the plan.
func (c *compressor) prepareHeader() error {
	src := c.in.src
	h := &container.Header{Seed: c.cfg.Seed, Config: c.cfg.String(), Metadata: src.Metadata(),
		SegmentTokens: c.in.layers[0].segment}
	if c.in.kv {
		h.Kind, h.Geometry, h.Layers = container.KindCache, c.in.geo, src.Layers()
		h.Tokens, h.First = int64(src.Tokens()), src.Meta().FirstPosition
		h.Sinks, h.Window = min(c.cfg.Sinks, src.Tokens()), min(c.cfg.Window, src.Tokens())
		h.KType, h.VType = c.in.layers[0].k.DType(), c.in.layers[0].v.DType()
		h.Model = src.Meta().Model
		withQ := true
		for i, l := range c.in.layers {
			withQ = withQ && l.hasQ
			if l.k.DType() != h.KType || l.v.DType() != h.VType {
				return fmt.Errorf(
					"kvist/offline: %s: %s is stored as %s and %s, %s as %s and %s; one file keeps one type: %w",
					src.Name(),
					l.name,
					l.k.DType(),
					l.v.DType(),
					c.in.layers[0].name,
					h.KType,
					h.VType,
					quant.ErrUnsupported,
				)
			}
			for _, st := range c.stats[i] {
				h.QueryEnergy = append(h.QueryEnergy, float32(st.queryEnergy))
			}
		}
		if !withQ {
			h.QueryEnergy = nil
		}
	} else {
		h.Kind, h.Source = container.KindRows, container.SourceSafetensors
		if src.Format() == capture.Npy {
			h.Source = container.SourceNPY
		}
		for _, a := range src.ActTensors() {
			h.Tensors = append(h.Tensors, container.Tensor{Name: a.Name, DType: a.DType.String(), Shape: slices.Clone(a.Shape)})
			h.Tokens += int64(a.Rows)
		}
	}
	c.header = h
	for _, t := range src.SideTensors() {
		if c.in.kv && !keptSide(t.Name) {
			continue
		}
		a := &container.Aux{
			Name:  t.Name,
			DType: t.DTypeName,
			Shape: slices.Clone(t.Shape),
			Data:  make([]byte, t.Bytes),
		}
		if err := src.ReadAt(t.Name, 0, a.Data); err != nil {
			return err
		}
		c.aux = append(c.aux, a)
	}
	return nil
}

// keptSide names the side tensors of a KV capture that a file keeps. q, the _next tensors and
// o_weight are not kept; rope_inv_freq stands in the header.
func keptSide(name string) bool {
	return name == "tokens" || name == "surprisal" || name == "positions"
}

// eachRecord calls f for every record in file order, blocks without payload. Planning blocks of a
// head that were given the same codings become one stored block: its rows cost the same, and
// telling them apart would cost bits.
func (c *compressor) eachRecord(choice []int, f func(*container.Record) error) error {
	byRecord := map[[2]int32][]int{}
	for i := range c.cells {
		key := [2]int32{c.cells[i].layer, c.cells[i].segment}
		byRecord[key] = append(byRecord[key], i)
	}
	for li := range c.in.layers {
		l := &c.in.layers[li]
		for s := range l.segments() {
			rec := &container.Record{Layer: li, Segment: s, Heads: make([]container.Head, l.heads)}
			for _, i := range byRecord[[2]int32{int32(li), int32(s)}] {
				b := &c.cells[i]
				m, err := c.menuOf(l, b.kind)
				if err != nil {
					return err
				}
				k, v := m.Pair(c.items[i].Options[choice[i]].ID)
				head := &rec.Heads[b.head]
				at := slices.IndexFunc(
					head.Blocks,
					func(o container.Block) bool { return o.K == k && o.V == v },
				)
				if at < 0 {
					at = len(head.Blocks)
					head.Blocks = append(head.Blocks,
						container.Block{Level: quant.Full, K: k, V: v})
				}
				head.Blocks[at].Tokens = append(head.Blocks[at].Tokens, b.tokens...)
			}
			for h := range rec.Heads {
				for b := range rec.Heads[h].Blocks {
					slices.Sort(rec.Heads[h].Blocks[b].Tokens)
				}
			}
			if err := f(rec); err != nil {
				return err
			}
		}
	}
	return nil
}
