// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"math/bits"
)

// dtypes lists the element types of safetensors in the order of the reference implementation, which
// sorts tensors by it, last type first. Source: huggingface/safetensors, enum Dtype.
var dtypes = [...]struct {
	name  string
	bits  int64
	descr string // in .npy, "" if numpy has no such type
}{
	{"BOOL", 8, "|b1"},
	{"F4", 4, ""},
	{"F6_E2M3", 6, ""},
	{"F6_E3M2", 6, ""},
	{"U8", 8, "|u1"},
	{"I8", 8, "|i1"},
	{"F8_E5M2", 8, ""},
	{"F8_E4M3", 8, ""},
	{"F8_E8M0", 8, ""},
	{"F8_E4M3FNUZ", 8, ""},
	{"F8_E5M2FNUZ", 8, ""},
	{"I16", 16, "<i2"},
	{"U16", 16, "<u2"},
	{"F16", 16, "<f2"},
	{"BF16", 16, ""},
	{"I32", 32, "<i4"},
	{"U32", 32, "<u4"},
	{"F32", 32, "<f4"},
	{"C64", 64, "<c8"},
	{"F64", 64, "<f8"},
	{"I64", 64, "<i8"},
	{"U64", 64, "<u8"},
}

// dtypeRank returns the index of an element type in dtypes, or -1 for an unknown name.
func dtypeRank(name string) int {
	for i := range dtypes {
		if dtypes[i].name == name {
			return i
		}
	}
	return -1
}

// dataBytes returns the bytes of a tensor. Its errors have the category corrupt: what does not
// fit in 63 bits is in no file.
func dataBytes(dtype string, shape []int64) (int64, error) {
	rank := dtypeRank(dtype)
	if rank < 0 {
		return 0, unsupportedf("element type %q", dtype)
	}
	n := uint64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, corruptf("shape %v has a negative dim", shape)
		}
		hi, lo := bits.Mul64(n, uint64(d))
		if hi != 0 {
			return 0, corruptf("shape %v overflows 64 bits", shape)
		}
		n = lo
	}
	hi, lo := bits.Mul64(n, uint64(dtypes[rank].bits))
	if hi != 0 {
		return 0, corruptf("%s of shape %v overflows 64 bits", dtype, shape)
	}
	if lo%8 != 0 {
		return 0, corruptf("%s of shape %v has %d bits, not whole bytes", dtype, shape, lo)
	}
	return int64(lo / 8), nil
}
