// SPDX-License-Identifier: Apache-2.0

package gguf

import "fmt"

// TensorType is how a tensor's values are stored, as GGUF numbers it.
type TensorType uint32

// The tensor types this package reads. Those of quantized values store groups of 32 or 256 values;
// Group says what a group means.
const (
	TensorF32    TensorType = 0
	TensorF16    TensorType = 1
	TensorQ4_0   TensorType = 2
	TensorQ4_1   TensorType = 3
	TensorQ5_0   TensorType = 6
	TensorQ5_1   TensorType = 7
	TensorQ8_0   TensorType = 8
	TensorQ2_K   TensorType = 10
	TensorQ3_K   TensorType = 11
	TensorQ4_K   TensorType = 12
	TensorQ5_K   TensorType = 13
	TensorQ6_K   TensorType = 14
	TensorIQ4_NL TensorType = 20
	TensorIQ4_XS TensorType = 23
	TensorBF16   TensorType = 30 // the upper half of a float32
	TensorMXFP4  TensorType = 39
)

// GroupSize is the number of values in a group of the types that are not K-quants.
const GroupSize = 32

// superGroup is the number of values in a group of the K-quants and of IQ4_XS.
const superGroup = 256

// A known type has a name. Those that this package reads have a layout too, and the quantized ones
// a function that takes a group apart.
type known struct {
	name          string
	values, bytes int64 // of a group; 0: not read
	split         func(b []byte, g *Group)
}

var types = map[TensorType]known{
	TensorF32:    {"F32", 1, 4, nil},
	TensorF16:    {"F16", 1, 2, nil},
	TensorBF16:   {"BF16", 1, 2, nil},
	TensorQ4_0:   {"Q4_0", GroupSize, 2 + 16, splitQ4_0},
	TensorQ4_1:   {"Q4_1", GroupSize, 2 + 2 + 16, splitQ4_1},
	TensorQ5_0:   {"Q5_0", GroupSize, 2 + 4 + 16, splitQ5_0},
	TensorQ5_1:   {"Q5_1", GroupSize, 2 + 2 + 4 + 16, splitQ5_1},
	TensorQ8_0:   {"Q8_0", GroupSize, 2 + 32, splitQ8_0},
	TensorQ2_K:   {"Q2_K", superGroup, 16 + 64 + 2 + 2, splitQ2K},
	TensorQ3_K:   {"Q3_K", superGroup, 32 + 64 + 12 + 2, splitQ3K},
	TensorQ4_K:   {"Q4_K", superGroup, 2 + 2 + 12 + 128, splitQ4K},
	TensorQ5_K:   {"Q5_K", superGroup, 2 + 2 + 12 + 32 + 128, splitQ5K},
	TensorQ6_K:   {"Q6_K", superGroup, 128 + 64 + 16 + 2, splitQ6K},
	TensorIQ4_NL: {"IQ4_NL", GroupSize, 2 + 16, splitIQ4NL},
	TensorIQ4_XS: {"IQ4_XS", superGroup, 2 + 2 + 4 + 128, splitIQ4XS},
	TensorMXFP4:  {"MXFP4", GroupSize, 1 + 16, splitMXFP4},
	// Named, so that a refusal can say what the file has.
	9: {name: "Q8_1"}, 15: {name: "Q8_K"}, 16: {name: "IQ2_XXS"}, 17: {name: "IQ2_XS"},
	18: {name: "IQ3_XXS"}, 19: {name: "IQ1_S"}, 21: {name: "IQ3_S"}, 22: {name: "IQ2_S"},
	24: {name: "I8"}, 25: {name: "I16"}, 26: {name: "I32"}, 27: {name: "I64"}, 28: {name: "F64"},
	29: {name: "IQ1_M"}, 34: {name: "TQ1_0"}, 35: {name: "TQ2_0"}, 40: {name: "NVFP4"},
	41: {name: "Q1_0"},
}

// readTypes lists the types that are read, for messages.
const readTypes = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS " +
	"and MXFP4"

// Layout returns the values of a group and the bytes that it takes; 0, 0 for types that are not
// read.
func (t TensorType) Layout() (values, bytes int64) {
	k := types[t]
	return k.values, k.bytes
}

// Quantized reports whether groups of the type are integers with scales, which SplitGroup reads.
func (t TensorType) Quantized() bool { return types[t].split != nil }

// String returns the name that GGUF gives the type.
func (t TensorType) String() string {
	if k, ok := types[t]; ok {
		return k.name
	}
	return fmt.Sprintf("TensorType(%d)", uint32(t))
}

// bytesOf returns the stored bytes of a tensor, refusing what overflows.
func (t TensorType) bytesOf(dims []int64) (int64, error) {
	values, bytes := t.Layout()
	if values == 0 {
		return 0, unsupportedf("its type is %s; %s are read, which llama-quantize makes", t,
			readTypes)
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
