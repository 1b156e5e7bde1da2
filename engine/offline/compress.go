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
	in, err := newInput(src, cfg.Segment)
	if err != nil {
		return nil, err
	}
	c := &compressor{in: in, be: be, cfg: cfg, say: progress, use: ImportanceUse{Profile: cfg.Importance}}
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

// choose finds the plan for the target.
func (c *compressor) choose(ctx context.Context) (choice []int, measured float64, err error) {
	most := c.in.values() * 4
	switch {
	case c.cfg.Bits > 0:
		return c.fit(int64(c.cfg.Bits * float64(c.in.values()) / 8))
	case c.cfg.Bytes > 0:
		return c.fit(c.cfg.Bytes)
	case c.cfg.Share > 0:
		return c.fit(int64(c.cfg.Share * float64(2*c.in.values())))
	case c.cfg.MaxError > 0:
		return c.fitError(ctx)
	}
	return c.fit(most + 1<<40) // fixed codings
}

// fit finds the plan whose whole file comes closest to total bytes from below. What tables and
// padding take depends on the plan, so the planner's budget is moved until the file fits.
func (c *compressor) fit(total int64) ([]int, float64, error) {
	least, err := c.fileBytes(c.leastChoice())
	if err != nil {
		return nil, 0, err
	}
	if least > total {
		return nil, 0, fmt.Errorf(
			"kvist/offline: %d bytes for %s: the least possible with these codings is %d (%.3f bits/value): %w",
			total,
			c.in.src.Name(),
			least,
			quant.BitsPerValue(least, c.in.values()),
			quant.ErrBudget,
		)
	}
	var best []int
	var bestBytes int64 = -1
	low, high := plan.Least(c.items), total
	// The tables of the least plan are the first guess at those of the plan to be.
	budget := min(high, max(low, total-(least-low)))
	for range 24 {
		p, err := plan.Solve(c.items, budget)
		if err != nil {
			return nil, 0, err
		}
		n, err := c.fileBytes(p.Choice)
		if err != nil {
			return nil, 0, err
		}
		if n <= total {
			if n > bestBytes {
				best, bestBytes = p.Choice, n
			}
			if p.Bytes == plan.Most(c.items) || total-n <= total/4096 {
				break
			}
			low = budget
			budget = min(budget+(total-n), high)
		} else {
			high = budget
			budget -= n - total
		}
		if budget <= low || budget >= high { // the guess left the bracket: halve it
			budget = (low + high) / 2
		}
		if high-low < 8 {
			break
		}
	}
	if best == nil {
		best = c.leastChoice()
	}
	return best, 0, nil
}

func (c *compressor) leastChoice() []int {
	choice := make([]int, len(c.items))
	for i, it := range c.items {
		for j, o := range it.Options {
			if o.Bytes < it.Options[choice[i]].Bytes {
				choice[i] = j
			}
		}
	}
	return choice
}

// fileBytes returns the exact bytes of the file that a choice makes.
func (c *compressor) fileBytes(choice []int) (int64, error) {
	s, err := c.sections(choice)
	return s.Header + s.Payload + s.Tables + s.Side + s.Index, err
}

func (c *compressor) sections(choice []int) (Sections, error) {
	var s Sections
	var err error
	if s.Header, err = container.HeaderSize(c.header); err != nil {
		return s, err
	}
	for _, a := range c.aux {
		n, err := container.AuxSize(a)
		if err != nil {
			return s, err
		}
		s.Side += n
	}
	records := 0
	err = c.eachRecord(choice, func(rec *container.Record) error {
		n, err := container.RecordSize(c.header, rec)
		if err != nil {
			return err
		}
		kDim, vDim := c.header.Dims(rec.Layer)
		var payload int64
		for _, h := range rec.Heads {
			for _, b := range h.Blocks {
				payload += int64(b.K.PackedBytes(b.Rows(), kDim))
				if vDim > 0 {
					payload += int64(b.V.PackedBytes(b.Rows(), vDim))
				}
			}
		}
		records++
		s.Payload += payload
		s.Tables += n - payload
		return nil
	})
	s.Index = container.IndexSize(records+len(c.aux)) + container.TrailerSize
	return s, err
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

// write encodes and writes the file.
func (c *compressor) write(ctx context.Context, w io.Writer, choice []int) (*Result, error) {
	res := &Result{Values: c.in.values(), Codings: map[string]int64{}}
	var err error
	if res.Sections, err = c.sections(choice); err != nil {
		return nil, err
	}
	out, err := container.NewWriter(w, c.header)
	if err != nil {
		return nil, err
	}
	for _, a := range c.aux {
		if err := out.WriteAux(a); err != nil {
			return nil, err
		}
	}
	var total, done int64
	for i := range c.in.layers {
		total += int64(c.in.layers[i].segments())
	}
	err = c.eachRecord(choice, func(rec *container.Record) error {
		c.say.say("encoding", done, total)
		done++
		if err := c.encodeRecord(ctx, rec); err != nil {
			return err
		}
		kDim, vDim := c.header.Dims(rec.Layer)
		for _, h := range rec.Heads {
			for _, b := range h.Blocks {
				res.Codings[b.K.String()] += int64(b.Rows() * kDim)
				if vDim > 0 {
					res.Codings[b.V.String()] += int64(b.Rows() * vDim)
				}
			}
		}
		return out.WriteRecord(rec)
	})
	if err != nil {
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	c.say.say("encoding", total, total)
	res.Bytes = out.Size()
	s := res.Sections
	if sum := s.Header + s.Payload + s.Tables + s.Side + s.Index; sum != res.Bytes {
		return nil, fmt.Errorf("kvist/offline: wrote %d bytes where %d were planned: %w",
			res.Bytes, sum, quant.ErrCorrupt)
	}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	for i, j := range choice {
		res.Predicted += c.items[i].Options[j].Damage
	}
	return res, nil
}

// encodeRecord fills the payloads of a record.
func (c *compressor) encodeRecord(ctx context.Context, rec *container.Record) error {
	l := &c.in.layers[rec.Layer]
	first, n := l.span(rec.Segment)
	up := &uploader{be: c.be}
	defer up.free()
	var jobs []backend.EncodeJob
	var into []*[]byte
	add := func(t tensor, head int, coding quant.Coding, b *container.Block, src, index backend.Span, data *[]byte) error {
		*data = make([]byte, coding.PackedBytes(b.Rows(), t.Dim()))
		dst, err := up.upload(*data)
		if err != nil {
			return err
		}
		jobs = append(
			jobs,
			backend.EncodeJob{
				Src:   src,
				DType: t.DType(),
				Index: index,
				Rows:  b.Rows(),
				Dim:   t.Dim(),
				Dst:   backend.Side{Coding: coding, Data: dst, Seed: c.cfg.Seed},
			},
		)
		into = append(into, data)
		return nil
	}
	for h := range rec.Heads {
		var spans [2]backend.Span
		for i, t := range []tensor{l.k, l.v}[:1+min(1, l.dimV())] {
			raw := make([]byte, n*t.RowBytes())
			if err := c.in.src.ReadRows(t, h, first, n, raw); err != nil {
				return err
			}
			var err error
			if spans[i], err = up.upload(raw); err != nil {
				return err
			}
		}
		for bi := range rec.Heads[h].Blocks {
			b := &rec.Heads[h].Blocks[bi]
			index, err := up.upload(indexBytes(b.Tokens))
			if err != nil {
				return err
			}
			if err := add(l.k, h, b.K, b, spans[0], index, &b.KData); err != nil {
				return err
			}
			if l.hasV {
				if err := add(l.v, h, b.V, b, spans[1], index, &b.VData); err != nil {
					return err
				}
			}
		}
	}
	if err := c.be.Encode(ctx, jobs); err != nil {
		return fmt.Errorf("kvist/offline: encode %s segment %d (tokens %d to %d): %w", l.name,
			rec.Segment, first, first+n, err)
	}
	for i, j := range jobs {
		if err := j.Dst.Data.Buf.Download(0, *into[i]); err != nil {
			return err
		}
	}
	return nil
}

func indexBytes(tokens []uint16) []byte {
	b := make([]byte, 4*len(tokens))
	for i, t := range tokens {
		b[4*i], b[4*i+1] = byte(t), byte(t>>8)
	}
	return b
}
