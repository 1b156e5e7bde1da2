// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/memo"
	"github.com/kvist-project/kvist/quant"
)

// probeLevels measures what each level does to the queries of the last quarter that attend to the
// tokens before it, cut by weights that knew nothing of these queries; ratios hold measured over
// estimated damage. want are the outputs over the exact rows, tail the blocks from past on.
func (c *Builder) probeLevels(ctx context.Context, h *Head, q *backend.Queries,
	tail []backend.Block, want []float32) ([]float64, error) {
	q, want = fewer(q, want, levelQueries)
	outputs := float64(q.Len() * q.Group)
	ratios := make([]float64, len(c.Specs))
	segments := make([]*Rows, 0, h.l.Segments())
	for s := range h.l.Segments() {
		r, err := c.Read(h.l, h.head, s, h.limit)
		if err != nil {
			return nil, err
		}
		if r.n > 0 {
			segments = append(segments, r)
		}
	}
	for i, spec := range c.Specs {
		var estimate float64
		up := &input.Uploader{Backend: c.Backend}
		blocks := slices.Clone(tail)
		for _, r := range segments {
			var free, sinks []uint16
			for t := range r.n {
				if r.first+t < h.outside {
					continue
				}
				if r.first+t < c.Sinks {
					sinks = append(sinks, uint16(t))
				} else {
					free = append(free, uint16(t))
				}
			}
			sortByWeight(free, func(t uint16) float64 { return h.weight(r.first + int(t)) })
			v, ok := c.levelVariant(h, r, spec, free)
			if !ok {
				v.Cells = c.weightCells(h, r, free)
			}
			past, _ := c.levelTerms(h, r, &v)
			estimate += past
			if len(sinks) > 0 {
				v.Cells = append(v.Cells, c.fullCell(h, r, Sink, sinks))
			}
			codings := slices.Repeat([][2]quant.Coding{{input.Exact(h.l.K), input.Exact(h.l.V)}}, len(v.Cells))
			got, err := c.codeCells(ctx, up, h, r, v.Cells, codings)
			if err != nil {
				up.Free()
				return nil, err
			}
			blocks = append(blocks, got...)
		}
		e, err := c.attendError(ctx, q, blocks, want)
		up.Free()
		if err != nil {
			return nil, err
		}
		ratios[i] = 1
		scale := estimate * h.st.VSensitivity
		if r := e / outputs / scale; r > 0 && !math.IsInf(r, 0) {
			ratios[i] = r
		}
	}
	return ratios, nil
}

// levelQueries is the number of queries that probe levels: whole tokens come and go, which shows in
// a few queries, and there are many variants.
const levelQueries = 16

// fewer returns about n of the queries, evenly spread, and their outputs.
func fewer(q *backend.Queries, want []float32, n int) (*backend.Queries, []float32) {
	some, at := input.Fewer(q, n)
	if at == nil {
		return q, want
	}
	var out []float32
	per := q.Group * q.HeadDimV
	for _, i := range at {
		out = append(out, want[i*per:(i+1)*per]...)
	}
	return some, out
}

// attendError runs queries over blocks, and returns the squared error against want.
func (c *Builder) attendError(ctx context.Context, q *backend.Queries, blocks []backend.Block,
	want []float32) (float64, error) {
	all := *q
	all.BlockPtr, all.BlockIdx = []int32{0}, nil
	for range q.Len() {
		for b := range blocks {
			all.BlockIdx = append(all.BlockIdx, int32(b))
		}
		all.BlockPtr = append(all.BlockPtr, int32(len(all.BlockIdx)))
	}
	got := make([]float32, len(want))
	if err := backend.AttendBlocks(ctx, c.Backend, &all, nil, blocks, backend.Attention{Out: got}); err != nil {
		return 0, err
	}
	var sum damage.Sum
	sum.Add(want, got)
	return sum.Err, nil
}

// codeCells encodes cells of a segment to blocks in the backend, in one buffer for what goes in and one for
// what comes out.
func (c *Builder) codeCells(ctx context.Context, up *input.Uploader, h *Head, r *Rows,
	cells []Cell, codings [][2]quant.Coding) ([]backend.Block, error) {
	coded := make([]backend.Block, 0, len(cells))
	raw, packed := h.raw[:0], int64(0)
	place := func(size int) backend.Span { // of what was appended to raw last
		s := backend.Span{Off: int64(len(raw) - size), Len: int64(size)}
		raw = append(raw, zeros[:-len(raw)&(len(zeros)-1)]...)
		return s
	}
	var mean backend.Span
	if r.Mean.Stored != nil {
		raw = append(raw, r.Mean.Stored...)
		mean = place(len(r.Mean.Stored))
	}
	var src [][2]backend.Span
	for i := range cells {
		b := &cells[i]
		if b.Rows() == 0 {
			continue
		}
		kc, vc := codings[i][0], codings[i][1]
		blk := backend.Block{Layer: int32(h.l.Number), KVHead: int32(h.head), Rows: int32(b.Rows()),
			Base: int64(r.first), Noise: blocks.Noise(kc, c.RowBias)}
		var from [2]backend.Span
		for side, x := range []quant.Rows{r.K, r.V} {
			coding, to := kc, &blk.K
			if side == 1 {
				coding, to = vc, &blk.V
			}
			rows := quant.Rows{Dim: x.Dim, Data: h.RowsOf(r, b, x, side)}
			if side == 0 && !kc.Format.Exact() {
				if blk.Metric = r.metric; b.Centered {
					blk.MeanK = mean
				}
				var err error
				if rows, err = r.Center(rows, b.Centered); err != nil {
					return nil, err
				}
			}
			raw = input.AppendFloats(raw, rows.Data)
			from[side] = place(4 * b.Rows() * x.Dim)
			size := int64(coding.PackedBytes(b.Rows(), x.Dim))
			*to = backend.Side{Coding: coding, Data: backend.Span{Off: packed, Len: size}, Seed: c.Seed}
			packed += (size + int64(len(zeros)) - 1) &^ (int64(len(zeros)) - 1)
		}
		raw = append(raw, blocks.Shorts(blocks.FirstTokens(b.Tokens, b.Counts))...)
		blk.Pos = place(2 * b.Rows())
		if b.Counts != nil {
			raw = append(raw, blocks.Shorts(b.Counts)...)
			blk.Count = place(2 * b.Rows())
		}
		coded, src = append(coded, blk), append(src, from)
	}
	h.raw = raw
	if len(coded) == 0 {
		return nil, nil
	}
	in, err := up.Upload(raw)
	if err != nil {
		return nil, err
	}
	out, err := up.Alloc(packed)
	if err != nil {
		return nil, err
	}
	jobs := make([]backend.EncodeJob, 0, 2*len(coded))
	for i := range coded {
		b := &coded[i]
		b.Pos.Buf = in.Buf
		if b.Count.Len > 0 {
			b.Count.Buf = in.Buf
		}
		if b.MeanK.Len > 0 {
			b.MeanK.Buf = in.Buf
		}
		for side, to := range []*backend.Side{&b.K, &b.V} {
			to.Data.Buf, src[i][side].Buf = out.Buf, in.Buf
			dim := r.K.Dim
			if side == 1 {
				dim = r.V.Dim
			}
			jobs = append(jobs, backend.EncodeJob{Src: src[i][side], DType: quant.Float32, Rows: int(b.Rows),
				Dim: dim, Dst: *to})
		}
	}
	return coded, c.Backend.Encode(ctx, jobs)
}

// ratioKey is all that the ratios of levels depend on, beside capture and backend.
type ratioKey struct {
	layer, head, sinks int
	importance, levels string
}

// probedLevels is probeLevels, or what it gave before. Weights that were handed in are not told
// apart by a name, so nothing is kept of them.
func (c *Builder) probedLevels(ctx context.Context, h *Head, q *backend.Queries,
	tail []backend.Block, want []float32) ([]float64, error) {
	m := c.Memo
	if c.Weighted {
		m = nil
	}
	key := ratioKey{layer: h.l.Index, head: h.head, sinks: c.Sinks, importance: c.Recipe}
	key.levels = fmt.Sprint(c.Specs)
	return memo.Of(m, key, func() ([]float64, error) { return c.probeLevels(ctx, h, q, tail, want) })
}

// Rehearsed is what a plan does to the last queries of a head, if it is made of the tokens before them and of
// their weights as they were known then.
type Rehearsed struct {
	Err, Ref float64 // squared error and squared length of the outputs
	Planned  float64 // the damage of the plan, as a relative error of the layer's output
	OK       bool    // the queries are finite
}

// Rehearse plans the past of a head at a price of a byte and measures it.
func (c *Builder) Rehearse(ctx context.Context, l *input.Layer, head int, slope float64) (r Rehearsed, err error) {
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	past := input.FutureFrom(&c.Input.Geo, l)
	blocks, _, err := input.LoadHead(up, l, head, []int{0, past, l.Tokens}, false)
	if err != nil {
		return r, err
	}
	q, err := c.Price.LastQueries(l, head, past, len(blocks))
	if q == nil || err != nil {
		return r, err
	}
	want := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := backend.AttendBlocks(ctx, c.Backend, q, nil, blocks, backend.Attention{Out: want}); err != nil {
		return r, err
	}
	var coded []backend.Block
	for _, b := range blocks {
		if b.Base >= int64(past) {
			coded = append(coded, b)
		}
	}
	n := NewProblem(c)
	view := c.Head(l, head, c.Weights[l.Index].Past[head], past)
	for s := 0; s*l.Segment < past; s++ {
		p, err := c.buildPart(view, s)
		if err != nil {
			return r, err
		}
		if err := n.Add(p); err != nil {
			return r, err
		}
	}
	if err := n.Ready(); err != nil {
		return r, err
	}
	p := n.Solver.AtSlope(slope)
	for s := range n.Parts {
		rows, err := c.Read(l, head, s, past)
		if err != nil {
			return r, err
		}
		var cells []Cell
		var codings [][2]quant.Coding
		if err := n.Chosen(p, s, func(b Stored) error {
			cells, codings = append(cells, *b.Cell), append(codings, [2]quant.Coding{b.K, b.V})
			return nil
		}); err != nil {
			return r, err
		}
		got, err := c.codeCells(ctx, up, view, rows, cells, codings)
		if err != nil {
			return r, err
		}
		coded = append(coded, got...)
	}
	r.Err, err = c.attendError(ctx, q, coded, want)
	r.Ref, r.Planned, r.OK = input.Energy(want), p.Damage*float64(c.Input.Heads), true
	return r, err
}
