// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// elem is an element type of ggml that a cache may have.
type elem struct {
	id    int32
	name  string
	group int // values that are stored together
	bytes int // of a group
	dtype quant.DType
	// coding is that of a quantized type; its dtype is what rows are read as.
	coding quant.Coding
}

// elems are the types that this package reads.
var elems = []elem{
	{id: 0, name: "f32", group: 1, bytes: 4, dtype: quant.Float32},
	{id: 1, name: "f16", group: 1, bytes: 2, dtype: quant.Float16},
	{id: 30, name: "bf16", group: 1, bytes: 2, dtype: quant.BFloat16},
	{id: 8, name: "q8_0", group: 32, bytes: 34, dtype: quant.Float16, coding: quant.Coding{Format: quant.GGMLQ8_0}},
	{id: 2, name: "q4_0", group: 32, bytes: 18, dtype: quant.Float16, coding: quant.Coding{Format: quant.GGMLQ4_0}},
}

// otherElems names types that llama.cpp has for caches and this package does not read.
var otherElems = map[int32]string{3: "q4_1", 6: "q5_0", 7: "q5_1", 20: "iq4_nl"}

func findElem(id int32) (*elem, error) {
	for i := range elems {
		if elems[i].id == id {
			return &elems[i], nil
		}
	}
	const want = "want f16, bf16, f32, q8_0 or q4_0"
	if name, ok := otherElems[id]; ok {
		return nil, unsupportedf("a cache of %s, %s", name, want)
	}
	return nil, corruptf("element type %d, %s", id, want)
}

func (e *elem) quantized() bool { return e.group > 1 }

// rowBytes returns the bytes of so many values, whole groups.
func (e *elem) rowBytes(values int) int { return values / e.group * e.bytes }

// decode reads whole groups: dst [n] from src [rowBytes(n)].
func (e *elem) decode(dst []float32, src []byte) error {
	if e.quantized() {
		return quant.Decode(quant.Rows{Dim: len(dst), Data: dst}, e.coding, src, 0)
	}
	for i := range dst {
		switch e.dtype {
		case quant.Float16:
			dst[i] = quant.F16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		case quant.BFloat16:
			dst[i] = quant.BF16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		default:
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	}
	return nil
}

// encode writes whole groups, the inverse of decode.
//
// Errors: quant.ErrRange for values that a quantized type cannot hold.
func (e *elem) encode(dst []byte, src []float32) error {
	if e.quantized() {
		return quant.Encode(dst, e.coding, quant.Rows{Dim: len(src), Data: src}, 0)
	}
	for i, v := range src {
		switch e.dtype {
		case quant.Float16:
			binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(v))
		case quant.BFloat16:
			binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToBF16(v))
		default:
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
		}
	}
	return nil
}
