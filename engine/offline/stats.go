// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/engine/quality"
	"github.com/kvist-project/kvist/quant"
)

// headStats is what an error costs in one KV head, measured on the capture's own last queries, or by what
// stands in for them.
type headStats struct {
	by pricedBy
	// Damage per unit of squared error in a row of K or V: squared error of the attention output,
	// mean over queries and query heads.
	kSensitivity, vSensitivity float64
	kCurve, vCurve             *plan.Curve
	queryEnergy                float64   // mean |q|^2
	outEnergy                  float64   // mean |attention output|^2
	vDev                       float64   // mean |v - mean v|^2, long rows held
	meanOut                    []float64 // [head_dim_v] of V weighed by the attention it gets
	ratios                     []float64 // of the levels, as compressor.specs; nil: FULL only
	// kShare is the share of its energy that a row of K is priced at; 0: all of it.
	kShare float64
}

// queryBudget bounds the queries that calibrate a head: 64, fewer over long contexts, so that the
// cost stays that of a few attention passes. With 32, divergence of archives was 3 % higher over four
// calibration texts and 9 % over eight others, at 1.05 to 2 bits.
func queryBudget(tokens int) int { return min(tokens, max(4, min(64, 1<<17/max(1, tokens)))) }

// pastOf returns the token from which on queries play the future: those of the last quarter.
func pastOf(l *layerInput) int {
	return l.tokens - max(queryBudget(l.tokens), l.tokens/4)
}

// survey measures the heads of a layer, whose weights are known, and prices all their blocks.
func (c *compressor) survey(ctx context.Context, l *layerInput) ([]part, error) {
	stats, w := make([]headStats, l.heads), &c.weights[l.index]
	var out float64
	for h := range stats {
		stats[h] = headStats{kSensitivity: 1, vSensitivity: 1, queryEnergy: 1, outEnergy: 1}
		if l.hasV {
			var err error
			if stats[h], err = c.calibrate(ctx, l, h, w.past[h]); err != nil {
				return nil, err
			}
			stats[h].boundOutput()
		}
		out += stats[h].outEnergy / float64(l.heads)
	}
	if !(out > 0) {
		out = 1 // a layer without any energy costs nothing; keep the divisions defined
	}
	c.stats[l.index] = stats
	var parts []part
	for h := range l.heads {
		// Errors are relative to the output of the whole layer, as the future-attention error is: a
		// head that attends to a sink only, and puts out next to nothing, cannot claim bytes for it.
		stats[h].outEnergy = out
		view := c.headOf(l, h, w.now[h], l.tokens)
		for s := range l.segments() {
			p, err := c.buildPart(view, s)
			if err != nil {
				return nil, err
			}
			parts = append(parts, p)
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
	}
	return parts, nil
}

// headOf returns the view of a head whose tokens before limit are planned.
func (c *compressor) headOf(l *layerInput, head int, w []float32, limit int) *headOf {
	h := &headOf{l: l, head: head, st: &c.stats[l.index][head], w: w, limit: limit}
	h.kFactor, h.vFactor = c.factors(l, head)
	h.share = 1 / float64(c.in.heads)
	if !l.hasV { // the mean over rows
		h.share = 1 / (float64(max(1, l.tokens)) * float64(c.in.heads))
	}
	return h
}

// calibrate measures what errors cost in a head: on its last queries, or where they tell nothing by what
// stands in for them.
//
// w are the weights of the tokens before pastOf, as they were known there; nil: all the same.
func (c *compressor) calibrate(ctx context.Context, l *layerInput, head int,
	w []float32) (headStats, error) {
	up := &uploader{be: c.be}
	defer up.free()
	past := pastOf(l)
	sinks := min(c.cfg.Sinks, past)
	blocks, rows, err := c.exactHead(up, l, head, []int{0, sinks, past, l.tokens})
	if err != nil {
		return headStats{}, err
	}
	st := headStats{meanOut: rows.meanValue(w), by: c.canProbe(l, past, sinks)}
	st.vDev, _ = heldMean(deviations(rows.values, rows.v))
	if l.hasQ {
		q, err := c.lastQueries(l, head, past, len(blocks))
		if err != nil {
			return st, err
		}
		if q == nil {
			st.by = byKeysBad
		}
		if st.by == byQueries {
			if err := c.probe(ctx, l, head, q, blocks, sinks, past, rows, w, &st); err != nil {
				return st, err
			}
		}
	}
	if st.kSensitivity > 0 && st.vSensitivity > 0 {
		return st, nil
	}
	err = c.standIn(l, &rows, &st)
	return st, err
}

// meanShare bounds the energy of outputs against the variation of V. Where V is a large constant and a little
// noise, errors of the noise seem to cost nothing, and the noise is what tokens tell apart.
const meanShare = 16

func (s *headStats) boundOutput() {
	if s.vDev > 0 {
		s.outEnergy = min(s.outEnergy, meanShare*s.vDev)
	}
}

// lastQueries samples the queries from position past on, which attend to nb blocks. Those that are not
// finite are left out; nil where no other is, or all others are zeros.
func (c *compressor) lastQueries(l *layerInput, head, past, nb int) (*backend.Queries, error) {
	n, group, dim := queryBudget(l.tokens), c.in.geo.GQARatio(), l.k.Dim()
	q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: l.v.Dim(), Scale: float32(1 / math.Sqrt(float64(dim))),
		Q: make([]float32, n*group*dim), BlockPtr: []int32{0}}
	for i := range n {
		at := past + i*(l.tokens-past)/n
		rows := q.Q[len(q.Pos)*group*dim:][:group*dim]
		for g := range group {
			if err := c.in.src.ReadRowsF32(l.q, head*group+g, at, 1, rows[g*dim:(g+1)*dim]); err != nil {
				return nil, err
			}
		}
		if !finiteValues(rows) {
			continue
		}
		q.Pos = append(q.Pos, int64(at))
		for b := range nb {
			q.BlockIdx = append(q.BlockIdx, int32(b))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	if q.Q = q.Q[:len(q.Pos)*group*dim]; energyOf(q.Q) == 0 {
		return nil, nil
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

// leastProbe is the least width that probes look at. Steps of an archive are made of the cost of
// small errors: it has no use for the others.
func (c *compressor) leastProbe() int {
	if c.cfg.Form == FormArchive {
		return 3
	}
	return 1
}

// probe plays the future: queries of the last quarter attend to the rows before it, coded at 1, 2
// and 3 bits on one side and exact on the other, and what that does to their outputs is what
// errors in this head cost. It sees what no formula over attention probabilities does: how
// errors of rows that are alike add up (equal tokens have equal V in the first layer, and equal
// errors), and how the softmax bends large ones.
func (c *compressor) probe(ctx context.Context, l *layerInput, head int, q *backend.Queries,
	blocks []backend.Block, sinks, past int, rows rowStats, w []float32, st *headStats) error {
	outputs := float64(q.Len() * q.Group)
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := c.be.Attend(ctx, q, blocks, out, nil); err != nil {
		return err
	}
	if !finiteValues(out) { // scores are beyond the range of float32
		st.by = byKeysBad
		return nil
	}
	st.queryEnergy, st.outEnergy = energyOf(q.Q)/outputs, energyOf(out)/outputs
	for side, energies := range [][]float64{rows.k, rows.v} {
		var energy float64
		for _, e := range energies[sinks:past] {
			energy += e
		}
		var cost [4]float64 // damage per unit of squared error at each width
		for bits := 3; bits >= c.leastProbe(); bits-- {
			e, err := c.probed(ctx, l, q, blocks, sinks, past, side, probeCoding(bits), out)
			if err != nil {
				return err
			}
			cost[bits] = e / outputs / (energy * probeCoding(bits).RelativeError())
		}
		if !(cost[3] > 0) || math.IsInf(cost[3], 0) {
			continue // nothing to measure: the formula stays
		}
		curve := &plan.Curve{}
		for bits := 3; bits >= c.leastProbe(); bits-- {
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
	if len(c.specs) == 0 || w == nil || st.vCurve == nil {
		return nil
	}
	var tail []backend.Block
	for _, b := range blocks {
		if b.Base >= int64(past) {
			tail = append(tail, b)
		}
	}
	view := &headOf{l: l, head: head, st: st, w: w, limit: past, share: 1, kFactor: 1, vFactor: 1}
	var err error
	st.ratios, err = c.probedLevels(ctx, view, q, tail, out)
	return err
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
			b.Noise = noiseOf(coding, c.rowBias())
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

// energyOf is the squared length, in four sums: one would wait for itself.
func energyOf(x []float32) float64 {
	var a, b, c, d float64
	for ; len(x) >= 4; x = x[4:] {
		v := (*[4]float32)(x)
		a += float64(float64(v[0]) * float64(v[0]))
		b += float64(float64(v[1]) * float64(v[1]))
		c += float64(float64(v[2]) * float64(v[2]))
		d += float64(float64(v[3]) * float64(v[3]))
	}
	for _, v := range x {
		a += float64(float64(v) * float64(v))
	}
	return (a + b) + (c + d)
}

// distance is the squared distance of two rows, likewise.
func distance(x, y []float32) float64 {
	y = y[:len(x)]
	var a, b, c, d float64
	for ; len(x) >= 4; x, y = x[4:], y[4:] {
		v, w := (*[4]float32)(x), (*[4]float32)(y)
		p, q, r, s := float64(v[0]-w[0]), float64(v[1]-w[1]), float64(v[2]-w[2]), float64(v[3]-w[3])
		a, b = a+float64(p*p), b+float64(q*q)
		c, d = c+float64(r*r), d+float64(s*s)
	}
	for i, v := range x {
		p := float64(v - y[i])
		a += float64(p * p)
	}
	return (a + b) + (c + d)
}

// rowStats are energies of the rows of a head.
type rowStats struct {
	k, v []float64 // |k|^2, |v|^2
	// The rows themselves, in chunks of exactChunk where there are no cuts between.
	keys, values []quant.Rows
}

// meanValue returns the mean of V weighed by the weights of the first tokens; nil: all the same.
func (s *rowStats) meanValue(w []float32) []float64 {
	if len(s.values) == 0 {
		return nil
	}
	mean, sum, at := make([]float64, s.values[0].Dim), 0.0, 0
	for _, v := range s.values {
		for r := range v.Len() {
			weight := 1.0
			if w != nil {
				if at >= len(w) {
					break
				}
				weight = float64(w[at])
			}
			for i, x := range v.Row(r) {
				mean[i] += weight * float64(x)
			}
			sum += weight
			at++
		}
	}
	for i := range mean {
		if sum > 0 {
			mean[i] /= sum
		}
	}
	return mean
}

// exactChunk is the rows of an exact block.
const exactChunk = 4096

// exactHead uploads K and V of a head as exact blocks that start anew at each of the cuts, the
// first of which is 0 and the last the number of tokens wanted. Rows that are not finite become zeros.
func (c *compressor) exactHead(up *uploader, l *layerInput, head int,
	cuts []int) (blocks []backend.Block, st rowStats, err error) {
	tokens := cuts[len(cuts)-1]
	st = rowStats{k: make([]float64, tokens), v: make([]float64, tokens)}
	for first, cut := 0, 1; first < tokens; {
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
		}
		st.keys, st.values = append(st.keys, k), append(st.values, v)
		blocks = append(blocks, b)
		first += n
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
	if err := decodeExact(x, t, raw); err != nil {
		return x, err
	}
	if !finiteValues(x.Data) {
		for r := range n {
			if row := x.Row(r); !finiteValues(row) {
				clear(row)
				clear(raw[r*t.RowBytes() : (r+1)*t.RowBytes()])
			}
		}
	}
	if calm(x) {
		if err := quant.Encode(raw, exact(t), x, 0); err != nil {
			return x, err
		}
	}
	span, err := up.upload(raw)
	*side = backend.Side{Coding: exact(t), Data: span}
	return x, err
}

// decodeExact decodes raw rows of t.
func decodeExact(x quant.Rows, t tensor, raw []byte) error {
	if t.DType() == quant.Float16 {
		half.Widen(x.Data, raw)
		return nil
	}
	return quant.Decode(x, exact(t), raw, 0)
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
	err = s.Buf.Upload(0, b)
	return s, err
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
