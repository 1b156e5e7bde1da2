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

// TensorType is how a tensor's values are stored, as GGUF numbers it.
type TensorType uint32

// The tensor types this package reads.
const (
	TensorF32  TensorType = 0
	TensorF16  TensorType = 1
	TensorQ4_0 TensorType = 2  // groups of 32: f16 scale, 16 bytes of codes; scale * (code - 8)
	TensorQ4_1 TensorType = 3  // groups of 32: f16 scale, f16 min, 16 bytes; scale * code + min
	TensorQ8_0 TensorType = 8  // groups of 32: f16 scale, 32 int8 codes; scale * code
	TensorBF16 TensorType = 30 // the upper half of a float32
)

// otherTensorTypes names the types that GGUF knows and this package does not read, so that the
// refusal can name them.
var otherTensorTypes = map[TensorType]string{
	6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
	15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
	22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
	34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// GroupSize is the number of values that share a scale in the quantized types.
const GroupSize = 32

// Layout returns the values of a group and the bytes that it takes; 0, 0 for unknown types.
func (t TensorType) Layout() (values, bytes int64) {
	switch t {
	case TensorF32:
		return 1, 4
	case TensorF16, TensorBF16:
		return 1, 2
	case TensorQ4_0:
		return GroupSize, 2 + 16
	case TensorQ4_1:
		return GroupSize, 2 + 2 + 16
	case TensorQ8_0:
		return GroupSize, 2 + 32
	}
	return 0, 0
}

// String returns the name that GGUF gives the type.
func (t TensorType) String() string {
	switch t {
	case TensorF32:
		return "F32"
	case TensorF16:
		return "F16"
	case TensorQ4_0:
		return "Q4_0"
	case TensorQ4_1:
		return "Q4_1"
	case TensorQ8_0:
		return "Q8_0"
	case TensorBF16:
		return "BF16"
	}
	if s, ok := otherTensorTypes[t]; ok {
		return s
	}
	return fmt.Sprintf("TensorType(%d)", uint32(t))
}

// bytesOf returns the stored bytes of a tensor, refusing what overflows.
func (t TensorType) bytesOf(dims []int64) (int64, error) {
	values, bytes := t.Layout()
	if values == 0 {
		return 0, unsupportedf("its type is %s; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read, "+
			"which llama-quantize makes", t)
	}
	if dims[0]%values != 0 {
		return 0, corruptf("rows of %d values, type %s has groups of %d", dims[0], t, values)
	}
	n := int64(1)
	for _, d := range dims {
		if n > (1<<56)/d {
			return 0, tooLargef("dimensions %v have more than 2^56 values", dims)
		}
		n *= d
	}
	return n / values * bytes, nil // < 2^59
}

// Tensor is an entry of a file's tensor list.
type Tensor struct {
	Name   string
	Type   TensorType
	Dims   []int64 // as GGUF writes them: Dims[0] is the row length, the fastest dimension
	offset int64   // in the file
	bytes  int64
}

// Offset returns where in the file the tensor's data starts.
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
		// A ReaderAt may say EOF along with the last byte that was asked for.
		if n, err := f.r.ReadAt(buf, t.offset+off); n < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = corruptf("the file ends within its data")
			}
			return f.TensorError(t, err)
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

// DecodeGroup decodes one group of b into dst. Plain Go, for small tensors and as the meaning of
// the types; big matrices stay quantized.
func DecodeGroup(t TensorType, b []byte, dst []float32) {
	le := binary.LittleEndian
	switch t {
	case TensorF32:
		dst[0] = math.Float32frombits(le.Uint32(b))
	case TensorF16:
		dst[0] = quant.F16ToF32(le.Uint16(b))
	case TensorBF16:
		dst[0] = quant.BF16ToF32(le.Uint16(b))
	case TensorQ8_0:
		d := quant.F16ToF32(le.Uint16(b))
		for i := range GroupSize {
			dst[i] = d * float32(int8(b[2+i]))
		}
	case TensorQ4_0, TensorQ4_1:
		var codes [GroupSize]uint8
		scale, lo := Q4Group(t, b, codes[:])
		for i, c := range codes {
			dst[i] = float32(scale*float32(c)) + lo
		}
	}
}

// Q4Group unpacks a group of Q4_0 or Q4_1 to one code per byte; value = scale*code + min.
func Q4Group(t TensorType, b []byte, codes []uint8) (scale, lo float32) {
	scale = quant.F16ToF32(binary.LittleEndian.Uint16(b))
	packed := b[2:18]
	if t == TensorQ4_1 {
		lo = quant.F16ToF32(binary.LittleEndian.Uint16(b[2:]))
		packed = b[4:20]
	} else {
		lo = -8 * scale
	}
	for i, p := range packed { // low nibbles are the first half of the group
		codes[i] = p & 15
		codes[i+GroupSize/2] = p >> 4
	}
	return scale, lo
}
