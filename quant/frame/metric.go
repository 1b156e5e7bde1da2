// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// maxMatrixDim is the largest dim of a Metric that is a full matrix: its inverse takes dim^3
// operations.
const maxMatrixDim = 512

// Metric is an invertible linear map A of rows of K. Rows are multiplied with A before they are
// coded, so that the coding's noise falls where queries feel it least. A query takes the inverse
// transpose: <q, x> = <A^-T q, A x>.
//
// A Metric is immutable and safe for concurrent use. Sides that were coded with equal metrics
// should share one, because backends prepare queries once per Metric.
type Metric struct {
	dim     int
	diag    []float32 // [dim], or nil for a matrix
	matrix  []float32 // [dim, dim] row-major
	inverse []float32 // [dim, dim] row-major: A^-1
}

// NewDiagonal returns the metric diag(a): component i is multiplied with a[i], and the query's
// divided by it. A diagonal that is equal on both components of every rotary pair commutes with
// RoPE. a is copied.
//
// Errors: ErrShape for no components or more than MaxDim; ErrRange unless every component is
// positive, finite, and so is its inverse.
func NewDiagonal(a []float32) (*Metric, error) {
	if len(a) < 1 || len(a) > quant.MaxDim {
		return nil, fmt.Errorf("kvist/frame: metric of %d components, want 1 to %d: %w", len(a),
			quant.MaxDim, quant.ErrShape)
	}
	for i, x := range a {
		if !(x > 0) || !finite(x) || !finite(1/x) {
			return nil, fmt.Errorf("kvist/frame: metric: component %d is %g, want a positive number"+
				" with a finite inverse: %w", i, x, quant.ErrRange)
		}
	}
	return &Metric{dim: len(a), diag: append([]float32(nil), a...)}, nil
}

// NewMatrix returns the metric A of a row-major matrix, [dim, dim]. It inverts A in float64, by
// Gauss and Jordan with the largest pivot of a column. a is copied.
//
// Errors: ErrShape for another number of values; ErrTooLarge for a dim beyond 512; ErrRange for a
// value that is not finite, or a matrix that float64 cannot invert.
func NewMatrix(a []float32, dim int) (*Metric, error) {
	switch {
	case dim < 1 || dim > quant.MaxDim || len(a) != dim*dim:
		return nil, fmt.Errorf("kvist/frame: metric of %d values, want %d squared: %w", len(a), dim,
			quant.ErrShape)
	case dim > maxMatrixDim:
		return nil, fmt.Errorf("kvist/frame: metric: matrix of dim %d, want at most %d: %w", dim,
			maxMatrixDim, quant.ErrTooLarge)
	}
	m := &Metric{dim: dim, matrix: append([]float32(nil), a...)}
	var err error
	m.inverse, err = invert(a, dim)
	return m, err
}

// invert returns the inverse of a row-major matrix. No product is fused with a sum, so that the
// result is the same on every machine.
func invert(a []float32, dim int) ([]float32, error) {
	w := 2 * dim // the matrix and what becomes its inverse, side by side
	m := make([]float64, dim*w)
	for i := range dim {
		for j, x := range a[i*dim : (i+1)*dim] {
			if !finite(x) {
				return nil, fmt.Errorf("kvist/frame: metric: value [%d, %d] is %g: %w", i, j, x, quant.ErrRange)
			}
			m[i*w+j] = float64(x)
		}
		m[i*w+dim+i] = 1
	}
	for c := range dim {
		pivot := c
		for r := c + 1; r < dim; r++ {
			if math.Abs(m[r*w+c]) > math.Abs(m[pivot*w+c]) {
				pivot = r
			}
		}
		row := m[c*w : (c+1)*w]
		if other := m[pivot*w : (pivot+1)*w]; pivot != c {
			for j := range row {
				row[j], other[j] = other[j], row[j]
			}
		}
		f := row[c]
		if f == 0 {
			return nil, fmt.Errorf("kvist/frame: metric: the matrix is singular at column %d: %w", c,
				quant.ErrRange)
		}
		for j := range row {
			row[j] /= f
		}
		for r := range dim {
			to, g := m[r*w:(r+1)*w], m[r*w+c]
			if r == c || g == 0 {
				continue
			}
			for j := range to {
				to[j] -= float64(g * row[j])
			}
		}
	}
	inv := make([]float32, dim*dim)
	for i := range dim {
		for j := range dim {
			x := float32(m[i*w+dim+j])
			if !finite(x) {
				return nil, fmt.Errorf("kvist/frame: metric: value [%d, %d] of the inverse is %g: %w", i,
					j, x, quant.ErrRange)
			}
			inv[i*dim+j] = x
		}
	}
	return inv, nil
}

// Dim returns the length of the rows.
func (m *Metric) Dim() int { return m.dim }

// Diagonal returns the diagonal, or nil if the metric is a full matrix. Read only.
func (m *Metric) Diagonal() []float32 { return m.diag }

// Inverse returns A^-1 row-major, [dim, dim], or nil if the metric is a diagonal. Read only.
func (m *Metric) Inverse() []float32 { return m.inverse }

// Forward writes A x to dst, [dim]; dst must not overlap x. A sum runs in float64 in ascending
// order of components and is rounded once.
func (m *Metric) Forward(dst, x []float32) {
	if m.diag != nil {
		for i, a := range m.diag {
			dst[i] = float32(x[i] * a)
		}
		return
	}
	product(dst, m.matrix, x)
}

// Backward writes A^-1 y to dst, [dim]: Forward undone up to rounding.
func (m *Metric) Backward(dst, y []float32) {
	if m.diag != nil {
		for i, a := range m.diag {
			dst[i] = float32(y[i] / a)
		}
		return
	}
	product(dst, m.inverse, y)
}

// Query writes A^-T q to dst, [dim], for inner products with rows that Forward returned. dst may
// be q for a diagonal, and must not overlap q for a matrix.
func (m *Metric) Query(dst, q []float32) {
	if m.diag != nil {
		for i, a := range m.diag {
			dst[i] = float32(q[i] / a)
		}
		return
	}
	for i := range m.dim {
		var s float64
		for j, x := range q[:m.dim] {
			s += float64(m.inverse[j*m.dim+i]) * float64(x) // exact: fusing changes nothing
		}
		dst[i] = float32(s)
	}
}

// product writes the product of a square matrix and a vector.
func product(dst, m, x []float32) {
	dim := len(x)
	for i := range dim {
		var s float64
		for j, y := range m[i*dim : (i+1)*dim] {
			s += float64(y) * float64(x[j]) // exact: fusing changes nothing
		}
		dst[i] = float32(s)
	}
}
