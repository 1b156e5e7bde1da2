// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// Tensor is a named array of a section, kept exactly.
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

// Len returns the number of elements: the product of the shape.
func (t *Tensor) Len() int {
	n := int64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return int(n)
}

// Bytes returns the elements of a tensor of U8 that has this shape; -1 stands for any size of a
// dimension.
//
// Errors: quant.ErrShape.
func (t *Tensor) Bytes(shape ...int64) ([]byte, error) {
	return t.Data, t.want("U8", shape)
}

// Int8 returns a copy of the elements of a tensor of I8 that has this shape.
//
// Errors: quant.ErrShape.
func (t *Tensor) Int8(shape ...int64) ([]int8, error) {
	if err := t.want("I8", shape); err != nil {
		return nil, err
	}
	v := make([]int8, len(t.Data))
	for i, b := range t.Data {
		v[i] = int8(b)
	}
	return v, nil
}

// Uint16 returns a copy of the elements of a tensor of U16 that has this shape.
//
// Errors: quant.ErrShape.
func (t *Tensor) Uint16(shape ...int64) ([]uint16, error) {
	if err := t.want("U16", shape); err != nil {
		return nil, err
	}
	v := make([]uint16, len(t.Data)/2)
	for i := range v {
		v[i] = binary.LittleEndian.Uint16(t.Data[2*i:])
	}
	return v, nil
}

// Float32 returns the elements of a tensor of F32 or F16 that has this shape, as float32. NaN and
// infinities come through; a caller that cannot take them checks.
//
// Errors: quant.ErrShape.
func (t *Tensor) Float32(shape ...int64) ([]float32, error) {
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
	fits := t.DType == dtype && len(shape) == len(t.Shape)
	for i := 0; fits && i < len(shape); i++ {
		fits = shape[i] < 0 || shape[i] == t.Shape[i]
	}
	if !fits {
		return shapef("tensor %q is %s %v, want %s %v", t.Name, t.DType, t.Shape, dtype, shape)
	}
	return nil
}

// OfBytes makes a tensor of U8. data is not copied.
func OfBytes(name string, data []byte, shape ...int64) Tensor {
	return Tensor{Name: name, DType: "U8", Shape: shape, Data: data}
}

// OfInt8 makes a tensor of I8.
func OfInt8(name string, data []int8, shape ...int64) Tensor {
	t := Tensor{Name: name, DType: "I8", Shape: shape, Data: make([]byte, len(data))}
	for i, v := range data {
		t.Data[i] = byte(v)
	}
	return t
}

// OfUint16 makes a tensor of U16.
func OfUint16(name string, data []uint16, shape ...int64) Tensor {
	t := Tensor{Name: name, DType: "U16", Shape: shape, Data: make([]byte, 0, 2*len(data))}
	for _, v := range data {
		t.Data = binary.LittleEndian.AppendUint16(t.Data, v)
	}
	return t
}

// OfFloat16 makes a tensor of F16, rounding to nearest even.
func OfFloat16(name string, data []float32, shape ...int64) Tensor {
	t := Tensor{Name: name, DType: "F16", Shape: shape, Data: make([]byte, 0, 2*len(data))}
	for _, v := range data {
		t.Data = binary.LittleEndian.AppendUint16(t.Data, quant.F32ToF16(v))
	}
	return t
}

// OfFloat32 makes a tensor of F32.
func OfFloat32(name string, data []float32, shape ...int64) Tensor {
	t := Tensor{Name: name, DType: "F32", Shape: shape, Data: make([]byte, 0, 4*len(data))}
	for _, v := range data {
		t.Data = binary.LittleEndian.AppendUint32(t.Data, math.Float32bits(v))
	}
	return t
}
