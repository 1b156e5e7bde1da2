// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// deadChannel is the share of the largest E[q^2] or Var[k] of a head that a rotary pair counts for at least. Pairs of K
// that are scaled by 2^10 and 2^-10, and of q inversely, are 2^40 apart and alive.
const deadChannel = 1.0 / (1 << 48)

// deadPair is the share of the mean of E[q^2] Var[k] over the rotary pairs of a head that a pair has at least: one that
// queries of the sample do not ask for may be asked for later, and then its errors must not be boundless. The product
// does not depend on how a pair of K is scaled. Where the smaller of both was raised, pairs that are dead in both had
// a small scale and large errors: on a capture of Gemma 3 270M the error of attention at 2.25 bits was 0.075 % and not
// 0.065 %.
const deadPair = 1.0 / (1 << 8)

// mostScale bounds the logarithms to base 2 of a metric, whose mean is 0.
const mostScale = 13

// metricPays is the error of the attention of a probe's queries with a metric, over that without, up to which the
// metric is taken. In SmolLM2 heads between 0.5 and 0.7 raised the divergence at 2.25 bits by a tenth (three
// calibration texts), in Gemma 3 270M they lowered it by less.
const metricPays = 0.5

// metricBits is the width of K at which metrics are tried.
const metricBits = 2

// metricQueries is the number of positions whose queries a metric is fitted to.
const metricQueries = 256

// asked returns the energy of the queries of a head by rotary pair, at positions spread over [from, past): others
// than those of the probe that decides whether the metric pays. nil where there are none.
func (c *Pricer) asked(l *input.Layer, head, from, past int) ([]float64, error) {
	rope, dim, group := c.Geo.RopeOf(l.Number), l.K.Dim(), c.Geo.GQARatio()
	n := min(metricQueries, past-from)
	var sum float64
	energy, row := make([]float64, dim-rope.RotaryDim/2), make([]float32, dim)
	for i := range n {
		for g := range group {
			if err := l.Q.ReadF32(head*group+g, from+i*(past-from)/n, 1, row); err != nil {
				return nil, err
			}
			if !input.Finite(row) {
				continue
			}
			for d, x := range row {
				energy[rope.Pair(d)] += float64(float64(x) * float64(x))
			}
			sum += input.Energy(row)
		}
	}
	if !(sum > 0) || math.IsInf(sum, 0) {
		return nil, nil
	}
	return energy, nil
}

// left returns the energy of the rows of K that are coded without their means, or as they are where they have none, by
// rotary pair.
func left(rope quant.Rope, dim int, means []*input.Mean, keys []quant.Rows) []float64 {
	energy := make([]float64, dim-rope.RotaryDim/2)
	for i, m := range means {
		if m == nil {
			continue
		}
		for r := range keys[i].Len() {
			if m.Late[r] {
				continue
			}
			for d, x := range keys[i].Row(r) {
				e := float64(x)
				if m.Stored != nil {
					e -= float64(m.Value[d])
				}
				energy[rope.Pair(d)] += float64(e * e)
			}
		}
	}
	return energy
}

// metricOf returns the metric for queries and rows of these energies by rotary pair: a = (E[q^2] / Var[k])^(1/4).
// It minimises the noise that queries see of an error that is spread evenly over the components of a coded row,
// tr(A C A') tr(A^-T M A^-1) with C = Cov[k] and M = E[qq'] taken as diagonals. nil where all is dead.
func metricOf(rope quant.Rope, dim int, asked, left []float64) (*frame.Metric, error) {
	var mostAsked, mostLeft, logs float64
	pairs := len(asked)
	for p := range asked {
		mostAsked, mostLeft = max(mostAsked, asked[p]), max(mostLeft, left[p])
	}
	if !(mostAsked > 0) || !(mostLeft > 0) {
		return nil, nil
	}
	scales, least := make([]float64, pairs), 0.0
	for p := range scales {
		least += deadPair * (asked[p] / mostAsked) * (left[p] / mostLeft) / float64(pairs)
	}
	for p := range scales {
		q, k := max(asked[p]/mostAsked, deadChannel), max(left[p]/mostLeft, deadChannel)
		q = max(q, least/k)
		scales[p] = math.Pow(q/k, 0.25)
		logs += math.Log(scales[p]) / float64(pairs)
	}
	diag := make([]float32, dim)
	for d := range diag {
		// Steps of 9 % cost next to nothing, and are the same on every machine.
		eighths := math.Round(8 * (math.Log(scales[rope.Pair(d)]) - logs) / math.Ln2)
		a := float32(math.Exp2(min(max(eighths, -8*mostScale), 8*mostScale) / 8))
		diag[d] = quant.F16ToF32(quant.F32ToF16(a))
	}
	return frame.NewDiagonal(diag)
}

// chooseMetric gives the head a metric where the queries of the probe, which it is not fitted to, see less of the
// errors of K with it, and returns the means of the rows that the probe codes. Which rows are late is told in the
// metric, which is fitted without them: so it is fitted twice, at first to all rows.
func (c *Pricer) chooseMetric(l *input.Layer, head int, blocks []backend.Block, keys []quant.Rows, sinks, past int,
	first int, st *Head, q *backend.Queries, probe prober) ([]*input.Mean, error) {
	plain, err := c.means(blocks, keys, sinks, past, nil)
	if !c.Metric || plain == nil || err != nil {
		return plain, err
	}
	asked, err := c.asked(l, head, first, past)
	if asked == nil || err != nil {
		return plain, err
	}
	rope := c.Geo.RopeOf(l.Number)
	energy, err := c.spread(blocks, keys, sinks, past, rope)
	if err != nil {
		return nil, err
	}
	var m *frame.Metric
	means := plain
	for range 2 {
		if m, err = metricOf(rope, q.HeadDim, asked, energy); m == nil || err != nil {
			return plain, err
		}
		if means, err = c.means(blocks, keys, sinks, past, m); err != nil {
			return nil, err
		}
		energy = left(rope, q.HeadDim, means, keys)
	}
	without, err := probe(plain, nil, 0, metricBits)
	if err != nil {
		return nil, err
	}
	with, err := probe(means, m, 0, metricBits)
	if err != nil || !(with <= metricPays*without) {
		return plain, err
	}
	st.setMetric(m, q)
	return means, nil
}

// spread returns the energy of all rows of K that a probe codes about the means of their blocks, by rotary pair.
func (c *Pricer) spread(blocks []backend.Block, keys []quant.Rows, sinks, past int, rope quant.Rope) ([]float64, error) {
	means := make([]*input.Mean, len(blocks))
	for i := range blocks {
		if blocks[i].Base < int64(sinks) || blocks[i].Base >= int64(past) {
			continue
		}
		var err error
		if means[i], err = input.MeanOfAll(keys[i], alive(keys[i])); err != nil {
			return nil, err
		}
	}
	return left(rope, keys[0].Dim, means, keys), nil
}

// setMetric makes m, or nil, the metric of the head, whose queries are those of a probe.
func (s *Head) setMetric(m *frame.Metric, q *backend.Queries) {
	if s.Metric, s.MetricEnergy = m, 0; m == nil {
		return
	}
	dim := q.HeadDim
	turned := make([]float32, len(q.Q))
	for at := 0; at < len(q.Q); at += dim {
		m.Query(turned[at:at+dim], q.Q[at:at+dim])
	}
	s.MetricEnergy = input.Energy(turned) / float64(len(q.Q)/dim)
}

// KEnergy returns the energy of a row of K as it is coded: without the mean m, unless that is nil, and in the metric
// if there is one.
func (s *Head) KEnergy(row []float32, m *input.Mean) float64 {
	if m == nil {
		return input.EnergyIn(s.Metric, row, nil)
	}
	return input.EnergyIn(s.Metric, row, m.Value)
}

// ScoreEnergy returns what the scores of queries differ by between two rows of K, squared, but for the divisor of the
// scores: |q|^2 |x - y|^2, in the coordinates of the metric where there is one.
func (s *Head) ScoreEnergy(x, y []float32) float64 {
	if s.Metric == nil {
		return s.QueryEnergy * input.Distance(x, y)
	}
	return s.MetricEnergy * input.EnergyIn(s.Metric, x, y)
}
