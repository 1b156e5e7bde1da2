// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Tensor is an entry of a file's tensor list.
type Tensor struct {
	Name   string
	Type   TensorType
	Dims   []int64 // as GGUF writes them: Dims[0] is the row length, the fastest dimension
	offset int64   // in the file
	bytes  int64
	part   int // index of the file that holds it
}

// Offset returns where in its file the tensor's data starts.
func (t Tensor) Offset() int64 { return t.offset }

// Bytes returns the stored bytes of the tensor.
func (t Tensor) Bytes() int64 { return t.bytes }

// Cols returns the row length, Dims[0].
func (t Tensor) Cols() int64 { return t.Dims[0] }

// Rows returns the product of all dimensions but the first.
func (t Tensor) Rows() int64 {
	n := int64(1)
	for _, d := range t.Dims[1:] {
		n *= d
	}
	return n
}

// maxRead bounds one read of tensor data, and with it the memory beyond what the caller has.
const maxRead = 1 << 22

// EachGroups reads the tensor piecewise and hands out whole groups: b holds the stored bytes of
// the groups from number first on.
func (f *File) EachGroups(t Tensor, do func(first int64, b []byte)) error {
	_, gb := t.Type.Layout()
	buf := make([]byte, min(t.bytes, maxRead/gb*gb))
	for off := int64(0); off < t.bytes; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), t.bytes-off)]
		if err := f.readAt(t, buf, off); err != nil {
			return err
		}
		do(off/gb, buf)
	}
	return nil
}

// Floats reads a tensor as float32, [Rows, Cols], whatever its type.
//
// Errors: *FileError wrapping ErrTooLarge above 2^31 values, or the reader's error.
func (f *File) Floats(t Tensor) ([]float32, error) {
	n := t.Rows() * t.Cols()
	if n > 1<<31 {
		return nil, f.TensorError(t, tooLargef("%d values as float32, the limit is 2^31", n))
	}
	dst := make([]float32, n)
	vals, bytes := t.Type.Layout()
	err := f.EachGroups(t, func(first int64, b []byte) {
		out := dst[first*vals:]
		for len(b) > 0 {
			DecodeGroup(t.Type, b, out)
			b, out = b[bytes:], out[vals:]
		}
	})
	return dst, err
}

// EachRows reads the tensor as float32, a few rows at a time, and hands them out: x, [rows, Cols],
// holds the rows from number first on, and is valid during the call only. An error of do ends the
// reading.
//
// Errors: *FileError wrapping ErrTooLarge for rows of more than 2^31 values, or the reader's error;
// that of do.
func (f *File) EachRows(t Tensor, do func(first int64, x []float32) error) error {
	vals, bytes := t.Type.Layout()
	cols := t.Cols()
	if cols > 1<<31 {
		return f.TensorError(t, tooLargef("rows of %d values, the limit is 2^31", cols))
	}
	rowBytes := cols / vals * bytes
	most := max(1, min(maxRead/(4*cols), t.Rows()))
	raw, x := make([]byte, most*rowBytes), make([]float32, most*cols)
	for first := int64(0); first < t.Rows(); first += most {
		n := min(most, t.Rows()-first)
		raw, x = raw[:n*rowBytes], x[:n*cols]
		if err := f.readAt(t, raw, first*rowBytes); err != nil {
			return err
		}
		if err := Dequantize(t.Type, raw, x); err != nil {
			return err
		}
		if err := do(first, x); err != nil {
			return err
		}
	}
	return nil
}

// readAt reads all of b from offset off of a tensor's data.
func (f *File) readAt(t Tensor, b []byte, off int64) error {
	// A ReaderAt may say EOF along with the last byte that was asked for.
	n, err := f.parts[t.part].r.ReadAt(b, t.offset+off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = corruptf("the file ends within its data")
	}
	return f.TensorError(t, err)
}

// DecodeGroup decodes one group of b into dst: b holds at least Layout's bytes, dst room for its
// values. Plain Go, and the meaning of the types; Dequantize checks its arguments.
func DecodeGroup(t TensorType, b []byte, dst []float32) {
	switch t {
	case TensorF32:
		dst[0] = math.Float32frombits(binary.LittleEndian.Uint32(b))
	case TensorF16:
		dst[0] = f16(b)
	case TensorBF16:
		dst[0] = quant.BF16ToF32(binary.LittleEndian.Uint16(b))
	default:
		var g Group
		SplitGroup(t, b, &g)
		g.floats(dst)
	}
}

// Dequantize decodes the stored groups in src to float32, one after the other, into dst.
//
// Errors: quant.ErrUnsupported for a type that this package does not read; quant.ErrShape if src is
// not whole groups, or dst has not exactly their values.
func Dequantize(t TensorType, src []byte, dst []float32) error {
	values, bytes := t.Layout()
	if values == 0 {
		return fmt.Errorf("kvist/gguf: dequantize: %w", unsupportedf("type %s", t))
	}
	if groups := int64(len(src)) / bytes; int64(len(src))%bytes != 0 || int64(len(dst)) != groups*values {
		return fmt.Errorf("kvist/gguf: dequantize: %d bytes of %s to %d values, want groups of %d bytes "+
			"and %d values: %w", len(src), t, len(dst), bytes, values, quant.ErrShape)
	}
	for ; len(src) > 0; src, dst = src[bytes:], dst[values:] {
		DecodeGroup(t, src, dst)
	}
	return nil
}
