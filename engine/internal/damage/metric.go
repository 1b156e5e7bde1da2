// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// deadChannel is the share of the largest E[q^2] or Var[k] of a head that a rotary pair counts for at least: one
// that is dead in the sample may live later.
const deadChannel = 1.0 / (1 << 24)

// mostScale bounds the logarithms to base 2 of a metric, whose mean is 0.
const mostScale = 13

// metricPays is the noise that queries see with a metric, over that without, up to which it is taken.
const metricPays = 0.5

// fitMetric finds the metric of a head: a = (E[q^2] / Var[k])^(1/4) for each rotary pair, of the queries of a probe
// and the rows of K that are coded without their means. It minimises the noise that queries see of an error that is
// spread evenly over the components of a coded row, tr(A C A') tr(A^-T M A^-1) with C = Cov[k] and M = E[qq'] taken
// as diagonals. That noise falls to (sum of sqrt(E[q^2] Var[k]))^2 / (sum of E[q^2] * sum of Var[k]) of what it was;
// where it does not fall by half there is no metric.
func (s *Head) fitMetric(rope quant.Rope, q *backend.Queries, means []*input.Mean, keys []quant.Rows) error {
	dim := q.HeadDim
	asked, left := make([]float64, dim), make([]float64, dim)
	for at, x := range q.Q {
		asked[rope.Pair(at%dim)] += float64(float64(x) * float64(x))
	}
	for i, m := range means {
		if m == nil || m.Stored == nil {
			continue
		}
		for r := range keys[i].Len() {
			if m.Late[r] {
				continue
			}
			for d, x := range keys[i].Row(r) {
				e := float64(x) - float64(m.Value[d])
				left[rope.Pair(d)] += float64(e * e)
			}
		}
	}
	pairs := dim - rope.RotaryDim/2
	asked, left = asked[:pairs], left[:pairs]
	var both, sumAsked, sumLeft, mostAsked, mostLeft, logs float64
	for p := range asked {
		size := 1.0 // components of the pair
		if p < rope.RotaryDim/2 {
			size = 2
		}
		both += math.Sqrt(asked[p] * left[p])
		sumAsked, sumLeft = sumAsked+asked[p], sumLeft+left[p]
		asked[p], left[p] = asked[p]/size, left[p]/size
		mostAsked, mostLeft = max(mostAsked, asked[p]), max(mostLeft, left[p])
	}
	if !(both > 0) || both/sumAsked*both/sumLeft > metricPays {
		return nil
	}
	scales := make([]float64, pairs)
	for p := range scales {
		scales[p] = math.Pow(max(asked[p], deadChannel*mostAsked)/max(left[p], deadChannel*mostLeft), 0.25)
		logs += math.Log(scales[p]) / float64(pairs)
	}
	diag := make([]float32, dim)
	s.MetricGain = 0
	for d := range diag {
		// Steps of 9 % cost next to nothing, and are the same on every machine.
		eighths := math.Round(8 * (math.Log(scales[rope.Pair(d)]) - logs) / math.Ln2)
		a := float32(math.Exp2(min(max(eighths, -8*mostScale), 8*mostScale) / 8))
		diag[d] = quant.F16ToF32(quant.F32ToF16(a))
		s.MetricGain += float64(diag[d]) * float64(diag[d]) / float64(dim)
	}
	m, err := quant.NewDiagonal(diag)
	if err != nil {
		return err
	}
	s.Metric = m
	turned := make([]float32, len(q.Q))
	for at := 0; at < len(q.Q); at += dim {
		m.Query(turned[at:at+dim], q.Q[at:at+dim])
	}
	s.MetricEnergy = input.Energy(turned) / float64(len(q.Q)/dim)
	return nil
}

// KEnergy returns the energy of a row of K as it is coded: without the mean m and in the metric, or as it is where m
// is nil, in the unit of the head's prices.
func (s *Head) KEnergy(row []float32, m *input.Mean) float64 {
	switch {
	case m == nil && s.Metric != nil:
		return s.MetricGain * input.Energy(row)
	case m == nil:
		return input.Energy(row)
	case s.Metric == nil:
		return input.Distance(row, m.Value)
	}
	var sum float64
	for d, a := range s.Metric.Diagonal() {
		e := (float64(row[d]) - float64(m.Value[d])) * float64(a)
		sum += float64(e * e)
	}
	return sum
}
