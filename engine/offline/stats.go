// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/memo"
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

// pricer measures what errors cost in the heads of layers, through a backend.
type pricer struct {
	be        backend.Backend
	geo       quant.Geometry
	positions func(first int, dst []int64) error
	sinks     int  // tokens that are kept finely
	small     bool // errors are small ones, as those of an archive
	rowBias   bool // what is coded is attended to with the row bias
	seed      uint64
	memo      *memo.Memo
}

// probed is a head as its own last queries see it: they attend to the rows before them.
type probed struct {
	l         *Layer
	head      int
	q         *backend.Queries
	want      []float32       // outputs over the exact rows
	tail      []backend.Block // exact rows from l.Past on
	w         []float32       // weights of the rows before it; nil: all the same
	shortened bool            // some rows stood apart, and want is of shorter ones
}

// calibrate measures what errors cost in a head: on its last queries, or where they tell nothing by what
// stands in for them.
//
// w are the weights of the tokens before l.Past, as they were known there; nil: all the same. then, unless nil,
// is called with what was probed, if anything was.
func (c *pricer) calibrate(ctx context.Context, l *Layer, head int,
	w []float32, then func(context.Context, *probed, *headStats) error) (headStats, error) {
	st, err := c.calibrated(ctx, l, head, w, then)
	st.boundOutput()
	return st, err
}

func (c *pricer) calibrated(ctx context.Context, l *Layer, head int,
	w []float32, then func(context.Context, *probed, *headStats) error) (headStats, error) {
	up := &uploader{be: c.be}
	defer up.free()
	past := l.Past()
	sinks := min(c.sinks, past)
	blocks, rows, err := exactHead(up, l, head, []int{0, sinks, past, l.Tokens}, true)
	if err != nil {
		return headStats{}, err
	}
	st := headStats{meanOut: rows.meanValue(w), by: c.canProbe(l, past, sinks)}
	st.vDev, _ = heldMean(deviations(rows.values, rows.v))
	if l.HasQ {
		q, err := c.lastQueries(l, head, past, len(blocks))
		if err != nil {
			return st, err
		}
		if q == nil {
			st.by = byKeysBad
		}
		if st.by == byQueries {
			if err := c.probe(ctx, l, head, q, blocks, sinks, past, rows, w, &st, then); err != nil {
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
func (c *pricer) lastQueries(l *Layer, head, past, nb int) (*backend.Queries, error) {
	n, group, dim := QueryBudget(l.Tokens), c.geo.GQARatio(), l.K.Dim()
	q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: l.V.Dim(), Scale: float32(1 / math.Sqrt(float64(dim))),
		Q: make([]float32, n*group*dim), BlockPtr: []int32{0}}
	for i := range n {
		at := past + i*(l.Tokens-past)/n
		rows := q.Q[len(q.Pos)*group*dim:][:group*dim]
		for g := range group {
			if err := l.Q.ReadF32(head*group+g, at, 1, rows[g*dim:(g+1)*dim]); err != nil {
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

// leastProbe is the least width that probes look at. Who only asks for the cost of small errors has no use
// for the others.
func (c *pricer) leastProbe() int {
	if c.small {
		return 3
	}
	return 1
}

// probe plays the future: queries of the last quarter attend to the rows before it, coded at 1, 2
// and 3 bits on one side and exact on the other, and what that does to their outputs is what
// errors in this head cost. It sees what no formula over attention probabilities does: how
// errors of rows that are alike add up (equal tokens have equal V in the first layer, and equal
// errors), and how the softmax bends large ones.
func (c *pricer) probe(ctx context.Context, l *Layer, head int, q *backend.Queries,
	blocks []backend.Block, sinks, past int, rows rowStats, w []float32, st *headStats,
	then func(context.Context, *probed, *headStats) error) error {
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
			e, err := c.probedAt(ctx, l, q, blocks, sinks, past, side, probeCoding(bits), out)
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
	if then == nil {
		return nil
	}
	p := &probed{l: l, head: head, q: q, want: out, w: w, shortened: rows.shortened}
	for _, b := range blocks {
		if b.Base >= int64(past) {
			p.tail = append(p.tail, b)
		}
	}
	return then(ctx, p, st)
}

// probeAt returns the squared error of the outputs with one side of the rows [sinks, past) coded.
func (c *pricer) probeAt(ctx context.Context, l *Layer, q *backend.Queries,
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
		t, from := l.K, &b.K
		if side == 1 {
			t, from = l.V, &b.V
		} else {
			b.Noise = noiseOf(coding, c.rowBias)
		}
		dst, err := up.alloc(int64(coding.PackedBytes(int(b.Rows), t.Dim())))
		if err != nil {
			return 0, err
		}
		to := backend.Side{Coding: coding, Data: dst, Seed: c.seed}
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

// probeKey is all that a probe depends on, beside capture and backend.
type probeKey struct {
	layer, head, sinks, side int
	coding                   quant.Coding
	seed                     uint64
	rowBias                  bool
}

// probedAt is probeAt, or what it gave before.
func (c *pricer) probedAt(ctx context.Context, l *Layer, q *backend.Queries,
	blocks []backend.Block, sinks, past, side int, coding quant.Coding,
	want []float32) (float64, error) {
	key := probeKey{l.Index, int(blocks[0].KVHead), sinks, side, coding, c.seed, c.rowBias}
	return memo.Of(c.memo, key, func() (float64, error) {
		return c.probeAt(ctx, l, q, blocks, sinks, past, side, coding, want)
	})
}
