// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// scratchBytes is the size of the pieces in which rows are read and converted.
const scratchBytes = 1 << 16

// Tensor is a handle of rows: [heads, rows, dim], row-major. It belongs to the Source that returned
// it; the zero Tensor belongs to none.
type Tensor struct {
	f         *file
	info      TensorInfo
	dtype     quant.DType
	heads     int
	rows, dim int
}

// Name returns the tensor's name, "" for that of an .npy.
func (t Tensor) Name() string { return t.info.Name }

// DType returns the element type of the rows as Read returns them.
func (t Tensor) DType() quant.DType { return t.dtype }

// Heads returns the number of heads: kv_heads for K and V, heads for Q, 1 for activations.
func (t Tensor) Heads() int { return t.heads }

// Rows returns the number of rows in one head.
func (t Tensor) Rows() int { return t.rows }

// Dim returns the number of values in one row.
func (t Tensor) Dim() int { return t.dim }

// RowBytes returns the size of one row as Read returns it.
func (t Tensor) RowBytes() int { return t.dim * t.dtype.Size() }

// Read reads rows [first, first+n) of one head, little-endian, as stored or, for stored types with
// another row type (see the package comment), converted. Activations have one head, 0; their rows are
// all dims but the last, flattened.
//
// dst: [n, dim] elements of t.DType(), exactly n * t.RowBytes() bytes. dst is undefined after an
// error.
//
// Errors: quant.ErrShape, quant.ErrClosed, *FormatError, which wraps quant.ErrRange for an F64
// beyond the range of F32.
func (t Tensor) Read(head, first, n int, dst []byte) error {
	return t.read(head, first, n, dst, &conversion{})
}

// ReadExactly is Read, but refuses values that conversion would round: an F64 that is not a float32.
//
// Errors: those of Read.
func (t Tensor) ReadExactly(head, first, n int, dst []byte) error {
	return t.read(head, first, n, dst, &conversion{exact: true})
}

func (t Tensor) read(head, first, n int, dst []byte, c *conversion) error {
	from, err := t.locate(head, first, n)
	if err != nil {
		return err
	}
	if int64(len(dst)) != int64(n)*int64(t.RowBytes()) {
		return callErrorf("read rows of tensor %q: dst has %d bytes, want %d rows of %d = %d",
			t.Name(), len(dst), n, t.RowBytes(), int64(n)*int64(t.RowBytes()))
	}
	stored, size := t.info.DTypeName, t.dtype.Size()
	if plain(stored) {
		return t.f.readData(&t.info, from*int64(size), dst)
	}
	return t.f.pieces(&t.info, from, n*t.dim, func(at int, raw []byte) error {
		if !c.raw(stored, dst[at*size:], raw) {
			return t.lost(c, from+int64(at+c.at))
		}
		return nil
	})
}

// ReadF32 reads rows [first, first+n) of one head and converts them. Only F64 is rounded.
//
// dst: [n, dim], exactly n * t.Dim() values. dst is undefined after an error.
//
// Errors: those of Read.
func (t Tensor) ReadF32(head, first, n int, dst []float32) error {
	from, err := t.locate(head, first, n)
	if err != nil {
		return err
	}
	if int64(len(dst)) != int64(n)*int64(t.dim) {
		return callErrorf("read rows of tensor %q: dst has %d values, want %d rows of %d = %d",
			t.Name(), len(dst), n, t.dim, int64(n)*int64(t.dim))
	}
	var c conversion
	stored := t.info.DTypeName
	size := storedSize(stored)
	return t.f.pieces(&t.info, from, len(dst), func(at int, raw []byte) error {
		if !c.f32(stored, dst[at:at+len(raw)/size], raw) {
			return t.lost(&c, from+int64(at+c.at))
		}
		return nil
	})
}

// locate checks a range of rows and returns the number of its first element.
func (t Tensor) locate(head, first, n int) (int64, error) {
	switch {
	case t.f == nil:
		return 0, callErrorf("read rows of tensor %q: it is of no file", t.Name())
	case head < 0 || head >= t.heads:
		return 0, callErrorf("read rows of tensor %q: head %d, want [0, %d)",
			t.Name(), head, t.heads)
	case first < 0 || n < 0 || first > t.rows || n > t.rows-first:
		return 0, callErrorf("read rows of tensor %q: %d rows from row %d, it has %d",
			t.Name(), n, first, t.rows)
	case t.f.closed.Load():
		return 0, t.f.errClosed()
	}
	// The size of the tensor fits in 63 bits, so this cannot overflow.
	return (int64(head)*int64(t.rows) + int64(first)) * int64(t.dim), nil
}

// lost returns the error for a value that cannot be converted.
func (t Tensor) lost(c *conversion, element int64) error {
	row, value := element/int64(t.dim), element%int64(t.dim)
	off := int64(-1)
	if t.info.lay == nil {
		off = t.info.Offset + element*t.info.elementSize()
	}
	head := ""
	if t.heads > 1 {
		head = fmt.Sprintf("head %d ", row/int64(t.rows))
		row %= int64(t.rows)
	}
	why := "is beyond float32, the row type of F64; divide the tensor by a power of two"
	if c.exact {
		why = "is not a float32, so F64 cannot be kept exactly; round the tensor to float32"
	}
	return t.f.formatError(sectionTensor, t.Name(), off,
		fmt.Errorf("%srow %d value %d, %v, %s: %w", head, row, value, c.v, why, quant.ErrRange))
}

// ActTensor is a tensor of activations: rows over its last dim.
type ActTensor struct {
	Name   string
	DType  quant.DType
	Shape  []int64 // [..., dim]; shared, do not write it
	Rows   int     // product of all dims but the last
	Dim    int
	Tensor Tensor // of one head
}

// ActTensors returns the tensors of an activations file that have rows, in the order of their data.
// They are of F16, BF16, F32, F64, F8_E4M3 or F8_E5M2 with two or more dims; no dim is zero, and
// the last is at most quant.MaxDim. In a file without such tensors, a tensor of I8 with two or more
// dims has rows, and a tensor of floats with one dim is one row.
func (s *Source) ActTensors() []ActTensor { return append([]ActTensor(nil), s.act...) }

// NoRows returns nil if an activations file has rows, and otherwise the reason why its first tensor
// has none.
func (s *Source) NoRows() error {
	if len(s.act) > 0 || s.info.KV {
		return nil
	}
	if len(s.side) == 0 {
		return s.f.formatError(sectionFile, "", -1, unsupportedf("a file without tensors"))
	}
	return s.f.formatError(sectionTensor, s.side[0].Name, s.side[0].Offset, rowsOf(s.side[0]).reason(true))
}

// activations separates the tensors with rows from the others. Integers and single rows beside
// tensors of rows are masks, counts or biases, and are kept exactly. In a file without other rows,
// they are the rows.
func activations(f *file, tensors []TensorInfo) (act []ActTensor, side []TensorInfo) {
	for _, alone := range []bool{false, true} {
		side = nil
		for _, info := range tensors {
			m := rowsOf(info)
			if m.reason(alone) != nil {
				side = append(side, info)
				continue
			}
			a := ActTensor{Name: info.Name, DType: rowDType(info.DTypeName), Shape: info.Shape,
				Rows: int(m.rows), Dim: int(m.dim)}
			a.Tensor = Tensor{f: f, info: info, dtype: a.DType, heads: 1, rows: a.Rows, dim: a.Dim}
			act = append(act, a)
		}
		if len(act) > 0 {
			break
		}
	}
	return act, side
}

// rowMatrix is a tensor as a matrix of rows over its last dim.
type rowMatrix struct {
	info      TensorInfo
	rows, dim int64
}

// maxRowDims is the largest number of dims of a tensor in a .kvist file.
const maxRowDims = 8

func rowsOf(info TensorInfo) rowMatrix {
	m := rowMatrix{info: info, rows: 1}
	for i, d := range info.Shape {
		if i == len(info.Shape)-1 {
			m.dim = d
		} else if d == 0 || m.rows <= math.MaxInt64/d {
			// Only a tensor with a zero dim can overflow here, and it is refused anyway.
			m.rows *= d
		}
	}
	return m
}

// reason returns why the tensor has no rows, or nil if it has rows. alone means that no other
// tensor of the file has rows.
func (m rowMatrix) reason(alone bool) error {
	name, shape := m.info.DTypeName, m.info.Shape
	switch {
	case rowDType(name) == quant.DTypeInvalid || name == "I8" && !alone:
		return unsupportedf("elements of type %s have no rows; rows have type %s, or I8 if the file has no "+
			"others", name, rowDTypes)
	case len(shape) == 0, len(shape) == 1 && (!alone || name == "I8"):
		return unsupportedf("shape %v has no rows, want two dims or more", shape)
	case len(shape) > maxRowDims:
		return unsupportedf("shape %v has %d dims, want at most %d; reshape the tensor and keep its "+
			"last dim", shape, len(shape), maxRowDims)
	case m.info.Bytes == 0:
		return unsupportedf("shape %v holds no values; remove the tensor from the file", shape)
	case m.dim > quant.MaxDim:
		return unsupportedf("shape %v has rows of %d values, want at most %d; "+
			"reshape the tensor to shorter rows", shape, m.dim, quant.MaxDim)
	case m.rows > math.MaxInt || m.rows > quant.MaxTokens:
		return unsupportedf("shape %v has %d rows; divide it into tensors of at most %d", shape,
			m.rows, min(math.MaxInt, int64(quant.MaxTokens)))
	}
	return nil
}
