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
	// Late [rows] are rows of the segment that the mean is no part of: they are shorter than what is left
	// without it. They look like sinks that came late, and carry much attention.
	Late []bool
}

// mostLate is the share of rows, 1/mostLate, beyond which there is no mean to speak of.
const mostLate = 8

// meanBits are the bits that a value of a stored mean takes.
const meanBits = 16

// MeanOf returns the mean of the rows that take part in it. It is left out if the bits that it takes are more
// than those that it saves: at equal errors, a row without its mean takes 1/2 log2(energy / what is left of it)
// bits a value less.
func MeanOf(x quant.Rows, part []bool) (*Mean, error) {
	m := &Mean{Late: make([]bool, x.Len())}
	for range 2 { // late rows would pull the mean to themselves
		if err := m.fit(x, part); err != nil {
			return nil, err
		}
	}
	n, late, whole, left := 0, 0, 0.0, 0.0
	for t, ok := range part {
		switch {
		case !ok:
		case m.Late[t]:
			late++
		default:
			n++
			whole, left = whole+Energy(x.Row(t)), left+Distance(x.Row(t), m.Value)
		}
	}
	if n == 0 || mostLate*late > n || float64(n)*math.Log2(whole/left) <= 2*meanBits {
		return &Mean{Late: make([]bool, x.Len())}, nil
	}
	return m, nil
}

// fit sets the mean of the rows that are not late, and adds those that are.
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
	if err := frame.Mean(m.Value, m.Stored); err != nil {
		return err
	}
	for t, ok := range part {
		if row := x.Row(t); ok && Distance(row, m.Value) >= Energy(row) {
			m.Late[t] = true
		}
	}
	return nil
}
