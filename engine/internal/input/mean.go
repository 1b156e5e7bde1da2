// SPDX-License-Identifier: Apache-2.0

package input

import (
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Mean is what rows of K of a segment have in common. Queries pay nothing for it: it adds one inner
// product to all scores of the segment.
type Mean struct {
	Stored []byte    // [dim] binary16, what is taken off rows (frame.Center); nil: no mean pays
	Value  []float32 // [dim] the same
	// Late [rows] are rows of the segment that the mean is no part of: they are far shorter than what is left
	// without it. They look like sinks that came late, and carry much attention.
	Late []bool
}

// mostLate is the share of rows, 1/mostLate, beyond which there is no mean to speak of.
const mostLate = 8

// lateLonger is the share by which the energy of a row grows without the mean if it is late. With 1 a tenth of the rows
// of some heads of Gemma 3 270M are, where the mean is small in the metric, and their bits are missed elsewhere: the
// error of attention of a capture at 4.25 bits is 0.0026 %, with 2 and 4 0.0014 %. At 2.25 bits it is 0.096, 0.063 and
// 0.066 %, in SmolLM2 0.154, 0.129 and 0.140 %.
const lateLonger = 2

// meanBits are the bits that a value of a stored mean takes.
const meanBits = 16

// MeanOf returns the mean of the rows that take part in it, or none if the bits that it takes are more than those
// that it saves: at equal errors, a row without its mean takes 1/2 log2(energy / what is left of it) bits a value
// less. Rows are coded in a metric, a diagonal, or as they are where that is nil, and lengths are those of what is
// coded: so scales of rotary pairs in K that queries undo, and metrics with them, change nothing.
func MeanOf(x quant.Rows, part []bool, metric *frame.Metric) (*Mean, error) {
	m := &Mean{Late: make([]bool, x.Len())}
	for range 2 { // late rows would pull the mean to themselves
		if err := m.fit(x, part); err != nil {
			return nil, err
		}
		m.addLate(x, part, metric)
	}
	n, late, whole, left := 0, 0, 0.0, 0.0
	for t, ok := range part {
		switch {
		case !ok:
		case m.Late[t]:
			late++
		default:
			n++
			whole, left = whole+EnergyIn(metric, x.Row(t), nil), left+EnergyIn(metric, x.Row(t), m.Value)
		}
	}
	if n == 0 || mostLate*late > n || float64(n)*math.Log2(whole/left) <= 2*meanBits {
		return &Mean{Late: make([]bool, x.Len())}, nil
	}
	return m, nil
}

// MeanOfAll returns the mean of the rows that take part in it, none of which is late.
func MeanOfAll(x quant.Rows, part []bool) (*Mean, error) {
	m := &Mean{Late: make([]bool, x.Len())}
	return m, m.fit(x, part)
}

// fit sets the mean of the rows that are not late.
func (m *Mean) fit(x quant.Rows, part []bool) error {
	of := quant.Rows{Dim: x.Dim}
	for t, ok := range part {
		if ok && !m.Late[t] {
			of.Data = append(of.Data, x.Row(t)...)
		}
	}
	m.Stored, m.Value = make([]byte, frame.MeanBytes(x.Dim)), make([]float32, x.Dim)
	if err := frame.PutMean(m.Stored, of); err != nil {
		return err
	}
	return frame.Mean(m.Value, m.Stored)
}

// addLate adds the rows that the mean makes far longer to those that are late.
func (m *Mean) addLate(x quant.Rows, part []bool, metric *frame.Metric) {
	for t, ok := range part {
		if row := x.Row(t); ok && EnergyIn(metric, row, m.Value) >= lateLonger*EnergyIn(metric, row, nil) {
			m.Late[t] = true
		}
	}
}

// Without reports whether a late row is shorter with the mean than without it, in a metric: it is coded as it is.
func (m *Mean) Without(metric *frame.Metric, row []float32) bool {
	return m.Stored == nil || EnergyIn(metric, row, nil) <= EnergyIn(metric, row, m.Value)
}

// EnergyIn returns the energy of a row less another, or of the row where that is nil, in a metric, a diagonal, or
// without one.
func EnergyIn(metric *frame.Metric, row, less []float32) (sum float64) {
	switch {
	case metric == nil && less == nil:
		return Energy(row)
	case metric == nil:
		return Distance(row, less)
	}
	for d, a := range metric.Diagonal() {
		e := float64(row[d])
		if less != nil {
			e -= float64(less[d])
		}
		e *= float64(a)
		sum += float64(e * e)
	}
	return sum
}
