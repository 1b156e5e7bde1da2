// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/quant"
)

// scratchBytes is the piece that ReadRowsF32 reads and converts at a time.
const scratchBytes = 1 << 16

// Tensor is a handle of rows: [heads, rows, dim], row-major. It belongs to the Source that handed
// it out; the zero Tensor belongs to none.
type Tensor struct {
	src       *Source
	name      string
	dtype     quant.DType
	heads     int
	rows, dim int
	off       int64 // byte of the file
}

// Name returns the tensor's name, "" for that of an .npy.
func (t Tensor) Name() string { return t.name }

// DType returns the element type.
func (t Tensor) DType() quant.DType { return t.dtype }

// Heads returns the heads: kv_heads for K and V, heads for Q, 1 for activations.
func (t Tensor) Heads() int { return t.heads }

// Rows returns the rows of one head.
func (t Tensor) Rows() int { return t.rows }

// Dim returns the values of one row.
func (t Tensor) Dim() int { return t.dim }

// RowBytes returns the bytes of one row.
func (t Tensor) RowBytes() int { return t.dim * t.dtype.Size() }

// locate checks a range of rows and returns the byte of the file at which it starts.
func (s *Source) locate(t Tensor, head, first, n int) (int64, error) {
	switch {
	case t.src == nil || t.src != s:
		return 0, callErrorf("read rows of tensor %q: it is not a tensor of %s", t.name, s.name)
	case head < 0 || head >= t.heads:
		return 0, callErrorf("read rows of tensor %q: head %d, want [0, %d)",
			t.name, head, t.heads)
	case first < 0 || n < 0 || first > t.rows || n > t.rows-first:
		return 0, callErrorf("read rows of tensor %q: %d rows from row %d, it has %d",
			t.name, n, first, t.rows)
	case s.closed.Load():
		return 0, s.errClosed()
	}
	// Within the tensor, whose end is within the file: no overflow.
	return t.off + (int64(head)*int64(t.rows)+int64(first))*int64(t.RowBytes()), nil
}

// ReadRows reads rows [first, first+n) of one head as they are stored, little-endian. Heads and
// rows of activations: head 0, and all dims but the last flattened.
//
// dst: [n, dim] elements of t.DType(), exactly n * t.RowBytes() bytes.
//
// Errors: quant.ErrShape, quant.ErrClosed, *FormatError.
func (s *Source) ReadRows(t Tensor, head, first, n int, dst []byte) error {
	off, err := s.locate(t, head, first, n)
	if err != nil {
		return err
	}
	if int64(len(dst)) != int64(n)*int64(t.RowBytes()) {
		return callErrorf("read rows of tensor %q: dst has %d bytes, want %d rows of %d = %d",
			t.name, len(dst), n, t.RowBytes(), int64(n)*int64(t.RowBytes()))
	}
	return s.readFull(SectionTensor, t.name, off, dst)
}

// ReadRowsF32 reads rows [first, first+n) of one head and converts them, exactly.
//
// dst: [n, dim], exactly n * t.Dim() values. Where an error is returned, dst is undefined.
//
// Errors: quant.ErrShape, quant.ErrClosed, *FormatError.
func (s *Source) ReadRowsF32(t Tensor, head, first, n int, dst []float32) error {
	off, err := s.locate(t, head, first, n)
	if err != nil {
		return err
	}
	if int64(len(dst)) != int64(n)*int64(t.dim) {
		return callErrorf("read rows of tensor %q: dst has %d values, want %d rows of %d = %d",
			t.name, len(dst), n, t.dim, int64(n)*int64(t.dim))
	}
	size := t.dtype.Size()
	return s.pieces(t.name, off, len(dst), size, func(at int, raw []byte) {
		convertF32(t.dtype, dst[at:at+len(raw)/size], raw)
	})
}

// pieces reads count elements of size bytes through the scratch buffer and hands them to use,
// with the index of the first element of each piece.
func (s *Source) pieces(tensor string, off int64, count, size int, use func(int, []byte)) error {
	buf := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(buf)
	step := scratchBytes / size
	for at := 0; at < count; at += step {
		raw := (*buf)[:min(count-at, step)*size]
		if err := s.readFull(SectionTensor, tensor, off+int64(at)*int64(size), raw); err != nil {
			return err
		}
		use(at, raw)
	}
	return nil
}

// convertF32 converts len(dst) elements.
func convertF32(dtype quant.DType, dst []float32, raw []byte) {
	switch dtype {
	case quant.Float32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case quant.Float16:
		half.Widen(dst, raw)
	case quant.BFloat16:
		for i := range dst {
			dst[i] = quant.BF16ToF32(binary.LittleEndian.Uint16(raw[2*i:]))
		}
	}
}

// ActTensor is a tensor of activations: rows over its last dim.
type ActTensor struct {
	Name   string
	DType  quant.DType
	Shape  []int64 // [..., dim]; shared, do not write it
	Rows   int     // product of all dims but the last
	Dim    int
	Tensor Tensor // for ReadRows, with head 0
}

// ActTensors returns the tensors of an activations file that have rows, in the order of their
// data: those of F16, BF16 or F32 with two or more dims, none of them zero, and a last dim of at
// most quant.MaxDim.
func (s *Source) ActTensors() []ActTensor { return append([]ActTensor(nil), s.act...) }

// ActTensor returns the rows of the tensor of that name.
//
// Errors: quant.ErrShape where there is none of that name; quant.ErrUnsupported, saying why, for
// one that has raw access only.
func (s *Source) ActTensor(name string) (ActTensor, error) {
	for _, a := range s.act {
		if a.Name == name {
			return a, nil
		}
	}
	info, ok := s.Lookup(name)
	if !ok {
		return ActTensor{}, callErrorf("read %s: tensor %q is not in the file", s.name, name)
	}
	return ActTensor{}, s.formatError(SectionTensor, name, info.Offset, rowsOf(info).reason())
}

// readActivations tells the tensors with rows from the others.
func (s *Source) readActivations() {
	for _, info := range s.tensors {
		m := rowsOf(info)
		if m.reason() != nil {
			s.side = append(s.side, info)
			continue
		}
		a := ActTensor{Name: info.Name, DType: rowDType(info.DTypeName), Shape: info.Shape,
			Rows: int(m.rows), Dim: int(m.dim)}
		a.Tensor = Tensor{src: s, name: a.Name, dtype: a.DType, heads: 1, rows: a.Rows,
			dim: a.Dim, off: info.Offset}
		s.act = append(s.act, a)
	}
}

// rowMatrix is a tensor seen as rows over its last dim.
type rowMatrix struct {
	info      TensorInfo
	rows, dim int64
}

func rowsOf(info TensorInfo) rowMatrix {
	m := rowMatrix{info: info, rows: 1}
	for i, d := range info.Shape {
		if i == len(info.Shape)-1 {
			m.dim = d
		} else if d == 0 || m.rows <= math.MaxInt64/d {
			// Overflow needs a zero dim elsewhere, which is refused anyway.
			m.rows *= d
		}
	}
	return m
}

// reason says why the tensor has no rows, nil where it has.
func (m rowMatrix) reason() error {
	switch {
	case rowDType(m.info.DTypeName) == quant.DTypeInvalid:
		return unsupportedf("elements of type %s have no rows, want F32, F16 or BF16",
			m.info.DTypeName)
	case len(m.info.Shape) < 2:
		return unsupportedf("shape %v has no rows, want two dims or more", m.info.Shape)
	case m.info.Bytes == 0:
		return unsupportedf("shape %v holds no values", m.info.Shape)
	case m.dim > quant.MaxDim:
		return unsupportedf("shape %v has rows of %d values, want at most %d",
			m.info.Shape, m.dim, quant.MaxDim)
	case m.rows > math.MaxInt:
		return unsupportedf("shape %v has more rows than this machine can count", m.info.Shape)
	}
	return nil
}
