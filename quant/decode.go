// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant/layout"
)

// Decode unpacks rows to the original basis. It defines the values of every coding.
//
// src: exactly c.PackedBytes(rows, dim) bytes. dst: [rows, dim], overwritten.
//
// Errors: ErrShape, ErrUnsupported. Any bytes of the right length decode without an error.
func Decode(dst Rows, c Coding, src []byte, seed uint64) error {
	if err := decodeStored(dst, c, src); err != nil {
		return err
	}
	if !c.Format.Rotated() {
		return nil
	}
	rot, err := NewRotation(dst.Dim, seed)
	if err != nil {
		return err
	}
	for r := range dst.Len() {
		rot.Inverse(dst.Row(r))
	}
	return nil
}

// decodeStored unpacks rows in the basis they are stored in, which attention over packed rows sees.
//
// Errors: ErrShape, ErrUnsupported.
func decodeStored(dst Rows, c Coding, src []byte) error {
	if err := dst.Validate(); err != nil {
		return err
	}
	rows, dim := dst.Len(), dst.Dim
	if err := checkPacked(c, src, rows, dim); err != nil {
		return err
	}
	switch f := c.Format; {
	case f.Exact():
		decodeExact(dst.Data, f, src)
		return nil
	case f == GGMLQ8_0 || f == GGMLQ4_0:
		for r := range rows {
			n := c.PackedBytes(1, dim)
			decodeGGML(dst.Row(r), f, src[r*n:(r+1)*n])
		}
		return nil
	}
	scales := make([]float32, rows)
	if err := RowScales(scales, c, src, rows, dim); err != nil {
		return err
	}
	plane, bits := layout.PlaneBytes(rows, dim), c.Format.Bits()
	ints, floats := layout.Nested(bits), layout.LloydMax(bits)
	for r := range rows {
		out := dst.Row(r)
		unit := float32(scales[r] * layout.CentroidUnit)
		for i := range out {
			switch {
			case c.Format == U8:
				out[i] = float32(unit * float32(int(src[r*dim+i])-128))
			case c.Format.Nested():
				out[i] = float32(unit * float32(ints[getCode(src, plane, bits, dim, r, i)]))
			default:
				out[i] = float32(scales[r] * floats[getCode(src, plane, bits, dim, r, i)])
			}
		}
	}
	return nil
}

func decodeExact(dst []float32, f Format, src []byte) {
	for i := range dst {
		switch f {
		case F32:
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		case F16:
			dst[i] = F16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		case BF16:
			dst[i] = BF16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}

// Demote re-codes packed rows of the nested family to fewer bits without the original. It drops the
// low bit planes, and computes the scale of each row anew by the same rule, from the row that the
// finer code decodes to. All sums are of integers, so the result does not depend on their order.
//
// src: from.PackedBytes(rows, dim) bytes; dst: to.PackedBytes(rows, dim) bytes, which may start
// where src starts, or not overlap it. from and to agree in rule and scale form, and to has
// fewer or as many bits.
//
// The expected squared error is within 3 % of that of encoding at the lower width for rows that the
// rotation makes Gaussian, and within 10 % for rows with few large values (lm1 of those has no
// bound). A scale above the largest binary16 is set to it.
//
// Errors: ErrShape, ErrUnsupported.
func Demote(dst []byte, to Coding, src []byte, from Coding, rows, dim int) error {
	if err := checkPacked(from, src, rows, dim); err != nil {
		return err
	}
	if err := checkPacked(to, dst, rows, dim); err != nil {
		return err
	}
	if !from.Format.Nested() || !to.Format.Nested() || to.Format > from.Format ||
		from.Rule != to.Rule || from.Scale != to.Scale {
		return fmt.Errorf("kvist/quant: demote %s to %s: %w", from, to, ErrUnsupported)
	}
	if from == to {
		copy(dst, src)
		return nil
	}
	scales := make([]float32, rows)
	if err := RowScales(scales, from, src, rows, dim); err != nil {
		return err
	}
	fine, coarse := layout.Nested(from.Format.Bits()), layout.Nested(to.Format.Bits())
	plane, bits := layout.PlaneBytes(rows, dim), from.Format.Bits()
	drop := bits - to.Format.Bits()
	for r := range rows {
		if scales[r] == 0 {
			continue
		}
		var xx, xc, cc int64
		for i := range dim {
			code := getCode(src, plane, bits, dim, r, i)
			a, b := int64(fine[code]), int64(coarse[code>>drop])
			xx, xc, cc = xx+a*a, xc+a*b, cc+b*b
		}
		ratio := float32(ruleScale(to.Rule, float32(xx), float32(xc), float32(cc)) * layout.CentroidUnit)
		scales[r] = float32(scales[r] * ratio)
		if to.Scale == ScaleF16 {
			scales[r] = min(scales[r], 65504)
		}
	}
	copy(dst, src[:to.Format.Bits()*plane]) // the same memory, or no overlap
	return putScales(dst[to.Format.Bits()*plane:], to, scales)
}
