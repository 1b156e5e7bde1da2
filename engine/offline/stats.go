// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/engine/quality"
	"github.com/kvist-project/kvist/quant"
)

// planRows is the number of tokens of a planning block.
const planRows = 32

// cellKind says what the planner may do with a block.
type cellKind uint8

const (
	cellFree  cellKind = iota // any coding of the menu
	cellSink                  // u8 or exact
	cellExact                 // exact: the window, and rows that are not finite
)

// cell is a planning block: tokens of one (layer, segment, head).
type cell struct {
	layer, segment, head int32
	kind                 cellKind
	tokens               []uint16 // offsets in the segment, ascending
	plan.Block
}

// headStats is what an error costs in one KV head, measured on the capture's own last queries.
type headStats struct {
	// Damage per unit of squared error in a row of K or V: squared error of the attention output,
	// mean over queries and query heads.
	kSensitivity, vSensitivity float64
	kCurve, vCurve             *plan.Curve
	queryEnergy                float64 // mean |q|^2
	outEnergy                  float64 // mean |attention output|^2
}

// queryBudget bounds the queries that calibrate a head: 64, fewer over long contexts, so that the
// cost stays that of a few attention passes.
func queryBudget(tokens int) int { return min(tokens, max(4, min(64, 1<<17/max(1, tokens)))) }

// survey measures every planning block of a layer. weights is [heads][tokens], or nil.
func (c *compressor) survey(ctx context.Context, l *layerInput,
	weights [][]float32) ([]cell, []headStats, error) {
	stats := make([]headStats, l.heads)
	var out float64
	for h := range stats {
		stats[h] = headStats{kSensitivity: 1, vSensitivity: 1, queryEnergy: 1, outEnergy: 1}
		if l.hasV {
			var err error
			if stats[h], err = c.calibrated(ctx, l, h); err != nil {
				return nil, nil, err
			}
		}
		out += stats[h].outEnergy / float64(l.heads)
	}
	if !(out > 0) {
		out = 1 // a layer without any energy costs nothing; keep the divisions defined
	}
	var cells []cell
	for h := range l.heads {
		// Errors are relative to the output of the whole layer, as the future-attention error is: a
		// head that attends to a sink only, and puts out next to nothing, cannot claim bytes for it.
		stats[h].outEnergy = out
		st := stats[h]
		var w []float32
		if weights != nil {
			w = levelWeights(weights[h], c.cfg.Sinks)
		}
		for s := range l.segments() {
			part, err := c.surveySegment(l, h, s, st, w)
			if err != nil {
				return nil, nil, err
			}
			cells = append(cells, part...)
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
		}
	}
	return cells, stats, nil
}

// surveySegment splits the tokens of a segment into planning blocks and prices them.
func (c *compressor) surveySegment(l *layerInput, head, seg int, st headStats,
	w []float32) ([]cell, error) {
	first, n := l.span(seg)
	kEnergy, badK, err := c.rowEnergies(l, l.k, head, first, n)
	if err != nil {
		return nil, err
	}
	vEnergy, badV := make([]float64, n), make([]bool, n)
	if l.hasV {
		if vEnergy, badV, err = c.rowEnergies(l, l.v, head, first, n); err != nil {
			return nil, err
		}
	}
	var free, sinks, fixed []uint16
	for t := range n {
		switch tok := first + t; {
		case badK[t] || badV[t] || (l.hasV && tok >= l.tokens-c.cfg.Window):
			fixed = append(fixed, uint16(t))
		case l.hasV && tok < c.cfg.Sinks:
			sinks = append(sinks, uint16(t))
		default:
			free = append(free, uint16(t))
		}
	}
	if w != nil {
		// Blocks of equal worth: rows of a segment sorted by weight, ties by position.
		slices.SortStableFunc(free, func(a, b uint16) int {
			x, y := w[first+int(a)], w[first+int(b)]
			switch {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return 0
		})
	}
	var cells []cell
	add := func(kind cellKind, tokens []uint16) {
		b := cell{layer: int32(l.index), segment: int32(seg), head: int32(head), kind: kind,
			tokens: slices.Sorted(slices.Values(tokens))}
		b.Rows, b.KCurve, b.VCurve = len(tokens), st.kCurve, st.vCurve
		for _, t := range tokens {
			weight := 1.0
			if w != nil {
				weight = float64(w[first+int(t)])
			}
			b.KDamage += weight * weight * st.kSensitivity / st.outEnergy * kEnergy[t]
			b.VDamage += weight * weight * st.vSensitivity / st.outEnergy * vEnergy[t]
		}
		cells = append(cells, b)
	}
	if len(sinks) > 0 {
		add(cellSink, sinks)
	}
	for len(free) > 0 {
		// Without weights, blocks start at multiples of 32 tokens, sinks or not.
		k := planRows
		if w == nil {
			k = planRows - int(free[0])%planRows
			for i := 1; i < min(k, len(free)); i++ {
				if int(free[i]) >= int(free[0])/planRows*planRows+planRows {
					k = i
				}
			}
		}
		k = min(k, len(free))
		add(cellFree, free[:k])
		free = free[k:]
	}
	if len(fixed) > 0 {
		add(cellExact, fixed)
	}
	return cells, nil
}

// rowEnergies returns |x|^2 of each row and which rows are not finite (energy 0). Rows without
// attention get energy 1: all count the same, relative to their length.
//
// Errors: quant.ErrRange for rows that are not finite, unless they are allowed.
func (c *compressor) rowEnergies(l *layerInput, t tensor,
	head, first, n int) ([]float64, []bool, error) {
	raw := make([]byte, n*t.RowBytes())
	if err := c.in.src.ReadRows(t, head, first, n, raw); err != nil {
		return nil, nil, err
	}
	x := make([]float32, n*t.Dim())
	if err := c.in.src.ReadRowsF32(t, head, first, n, x); err != nil {
		return nil, nil, err
	}
	energy, bad := make([]float64, n), make([]bool, n)
	for r := range n {
		if !finiteRow(t.DType(), raw[r*t.RowBytes():(r+1)*t.RowBytes()]) {
			if !c.cfg.AllowNonfinite {
				return nil, nil, fmt.Errorf(
					"kvist/offline: %s: %s head %d token %d holds NaN or Inf (--allow-nonfinite keeps such rows exactly): %w",
					c.in.src.Name(),
					t.Name(),
					head,
					first+r,
					quant.ErrRange,
				)
			}
			bad[r] = true
			continue
		}
		for _, v := range x[r*t.Dim() : (r+1)*t.Dim()] {
			energy[r] += float64(v) * float64(v)
		}
		if !l.hasV && energy[r] > 0 {
			energy[r] = 1
		}
	}
	return energy, bad, nil
}

// calibrate measures what errors cost in a head. Without queries, attention is taken as even and
// queries as long as keys: then V costs a^2 |dv|^2 and K costs a^2 |v - mean v|^2 |q|^2 |dk|^2 /
// head_dim^2, with a = 1/tokens.
func (c *compressor) calibrate(ctx context.Context, l *layerInput, head int) (headStats, error) {
	n := float64(max(1, l.tokens))
	up := &uploader{be: c.be}
	defer up.free()
	quarter := max(queryBudget(l.tokens), l.tokens/4)
	past := l.tokens - quarter
	sinks := min(c.cfg.Sinks, past)
	blocks, rows, err := c.exactHead(up, l, head, []int{0, sinks, past, l.tokens})
	if err != nil {
		return headStats{}, err
	}
	var st headStats
	for t := range l.tokens {
		st.queryEnergy += rows.k[t] / n
		st.outEnergy += rows.v[t] / n
		st.kSensitivity += rows.vDev[t] / n
	}
	dim := float64(l.k.Dim())
	st.kSensitivity *= st.queryEnergy / (dim * dim) / (n * n)
	st.vSensitivity = 1 / (n * n)
	if c3 := probeCoding(3); !l.hasQ || past <= sinks || c3.CheckDim(l.k.Dim()) != nil ||
		c3.CheckDim(l.v.Dim()) != nil {
		return st, nil
	}
	q, err := c.lastQueries(l, head, past, len(blocks))
	if q == nil || err != nil {
		return st, err
	}
	return st, c.probe(ctx, l, q, blocks, sinks, past, rows, &st)
}

// lastQueries samples the queries from position past on, which attend to nb blocks; nil where one
// is not finite.
func (c *compressor) lastQueries(l *layerInput, head, past, nb int) (*backend.Queries, error) {
	n, group, dim := queryBudget(l.tokens), c.in.geo.GQARatio(), l.k.Dim()
	q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: l.v.Dim(),
		Scale: float32(
			1 / math.Sqrt(float64(dim))), Q: make([]float32, n*group*dim), BlockPtr: []int32{0}}
	for i := range n {
		at := past + i*(l.tokens-past)/n
		q.Pos = append(q.Pos, int64(at))
		for g := range group {
			row := q.Q[(i*group+g)*dim : (i*group+g+1)*dim]
			if err := c.in.src.ReadRowsF32(l.q, head*group+g, at, 1, row); err != nil {
				return nil, err
			}
			if !finiteValues(row) {
				return nil, nil
			}
		}
		for b := range nb {
			q.BlockIdx = append(q.BlockIdx, int32(b))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	return q, nil
}

// probeCoding is the coding a probe uses at a width.
func probeCoding(bits int) quant.Coding {
	return quant.Coding{
		Format: quant.LM1 + quant.Format(bits-1),
		Rule:   quant.LengthKeeping,
		Scale:  quant.ScaleLog8,
	}
}

// probe plays the future: queries of the last quarter attend to the rows before it, coded at 1, 2
// and 3 bits on one side and exact on the other, and what that does to their outputs is what
// errors in this head cost. It sees what no formula over attention probabilities does: how
// errors of rows that are alike add up (equal tokens have equal V in the first layer, and equal
// errors), and how the softmax bends large ones.
func (c *compressor) probe(ctx context.Context, l *layerInput, q *backend.Queries,
	blocks []backend.Block, sinks, past int, rows rowStats, st *headStats) error {
	outputs := float64(q.Len() * q.Group)
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := c.be.Attend(ctx, q, blocks, out, nil); err != nil {
		return err
	}
	st.queryEnergy, st.outEnergy = energyOf(q.Q)/outputs, energyOf(out)/outputs
	for side, energies := range [][]float64{rows.k, rows.v} {
		var energy float64
		for _, e := range energies[sinks:past] {
			energy += e
		}
		var cost [4]float64 // damage per unit of squared error at each width
		for bits := 3; bits >= 1; bits-- {
			e, err := c.probeAt(ctx, l, q, blocks, sinks, past, side, probeCoding(bits), out)
			if err != nil {
				return err
			}
			cost[bits] = e / outputs / (energy * probeCoding(bits).RelativeError())
		}
		if !(cost[3] > 0) || math.IsInf(cost[3], 0) {
			continue // nothing to measure: the formula stays
		}
		curve := &plan.Curve{}
		for bits := 3; bits >= 1; bits-- {
			curve[bits] = cost[bits] / cost[3]
			// Fewer bits never cost less, whatever the sample says.
			if bits < 3 {
				fewer, more := probeCoding(bits).RelativeError(),
					probeCoding(bits+1).RelativeError()
				curve[bits] = max(curve[bits], curve[bits+1]*more/fewer)
			}
		}
		if side == 0 {
			st.kSensitivity, st.kCurve = cost[3], curve
		} else {
			st.vSensitivity, st.vCurve = cost[3], curve
		}
	}
	return nil
}

// probeAt returns the squared error of the outputs with one side of the rows [sinks, past) coded.
func (c *compressor) probeAt(ctx context.Context, l *layerInput, q *backend.Queries,
	blocks []backend.Block, sinks, past, side int, coding quant.Coding,
	want []float32) (float64, error) {
	up := &uploader{be: c.be}
	defer up.free()
	coded := slices.Clone(blocks)
	var jobs []backend.EncodeJob
	for i := range coded {
		b := &coded[i]
		if b.Base < int64(sinks) || b.Base >= int64(past) {
			continue
		}
		t, from := l.k, &b.K
		if side == 1 {
			t, from = l.v, &b.V
		} else {
			b.Noise = noiseOf(coding, c.cfg.RowBias)
		}
		dst, err := up.alloc(int64(coding.PackedBytes(int(b.Rows), t.Dim())))
		if err != nil {
			return 0, err
		}
		to := backend.Side{Coding: coding, Data: dst, Seed: c.cfg.Seed}
		jobs = append(
			jobs,
			backend.EncodeJob{
				Src:   from.Data,
				DType: t.DType(),
				Rows:  int(b.Rows),
				Dim:   t.Dim(),
				Dst:   to,
			},
		)
		*from = to
	}
	if err := c.be.Encode(ctx, jobs); err != nil {
		return 0, err
	}
	got := make([]float32, len(want))
	if err := c.be.Attend(ctx, q, coded, got, nil); err != nil {
		return 0, err
	}
	var sum quality.Sum
	sum.Add(want, got)
	return sum.Err, nil
}

func energyOf(x []float32) (e float64) {
	for _, v := range x {
		e += float64(v) * float64(v)
	}
	return e
}

// rowStats are energies of the rows of a head.
type rowStats struct {
	k, v []float64 // |k|^2, |v|^2
	vDev []float64 // |v - mean v|^2
	// The rows themselves, in chunks of exactChunk where there are no cuts between.
	keys, values []quant.Rows
}

// exactChunk is the rows of an exact block.
const exactChunk = 4096

// exactHead uploads K and V of a head as exact blocks that start anew at each of the cuts, the
// first of which is 0 and the last the number of tokens. Rows that are not finite become zeros.
func (c *compressor) exactHead(up *uploader, l *layerInput, head int,
	cuts []int) (blocks []backend.Block, st rowStats, err error) {
	st = rowStats{
		k:    make([]float64, l.tokens),
		v:    make([]float64, l.tokens),
		vDev: make([]float64, l.tokens),
	}
	mean, dot := make([]float64, l.v.Dim()), make([]float64, 0, l.tokens)
	for first, cut := 0, 1; first < l.tokens; {
		for cuts[cut] <= first {
			cut++
		}
		n := min(exactChunk, cuts[cut]-first)
		b := backend.Block{
			Layer:  int32(l.number),
			KVHead: int32(head),
			Rows:   int32(n),
			Base:   int64(first),
		}
		k, err := c.exactSide(up, l.k, head, first, n, &b.K)
		if err != nil {
			return nil, st, err
		}
		v, err := c.exactSide(up, l.v, head, first, n, &b.V)
		if err != nil {
			return nil, st, err
		}
		for r := range n {
			st.k[first+r], st.v[first+r] = energyOf(k.Row(r)), energyOf(v.Row(r))
			for i, x := range v.Row(r) {
				mean[i] += float64(x) / float64(l.tokens)
			}
		}
		st.keys, st.values = append(st.keys, k), append(st.values, v)
		blocks = append(blocks, b)
		first += n
	}
	var mm float64
	for _, x := range mean {
		mm += x * x
	}
	for _, v := range st.values {
		for r := range v.Len() {
			var d float64
			for i, x := range v.Row(r) {
				d += float64(x) * mean[i]
			}
			dot = append(dot, d)
		}
	}
	for t := range st.vDev {
		st.vDev[t] = max(0, st.v[t]-2*dot[t]+mm)
	}
	return blocks, st, nil
}

// exactSide uploads rows of one head as they are, and returns them as float32.
func (c *compressor) exactSide(up *uploader, t tensor, head, first, n int,
	side *backend.Side) (quant.Rows, error) {
	x := quant.Rows{Dim: t.Dim(), Data: make([]float32, n*t.Dim())}
	raw := make([]byte, n*t.RowBytes())
	if err := c.in.src.ReadRows(t, head, first, n, raw); err != nil {
		return x, err
	}
	for r := range n {
		if row := raw[r*t.RowBytes() : (r+1)*t.RowBytes()]; !finiteRow(t.DType(), row) {
			clear(row)
		}
	}
	if err := quant.Decode(x, exact(t), raw, 0); err != nil {
		return x, err
	}
	span, err := up.upload(raw)
	*side = backend.Side{Coding: exact(t), Data: span}
	return x, err
}

// uploader keeps track of the buffers of a batch.
type uploader struct {
	be   backend.Backend
	bufs []backend.Buffer
}

func (u *uploader) upload(b []byte) (backend.Span, error) {
	s, err := u.alloc(int64(len(b)))
	if err != nil {
		return s, err
	}
	return s, s.Buf.Upload(0, b)
}

func (u *uploader) alloc(n int64) (backend.Span, error) {
	buf, err := u.be.Alloc(n)
	if err != nil {
		return backend.Span{}, err
	}
	u.bufs = append(u.bufs, buf)
	return backend.Span{Buf: buf, Len: n}, nil
}

// free gives all buffers back. Failing to free host memory is not an error a caller can act on.
func (u *uploader) free() {
	for _, b := range u.bufs {
		_ = b.Free()
	}
	u.bufs = nil
}
