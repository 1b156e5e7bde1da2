// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// deadChannel is the share of the largest E[q^2] or Var[k] of a head that a rotary pair counts for at least.
const deadChannel = 1.0 / (1 << 24)

// deadPair is the share of the mean of E[q^2] Var[k] over the rotary pairs of a head that a pair has at least: one that
// is dead in the sample, in queries or rows, may live later, and then its errors must not be boundless.
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

// left returns the energy of the rows of K that are coded without their means, by rotary pair.
func left(rope quant.Rope, dim int, means []*input.Mean, keys []quant.Rows) []float64 {
	energy := make([]float64, dim-rope.RotaryDim/2)
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
		if q < k {
			q = max(q, least/k)
		} else {
			k = max(k, least/q)
		}
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
// errors of K with it.
func (c *Pricer) chooseMetric(l *input.Layer, head int, q *backend.Queries, means []*input.Mean, keys []quant.Rows,
	first, past int, st *Head, probe func(*frame.Metric, int, int) (float64, error)) error {
	rope := c.Geo.RopeOf(l.Number)
	asked, err := c.asked(l, head, first, past)
	if asked == nil || err != nil {
		return err
	}
	m, err := metricOf(rope, q.HeadDim, asked, left(rope, q.HeadDim, means, keys))
	if m == nil || err != nil {
		return err
	}
	without, err := probe(nil, 0, metricBits)
	if err != nil {
		return err
	}
	with, err := probe(m, 0, metricBits)
	if err != nil || !(with <= metricPays*without) {
		return err
	}
	st.setMetric(m, q)
	return nil
}

// setMetric makes m, or nil, the metric of the head, whose queries are those of a probe.
func (s *Head) setMetric(m *frame.Metric, q *backend.Queries) {
	if s.Metric, s.MetricEnergy, s.MetricGain = m, 0, 0; m == nil {
		return
	}
	dim := q.HeadDim
	for _, a := range m.Diagonal() {
		s.MetricGain += float64(a) * float64(a) / float64(dim)
	}
	turned := make([]float32, len(q.Q))
	for at := 0; at < len(q.Q); at += dim {
		m.Query(turned[at:at+dim], q.Q[at:at+dim])
	}
	s.MetricEnergy = input.Energy(turned) / float64(len(q.Q)/dim)
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
