// SPDX-License-Identifier: Apache-2.0

package input

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// floats is a tensor in memory, [heads, rows, dim].
type floats struct {
	name      string
	x         []float32
	rows, dim int
}

// Floats returns values of [heads, rows, dim] as a tensor, which shares them.
func Floats(name string, x []float32, rows, dim int) Tensor { return &floats{name, x, rows, dim} }

func (f *floats) Name() string       { return f.name }
func (f *floats) DType() quant.DType { return quant.Float32 }
func (f *floats) Dim() int           { return f.dim }
func (f *floats) RowBytes() int      { return 4 * f.dim }
func (f *floats) Rows() int          { return f.rows }

// of returns rows [first, first+n) of a head.
func (f *floats) of(head, first, n int) ([]float32, error) {
	from, to := (head*f.rows+first)*f.dim, (head*f.rows+first+n)*f.dim
	if head < 0 || first < 0 || n < 0 || first+n > f.rows || to > len(f.x) {
		return nil, fmt.Errorf("kvist/input: rows [%d, %d) of head %d of %s, which has %d rows: %w", first, first+n, head,
			f.name, f.rows, quant.ErrShape)
	}
	return f.x[from:to], nil
}

func (f *floats) Read(head, first, n int, dst []byte) error {
	x, err := f.of(head, first, n)
	if err == nil && len(dst) != 4*len(x) {
		err = fmt.Errorf("kvist/input: room for %d bytes of %s, want %d: %w", len(dst), f.name, 4*len(x), quant.ErrShape)
	}
	if err != nil {
		return err
	}
	AppendFloats(dst[:0], x)
	return nil
}

func (f *floats) ReadExactly(head, first, n int, dst []byte) error {
	return f.Read(head, first, n, dst)
}

func (f *floats) ReadF32(head, first, n int, dst []float32) error {
	x, err := f.of(head, first, n)
	if err == nil && len(dst) != len(x) {
		err = fmt.Errorf("kvist/input: room for %d values of %s, want %d: %w", len(dst), f.name, len(x), quant.ErrShape)
	}
	if err != nil {
		return err
	}
	copy(dst, x)
	return nil
}
