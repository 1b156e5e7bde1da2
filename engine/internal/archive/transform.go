// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
)

// Transform is a calibrated basis: row x = Mean + sum over i of y_i * component i. In general the
// components are not orthogonal: y is measured in a metric in which errors of all components count
// the same. Without a basis, component i is Scale[i] times value Order[i] of the row.
type Transform struct {
	Dim   int
	Mean  []float32 // [dim]
	Std8  []int16   // [dim], 8*log2 of the deviation of y_i
	Basis []int8    // [dim, dim], row i times Scale[i] is component i; nil: Scale alone
	Scale []float32 // [dim]
	// Order sorts the values of the row by deviation, the largest first, so that Truncate drops the
	// weakest components. nil: the order of the row. With a basis it is nil.
	Order []uint16 // [dim]
	// Gain is the weight of a squared error in y, in the metric of the basis: for K the mean of (q .
	// dk)^2 over queries is Gain * |dy|^2. 0 if it is not known.
	Gain float32

	forward []float32 // [dim, dim], made when asked for
	inverse []float32 // [dim, dim], the components
}

// Bounds of deviations, 8*log2. A component of minStd8 never varied: it is not coded at any step.
const (
	minStd8 = -1024
	maxStd8 = 1024
)

// prepare makes the matrices. A basis that cannot be inverted is an error: it comes from a
// damaged profile.
func (t *Transform) prepare(encode bool) error {
	if t.Basis == nil {
		if encode && t.forward == nil {
			t.forward = make([]float32, t.Dim)
			for i, s := range t.Scale {
				if s == 0 {
					return shapef("transform: the scale of component %d is 0", i)
				}
				t.forward[i] = 1 / s
			}
		}
		return nil
	}
	if t.inverse == nil {
		t.inverse = make([]float32, len(t.Basis))
		for i := range t.Dim {
			for j := range t.Dim {
				t.inverse[i*t.Dim+j] = t.Scale[i] * float32(t.Basis[i*t.Dim+j])
			}
		}
	}
	if encode && t.forward == nil {
		m := make([]float64, len(t.inverse))
		for i, v := range t.inverse {
			m[i] = float64(v)
		}
		inv, ok := invert(m, t.Dim)
		if !ok {
			return shapef("transform: the basis of %d components is singular", t.Dim)
		}
		t.forward = make([]float32, len(inv))
		for i, v := range inv {
			t.forward[i] = float32(v)
		}
	}
	return nil
}

// value returns which value of the row component i is.
func (t *Transform) value(i int) int {
	if t.Order != nil {
		return int(t.Order[i])
	}
	return i
}

// sort sorts the components of a transform without a basis by their deviations.
func (t *Transform) sort() {
	t.Order = make([]uint16, t.Dim)
	for i := range t.Order {
		t.Order[i] = uint16(i)
	}
	std8, scale := t.Std8, t.Scale
	slices.SortStableFunc(t.Order, func(i, j uint16) int { return int(std8[j]) - int(std8[i]) })
	t.Std8, t.Scale = make([]int16, t.Dim), make([]float32, t.Dim)
	for i, j := range t.Order {
		t.Std8[i], t.Scale[i] = std8[j], scale[j]
	}
}

// Deviation8 returns 8*log2 of the root mean square deviation of a value from its mean, for components that
// are orthonormal; 0 for rows that never varied.
func (t *Transform) Deviation8() int {
	var energy float64
	for _, s := range t.Std8 {
		if s > minStd8 {
			energy += math.Exp2(float64(s) / 4)
		}
	}
	if energy == 0 {
		return 0
	}
	return int(math.Round(4 * math.Log2(energy/float64(t.Dim))))
}

// inRow returns deviations and scales in the order of the row.
func (t *Transform) inRow() (std8 []int16, scale []float32) {
	if t.Order == nil {
		return t.Std8, t.Scale
	}
	std8, scale = make([]int16, t.Dim), make([]float32, t.Dim)
	for i, j := range t.Order {
		std8[j], scale[j] = t.Std8[i], t.Scale[i]
	}
	return std8, scale
}

// foreign reports whether the mean does not fit rows of these sizes, because all their values are far
// smaller. Subtracted from such rows, it would hide them.
func (t *Transform) foreign(size []float32) bool {
	var most, mean float32
	for _, s := range size {
		most = max(most, s)
	}
	for _, m := range t.Mean {
		mean = max(mean, m, -m)
	}
	return most > 0 && most < mean/8
}

// mean returns the mean to subtract, zeros for bare rows.
func (t *Transform) mean(bare bool) []float32 {
	if bare {
		return make([]float32, t.Dim)
	}
	return t.Mean[:t.Dim]
}

// project turns x, [rows, dim], into components in place.
func (t *Transform) project(x, mean []float32) {
	d := t.Dim
	centred := make([]float32, d)
	for r := range len(x) / d {
		row := x[r*d : (r+1)*d]
		for j, m := range mean {
			centred[j] = row[j] - m
		}
		if t.Basis == nil {
			for i, f := range t.forward {
				row[i] = centred[t.value(i)] * f
			}
			continue
		}
		clear(row)
		axpy.Accumulate(row, t.forward, centred)
	}
}

// restore sets x to the rows of the components y. The sum runs over the components in order, each
// product rounded, so that every machine gives the same bits. Components that are zero change
// nothing. The mean is added last: a large one would cost every partial sum digits.
func (t *Transform) restore(x, y, mean []float32) {
	d := t.Dim
	for r := range len(x) / d {
		row, in := x[r*d:(r+1)*d], y[r*d:(r+1)*d]
		if t.Basis == nil {
			for i, v := range in {
				j := t.value(i)
				row[j] = mean[j] + float32(v*t.Scale[i])
			}
			continue
		}
		clear(row)
		axpy.Accumulate(row, t.inverse, in)
		for j, m := range mean {
			row[j] += m
		}
	}
}
