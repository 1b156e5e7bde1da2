// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/memo"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Head is what an error costs in one KV head, measured on the capture's own last queries, or by what
// stands in for them.
type Head struct {
	By PricedBy
	// Damage per unit of squared error in a row of K or V: squared error of the attention output,
	// mean over queries and query heads.
	KSensitivity, VSensitivity float64
	KCurve, VCurve             *plan.Curve
	QueryEnergy                float64   // mean |q|^2
	OutEnergy                  float64   // mean |attention output|^2
	vDev                       float64   // mean |v - mean v|^2, long rows held
	MeanOut                    []float64 // [head_dim_v] of V weighed by the attention it gets
	Ratios                     []float64 // of the levels, as compressor.specs; nil: FULL only
	// kShare is the share of its energy that a row of K is priced at; 0: all of it.
	KShare float64
	// Metric is that of coded rows of K, or nil, and MetricEnergy the mean |q|^2 in it. K's prices are per unit of
	// squared error in the metric.
	Metric       *frame.Metric
	MetricEnergy float64
}

// Pricer measures what errors cost in the heads of layers, through a backend.
type Pricer struct {
	Backend   backend.Backend
	Geo       quant.Geometry
	Positions func(first int, dst []int64) error
	Sinks     int  // tokens that are kept finely
	Small     bool // errors are small ones, as those of an archive
	Mean      bool // K is coded without the means of segments (input.MeanOf)
	Metric    bool // K without its mean is coded in a metric, where one pays
	RowBias   bool // what is coded is attended to with the row bias
	Seed      uint64
	Memo      *memo.Memo
}

// probed is a head as its own last queries see it: they attend to the rows before them.
type Probed struct {
	Layer     *input.Layer
	Head      int
	Queries   *backend.Queries
	Want      []float32       // outputs over the exact rows
	Tail      []backend.Block // exact rows from l.Past on
	Weights   []float32       // weights of the rows before it; nil: all the same
	Shortened bool            // some rows stood apart, and want is of shorter ones
}

// Calibrate measures what errors cost in a head: on its last queries, or where they tell nothing by what
// stands in for them.
//
// w are the weights of the tokens before l.Past, as they were known there; nil: all the same. then, unless nil,
// is called with what was probed, if anything was.
func (c *Pricer) Calibrate(ctx context.Context, l *input.Layer, head int,
	w []float32, then func(context.Context, *Probed, *Head) error) (Head, error) {
	st, err := c.calibrated(ctx, l, head, w, then)
	st.boundOutput()
	return st, err
}

func (c *Pricer) calibrated(ctx context.Context, l *input.Layer, head int,
	w []float32, then func(context.Context, *Probed, *Head) error) (Head, error) {
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	past := input.FutureFrom(&c.Geo, l)
	outside := int(c.Geo.Outside(l.Number, int64(past))) // by the queries from past on
	sinks := min(max(c.Sinks, outside), past)
	blocks, rows, err := input.LoadHead(up, l, head, c.cuts(l, sinks, past), true)
	if err != nil {
		return Head{}, err
	}
	keys := rows.Keys // one of each block
	rows = rows.From(outside)
	seen := w
	if w != nil {
		seen = w[outside:]
	}
	st := Head{MeanOut: rows.MeanValue(seen), By: c.canProbe(l, past, sinks)}
	st.vDev, _ = heldMean(deviations(rows.Values, rows.VEnergy))
	if l.HasQ {
		q, err := c.LastQueries(l, head, past, len(blocks))
		if err != nil {
			return st, err
		}
		if q == nil {
			st.By = ByKeysBad
		}
		if st.By == byQueries {
			if err := c.probe(ctx, l, head, q, blocks, keys, sinks, past, rows, w, &st, then); err != nil {
				return st, err
			}
		}
	}
	if st.KSensitivity > 0 && st.VSensitivity > 0 {
		return st, nil
	}
	err = c.standIn(l, &rows, &st)
	return st, err
}

// cuts returns where the blocks of a head start for a probe: rows that share a mean are one block.
func (c *Pricer) cuts(l *input.Layer, sinks, past int) []int {
	cuts := []int{0, sinks}
	if c.Mean {
		for at := (sinks/l.Segment + 1) * l.Segment; at < past; at += l.Segment {
			cuts = append(cuts, at)
		}
	}
	return append(cuts, past, l.Tokens)
}

// meanShare bounds the energy of outputs against the variation of V. Where V is a large constant and a little
// noise, errors of the noise seem to cost nothing, and the noise is what tokens tell apart.
const meanShare = 16

func (s *Head) boundOutput() {
	if s.vDev > 0 {
		s.OutEnergy = min(s.OutEnergy, meanShare*s.vDev)
	}
}

// lastQueries samples the queries from position past on, which attend to nb blocks. Those that are not
// finite are left out; nil where no other is, or all others are zeros.
func (c *Pricer) LastQueries(l *input.Layer, head, past, nb int) (*backend.Queries, error) {
	n, group, dim := min(input.QueryBudget(l.Tokens), l.Tokens-past), c.Geo.GQARatio(), l.K.Dim()
	q := input.Attend(&backend.Queries{Group: group, HeadDim: dim, HeadDimV: l.V.Dim(),
		Q: make([]float32, n*group*dim), BlockPtr: []int32{0}}, &c.Geo, l.Number)
	for i := range n {
		at := past + i*(l.Tokens-past)/n
		rows := q.Q[len(q.Pos)*group*dim:][:group*dim]
		for g := range group {
			if err := l.Q.ReadF32(head*group+g, at, 1, rows[g*dim:(g+1)*dim]); err != nil {
				return nil, err
			}
		}
		if !input.Finite(rows) {
			continue
		}
		q.Pos = append(q.Pos, int64(at))
		for b := range nb {
			q.BlockIdx = append(q.BlockIdx, int32(b))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	if q.Q = q.Q[:len(q.Pos)*group*dim]; input.Energy(q.Q) == 0 {
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
func (c *Pricer) leastProbe() int {
	if c.Small {
		return 3
	}
	return 1
}

// probe plays the future: queries of the last quarter attend to the rows before it, coded at 1, 2
// and 3 bits on one side and exact on the other, and what that does to their outputs is what
// errors in this head cost. It sees what no formula over attention probabilities does: how
// errors of rows that are alike add up (equal tokens have equal V in the first layer, and equal
// errors), and how the softmax bends large ones.
func (c *Pricer) probe(ctx context.Context, l *input.Layer, head int, q *backend.Queries,
	blocks []backend.Block, keys []quant.Rows, sinks, past int, rows input.HeadRows, w []float32, st *Head,
	then func(context.Context, *Probed, *Head) error) error {
	outputs := float64(q.Len() * q.Group)
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := backend.AttendBlocks(ctx, c.Backend, q, nil, blocks, backend.Attention{Out: out}); err != nil {
		return err
	}
	if !input.Finite(out) { // scores are beyond the range of float32
		st.By = ByKeysBad
		return nil
	}
	st.QueryEnergy, st.OutEnergy = input.Energy(q.Q)/outputs, input.Energy(out)/outputs
	probe := func(means []*input.Mean, metric *frame.Metric, side, bits int) (float64, error) {
		return c.probedAt(ctx, l, q, blocks, keys, means, metric, sinks, past, side, probeCoding(bits), out)
	}
	means, err := c.chooseMetric(l, head, blocks, keys, sinks, past, rows.First, st, q, probe)
	if err != nil {
		return err
	}
	for side, energies := range [][]float64{rows.KEnergy, rows.VEnergy} {
		var energy float64
		for _, e := range energies[sinks-rows.First : past-rows.First] {
			energy += e
		}
		if side == 0 && (st.Metric != nil || hasMean(means)) {
			energy = leftOf(st, means, blocks, keys, w, rows.First)
		}
		var cost [4]float64 // damage per unit of squared error at each width
		for bits := 3; bits >= c.leastProbe(); bits-- {
			e, err := probe(means, st.Metric, side, bits)
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
			st.KSensitivity, st.KCurve = cost[3], curve
		} else {
			st.VSensitivity, st.VCurve = cost[3], curve
		}
	}
	if then == nil {
		return nil
	}
	p := &Probed{Layer: l, Head: head, Queries: q, Want: out, Weights: w, Shortened: rows.Shortened}
	for _, b := range blocks {
		if b.Base >= int64(past) {
			p.Tail = append(p.Tail, b)
		}
	}
	return then(ctx, p, st)
}

// prober returns the squared error of the outputs with one side coded at a width, K without its means and in a metric.
type prober func(means []*input.Mean, metric *frame.Metric, side, bits int) (float64, error)

// listing returns queries that attend to n blocks each.
func listing(q *backend.Queries, n int) *backend.Queries {
	all := *q
	all.BlockPtr, all.BlockIdx = []int32{0}, nil
	for range q.Len() {
		for b := range n {
			all.BlockIdx = append(all.BlockIdx, int32(b))
		}
		all.BlockPtr = append(all.BlockPtr, int32(len(all.BlockIdx)))
	}
	return &all
}

// probeAt returns the squared error of the outputs with one side of the rows [sinks, past) coded.
func (c *Pricer) probeAt(ctx context.Context, l *input.Layer, q *backend.Queries,
	exact []backend.Block, keys []quant.Rows, means []*input.Mean, metric *frame.Metric, sinks, past, side int,
	coding quant.Coding, want []float32) (float64, error) {
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	coded := slices.Clone(exact)
	var jobs []backend.EncodeJob
	for i := range coded {
		b := &coded[i]
		if b.Base < int64(sinks) || b.Base >= int64(past) {
			continue
		}
		if side == 0 && (metric != nil || means != nil && means[i].Stored != nil) {
			late, more, err := c.centered(up, l, b, keys[i], means[i], metric, coding)
			if err != nil {
				return 0, err
			}
			coded, jobs = append(coded, late...), append(jobs, more...)
			continue
		}
		t, from := l.K, &b.K
		if side == 1 {
			t, from = l.V, &b.V
		} else {
			b.Noise = blocks.Noise(coding, c.RowBias)
		}
		dst, err := up.Alloc(int64(coding.PackedBytes(int(b.Rows), t.Dim())))
		if err != nil {
			return 0, err
		}
		to := backend.Side{Coding: coding, Data: dst, Seed: c.Seed}
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
	if err := c.Backend.Encode(ctx, jobs); err != nil {
		return 0, err
	}
	got := make([]float32, len(want))
	if err := backend.AttendBlocks(ctx, c.Backend, listing(q, len(coded)), nil, coded, backend.Attention{Out: got}); err != nil {
		return 0, err
	}
	var sum Sum
	sum.Add(want, got)
	return sum.Err, nil
}

// probeKey is all that a probe depends on, beside capture and backend.
type probeKey struct {
	layer, head, sinks, side int
	coding                   quant.Coding
	seed                     uint64
	rowBias, mean, metric    bool
}

// probedAt is probeAt, or what it gave before.
func (c *Pricer) probedAt(ctx context.Context, l *input.Layer, q *backend.Queries,
	blocks []backend.Block, keys []quant.Rows, means []*input.Mean, metric *frame.Metric, sinks, past, side int,
	coding quant.Coding, want []float32) (float64, error) {
	key := probeKey{l.Index, int(blocks[0].KVHead), sinks, side, coding, c.Seed, c.RowBias, c.Mean, metric != nil}
	return memo.Of(c.Memo, key, func() (float64, error) {
		return c.probeAt(ctx, l, q, blocks, keys, means, metric, sinks, past, side, coding, want)
	})
}
