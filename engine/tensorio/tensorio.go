// SPDX-License-Identifier: Apache-2.0

package tensorio

import (
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"github.com/kvist-project/kvist/quant"
)

// LayoutError states why the values of a tensor are not rows of float32 in memory. It matches
// quant.ErrUnsupported.
type LayoutError struct {
	Shape  []int
	DType  string // element type, as gorgonia.org/tensor names it
	Reason string // "a view", "transposed", "masked", ...
}

// Error names the type, the shape and the reason.
func (e *LayoutError) Error() string {
	return fmt.Sprintf("kvist/tensorio: tensor of %s %v: %s: %v", e.DType, e.Shape, e.Reason,
		quant.ErrUnsupported)
}

// Unwrap returns quant.ErrUnsupported.
func (e *LayoutError) Unwrap() error { return quant.ErrUnsupported }

// FromDense returns the rows of a tensor, and a copy of its dims. The rows share the tensor's memory.
//
// Errors: *LayoutError, quant.ErrShape.
func FromDense(t *tensor.Dense) (rows quant.Rows, dims []int, err error) {
	if t == nil {
		return quant.Rows{}, nil, fmt.Errorf("kvist/tensorio: no tensor: %w", quant.ErrShape)
	}
	dims = slices.Clone([]int(t.Shape()))
	if reason := refused(t); reason != "" {
		e := &LayoutError{Shape: dims, DType: "no type", Reason: reason}
		if t.Dtype().Type != nil {
			e.DType = t.Dtype().String()
		}
		return quant.Rows{}, nil, e
	}
	n, ok := size(dims)
	if !ok || n == 0 {
		return quant.Rows{}, nil, fmt.Errorf("kvist/tensorio: tensor of %v holds no rows: %w", dims,
			quant.ErrShape)
	}
	// A slice longer than the shape would be rows that the tensor does not have.
	data, ok := t.Data().([]float32)
	if !ok || len(data) != n {
		return quant.Rows{}, nil, fmt.Errorf("kvist/tensorio: tensor of %v on %d values: %w", dims,
			len(data), quant.ErrShape)
	}
	rows = quant.Rows{Dim: dims[len(dims)-1], Data: data[:n:n]}
	if err := rows.Validate(); err != nil {
		return quant.Rows{}, nil, fmt.Errorf("kvist/tensorio: tensor of %v: %w", dims, err)
	}
	return rows, dims, nil
}

// refused returns why the values of a tensor do not lie in memory as rows, "" if they do.
func refused(t *tensor.Dense) string {
	switch {
	case t.Dtype() != tensor.Float32:
		return "want float32"
	case !t.IsNativelyAccessible():
		return "in memory that Go cannot read"
	case t.IsView():
		return "a view: materialize it first"
	case t.IsMaterializable():
		return "transposed: call Transpose first"
	case t.DataOrder().IsColMajor() || t.DataOrder().IsNotContiguous():
		return "want contiguous values in row-major order"
	case t.DataSize() > 0 && t.IsMasked():
		return "masked"
	}
	step := 1
	for i := len(t.Shape()) - 1; i >= 0; i-- {
		if t.Shape()[i] != 1 && i < len(t.Strides()) && t.Strides()[i] != step {
			return "want contiguous values in row-major order"
		}
		step *= t.Shape()[i]
	}
	return ""
}

// ToDense returns a tensor of the given dims on the memory of rows; without dims it is
// [rows, rows.Dim]. The last of the dims is rows.Dim, and all together are the number of values.
//
// Errors: quant.ErrShape.
func ToDense(rows quant.Rows, dims ...int) (*tensor.Dense, error) {
	if err := rows.Validate(); err != nil {
		return nil, fmt.Errorf("kvist/tensorio: %w", err)
	}
	if len(rows.Data) == 0 {
		return nil, fmt.Errorf("kvist/tensorio: a tensor of no rows: %w", quant.ErrShape)
	}
	if len(dims) == 0 {
		dims = []int{rows.Len(), rows.Dim}
	}
	if n, ok := size(dims); !ok || n != len(rows.Data) || dims[len(dims)-1] != rows.Dim {
		return nil, fmt.Errorf("kvist/tensorio: tensor of %v from %d rows of %d values: %w", dims,
			rows.Len(), rows.Dim, quant.ErrShape)
	}
	return tensor.New(tensor.WithShape(dims...), tensor.WithBacking(rows.Data)), nil
}

// size returns the number of values of dims; false for a scalar, negative dims and sizes that no
// memory holds.
func size(dims []int) (int, bool) {
	n := 1
	for _, d := range dims {
		if d < 0 || d > 0 && n > math.MaxInt/4/d {
			return 0, false
		}
		n *= d
	}
	return n, len(dims) > 0
}
