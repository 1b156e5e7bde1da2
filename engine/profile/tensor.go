// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// Tensor is a named array of a section, kept exactly. Its section's reader knows what the elements
// mean.
type Tensor struct {
	// Name is 1 to 200 of a-z, 0-9, "-", "_", "." and "/", unique in its section.
	Name string
	// DType is the element type as safetensors names it: U8 I8 U16 I16 F16 BF16 U32 I32 F32 U64
	// I64 F64 BOOL.
	DType string
	// Shape is up to 8 dimensions, row-major; none for a scalar. Heads of many layers belong in
	// one tensor [layers, kv_heads, ...] rather than in one each: a tensor costs about 100 bytes.
	Shape []int64
	// Data is the elements, little-endian.
	Data []byte
}

func (t *Tensor) aux(s Section) *container.Aux {
	return &container.Aux{Name: string(s) + "/" + t.Name, DType: t.DType, Shape: t.Shape, Data: t.Data}
}

func (t *Tensor) check(s Section) error {
	if !validName(t.Name, maxTensorName, "-_./") {
		return shapef("section %s: tensor name %q, want 1 to %d of a-z, 0-9, - _ . /", s,
			short(t.Name), maxTensorName)
	}
	if err := t.aux(s).Check(); err != nil {
		return fmt.Errorf("kvist/profile: section %s: %w", s, err)
	}
	return nil
}

// floats returns the elements of a tensor of F32 or F16 that has this shape, as float32.
//
// Errors: quant.ErrShape.
func (t *Tensor) floats(shape ...int64) ([]float32, error) {
	if t.DType == "F16" {
		if err := t.want("F16", shape); err != nil {
			return nil, err
		}
		v := make([]float32, len(t.Data)/2)
		for i := range v {
			v[i] = quant.F16ToF32(binary.LittleEndian.Uint16(t.Data[2*i:]))
		}
		return v, nil
	}
	if err := t.want("F32", shape); err != nil {
		return nil, err
	}
	v := make([]float32, len(t.Data)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
	}
	return v, nil
}

func (t *Tensor) want(dtype string, shape []int64) error {
	if t.DType != dtype || !slices.Equal(t.Shape, shape) {
		return shapef("tensor %q is %s %v, want %s %v", t.Name, t.DType, t.Shape, dtype, shape)
	}
	return nil
}

func ofFloats(name string, data []float32, shape ...int64) Tensor {
	t := Tensor{Name: name, DType: "F32", Shape: shape, Data: make([]byte, 0, 4*len(data))}
	for _, v := range data {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(v))
	}
	return t
}
