// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// bytesTensor returns a tensor of U8. data is not copied.
func bytesTensor(name string, data []byte, shape ...int64) profile.Tensor {
	return profile.Tensor{Name: name, DType: "U8", Shape: shape, Data: data}
}

// floatsTensor returns a tensor of F32.
func floatsTensor(name string, data []float32, shape ...int64) profile.Tensor {
	t := profile.Tensor{Name: name, DType: "F32", Shape: shape, Data: make([]byte, 0, 4*len(data))}
	for _, v := range data {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(v))
	}
	return t
}

// floatsOf returns the elements of a tensor of F32 or F16 that has this shape. NaN and infinities
// come through.
func floatsOf(t profile.Tensor, shape []int64) ([]float32, error) {
	if t.DType != "F32" && t.DType != "F16" || !slices.Equal(t.Shape, shape) {
		return nil, fmt.Errorf("kvist/cold: profile tensor %q is %s %v, want F32 %v: %w", t.Name,
			t.DType, t.Shape, shape, quant.ErrShape)
	}
	if t.DType == "F16" {
		v := make([]float32, len(t.Data)/2)
		for i := range v {
			v[i] = quant.F16ToF32(binary.LittleEndian.Uint16(t.Data[2*i:]))
		}
		return v, nil
	}
	v := make([]float32, len(t.Data)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
	}
	return v, nil
}
