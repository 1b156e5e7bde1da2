// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// spread[b] has bit i of b in byte i: it turns eight bits of a plane into eight codes.
var spread = spreadTable()

func spreadTable() (t [256]uint64) {
	for b := range t {
		for i := range 8 {
			t[b] |= uint64(b>>i&1) << (8 * i)
		}
	}
	return t
}

// codebooks are the centroids of the formats in planes, repeated up to 16: lm1..lm4 as floats,
// tqmse1..tqmse4.
var codebooks = codebookTable()

func codebookTable() (t [quant.TQMSE4 + 1][16]float32) {
	for _, f := range quant.Formats() {
		switch {
		case f.Nested():
			for i, v := range layout.Nested(f.Bits()) {
				t[f][i] = float32(v)
			}
		case f.Rotated() && f != quant.U8:
			copy(t[f][:], layout.LloydMax(f.Bits()))
		}
		if f.Rotated() && f != quant.U8 {
			for i := 1 << f.Bits(); i < len(t[f]); i++ {
				t[f][i] = t[f][i-1<<f.Bits()]
			}
		}
	}
	return t
}

// UnpackScaled writes rows [r0, r0+n) of a packed side of rows rows to dst, [n, dim], in the basis
// they are stored in: the floats of quanttest.DecodeRotated, bit by bit. Lengths have been checked.
func UnpackScaled(dst []float32, c quant.Coding, src []byte, rows, dim, r0, n int) {
	switch f := c.Format; {
	case f.Exact():
		rowBytes := dim * f.Bits() / 8
		unpackExact(dst[:n*dim], f, src[r0*rowBytes:(r0+n)*rowBytes])
	case f == quant.GGMLQ8_0 || f == quant.GGMLQ4_0:
		unpackGGML(dst[:n*dim], f, src[c.PackedBytes(r0, dim):])
	case f == quant.U8:
		for i := range n {
			unit := float32(rowScale(c, src, rows, dim, r0+i) * layout.CentroidUnit)
			unpackU8(dst[i*dim:(i+1)*dim], unit, src[(r0+i)*dim:])
		}
	default:
		unpackPlanes(dst, c, src, rows, dim, r0, n)
	}
}

// rowScale returns the row scale of row r, like quant.RowScales.
func rowScale(c quant.Coding, src []byte, rows, dim, r int) float32 {
	f := c.Format
	if f.Exact() || f == quant.GGMLQ8_0 || f == quant.GGMLQ4_0 {
		return 0
	}
	tail := src[len(src)-c.ScaleBytes(rows):]
	if c.Scale == quant.ScaleLog8 {
		base := math.Float32frombits(binary.LittleEndian.Uint32(tail))
		return log8Scale(base, tail[4+r])
	}
	s := f16ToF32(binary.LittleEndian.Uint16(tail[2*r:]))
	if f >= quant.TQMSE1 && f <= quant.TQMSE4 {
		s /= float32(math.Sqrt(float64(dim))) // the norm is stored
	}
	return s
}

// f16ToF32 is quant.F16ToF32 with one branch for normal numbers, whose exponent and mantissa move
// together.
func f16ToF32(h uint16) float32 {
	if h&0x7c00-0x400 < 0x7800 {
		return math.Float32frombits(uint32(h&0x8000)<<16 | (uint32(h&0x7fff)<<13 + 112<<23))
	}
	return quant.F16ToF32(h)
}

// unpackExact converts len(dst) values of an exact format.
func unpackExact(dst []float32, f quant.Format, src []byte) {
	switch f {
	case quant.F32:
		src = src[:4*len(dst)]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case quant.F16:
		unpackF16(dst, src)
	case quant.BF16:
		src = src[:2*len(dst)]
		for i := range dst {
			dst[i] = quant.BF16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}

// unpackF16 converts four values at a time. The conversion is inlined by hand, because a call would
// cost more than it does.
func unpackF16(dst []float32, src []byte) {
	for len(dst) >= 4 && len(src) >= 8 {
		w := binary.LittleEndian.Uint64(src)
		// Adding one to an exponent of all ones, or subtracting one from a zero exponent, changes
		// bit 15 of its half. Neither leaves the half, except for a borrow, which only adds a false
		// alarm.
		e := w & 0x7c007c007c007c00
		if ((e+0x0400040004000400)|(e-0x0400040004000400))&0x8000800080008000 != 0 {
			for i := range 4 {
				dst[i] = quant.F16ToF32(uint16(w >> (16 * i)))
			}
		} else {
			dst[0] = math.Float32frombits(uint32(w&0x8000)<<16 | (uint32(w&0x7fff)<<13 + 112<<23))
			w >>= 16
			dst[1] = math.Float32frombits(uint32(w&0x8000)<<16 | (uint32(w&0x7fff)<<13 + 112<<23))
			w >>= 16
			dst[2] = math.Float32frombits(uint32(w&0x8000)<<16 | (uint32(w&0x7fff)<<13 + 112<<23))
			w >>= 16
			dst[3] = math.Float32frombits(uint32(w&0x8000)<<16 | (uint32(w&0x7fff)<<13 + 112<<23))
		}
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = quant.F16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func unpackU8(dst []float32, unit float32, src []byte) {
	src = src[:len(dst)]
	for i, code := range src {
		dst[i] = float32(unit * float32(int32(code)-128))
	}
}

// ggml's groups: one binary16 scale, then 32 values.
const (
	ggmlGroup = 32
	q80Bytes  = 2 + ggmlGroup
	q40Bytes  = 2 + ggmlGroup/2
)

// unpackGGML converts len(dst)/32 groups.
func unpackGGML(dst []float32, f quant.Format, src []byte) {
	for ; len(dst) >= ggmlGroup; dst = dst[ggmlGroup:] {
		out := dst[:ggmlGroup]
		d := f16ToF32(binary.LittleEndian.Uint16(src))
		if f == quant.GGMLQ8_0 {
			codes := src[2:q80Bytes]
			for i := range out {
				out[i] = float32(float32(int8(codes[i])) * d)
			}
			src = src[q80Bytes:]
			continue
		}
		for i, b := range src[2:q40Bytes] {
			out[i] = float32(float32(int32(b&15)-8) * d)
			out[i+16] = float32(float32(int32(b>>4)-8) * d)
		}
		src = src[q40Bytes:]
	}
}

// pairBooks are the centroids of two codes of four bits; the low half of the index is the first.
var pairBooks = func() (t [quant.TQMSE4 + 1][256][2]float32) {
	for f := range t {
		for i := range t[f] {
			t[f][i] = [2]float32{codebooks[f][i&15], codebooks[f][i>>4]}
		}
	}
	return t
}()

// expandPairs is expandPlanes with a table of pairs, which halves the lookups.
func expandPairs(out []float32, table *[256][2]float32, bits int, p0, p1, p2, p3 []byte) {
	p1, p2, p3 = p1[:len(p0)], p2[:len(p0)], p3[:len(p0)]
	switch bits {
	case 1:
		for _, b := range p0 {
			out = lookUpPairs(out, table, spread[b])
		}
	case 2:
		for j, b := range p0 {
			out = lookUpPairs(out, table, spread[b]<<1|spread[p1[j]])
		}
	case 3:
		for j, b := range p0 {
			out = lookUpPairs(out, table, spread[b]<<2|spread[p1[j]]<<1|spread[p2[j]])
		}
	default:
		for j, b := range p0 {
			out = lookUpPairs(out, table,
				spread[b]<<3|spread[p1[j]]<<2|spread[p2[j]]<<1|spread[p3[j]])
		}
	}
}

// lookUpPairs writes the values of eight codes, the lowest byte first, and returns the rest of dst.
func lookUpPairs(out []float32, table *[256][2]float32, codes uint64) []float32 {
	codes |= codes >> 4 // each even byte now holds two codes
	o := (*[8]float32)(out)
	*(*[2]float32)(o[0:]) = table[uint8(codes)]
	*(*[2]float32)(o[2:]) = table[uint8(codes>>16)]
	*(*[2]float32)(o[4:]) = table[uint8(codes>>32)]
	*(*[2]float32)(o[6:]) = table[uint8(codes>>48)]
	return out[8:]
}

// unpackPlanes converts rows of lm1..lm4 and tqmse1..tqmse4. It collects eight codes at a time from
// the planes and looks them up in a table that includes the row's scale.
func unpackPlanes(dst []float32, c quant.Coding, src []byte, rows, dim, r0, n int) {
	var table [16]float32
	book := &codebooks[c.Format]
	bits, factor := c.Format.Bits(), float32(1)
	if c.Format.Nested() {
		factor = layout.CentroidUnit
	}
	plane, rowBytes := layout.PlaneBytes(rows, dim), layout.RowPlaneBytes(dim)
	for i := range n {
		unit := float32(rowScale(c, src, rows, dim, r0+i) * factor)
		for j := range 1 << bits {
			table[j] = float32(unit * book[j])
		}
		at := (r0 + i) * rowBytes
		p0, p1, p2, p3 := planeRow(src, bits, plane, at, rowBytes)
		expandPlanes(dst[i*dim:(i+1)*dim], &table, bits, p0, p1, p2, p3)
	}
}

// expandPlanes looks up the codes of one row, collected from its bytes in every plane.
func expandPlanes(out []float32, table *[16]float32, bits int, p0, p1, p2, p3 []byte) {
	switch bits {
	case 1:
		for j, b := range p0 {
			lookUp(out[8*j:8*j+8], table, spread[b])
		}
	case 2:
		for j, b := range p0 {
			lookUp(out[8*j:8*j+8], table, spread[b]<<1|spread[p1[j]])
		}
	case 3:
		for j, b := range p0 {
			lookUp(out[8*j:8*j+8], table, spread[b]<<2|spread[p1[j]]<<1|spread[p2[j]])
		}
	default:
		for j, b := range p0 {
			lookUp(out[8*j:8*j+8], table,
				spread[b]<<3|spread[p1[j]]<<2|spread[p2[j]]<<1|spread[p3[j]])
		}
	}
}

// planeRow returns the bytes of one row in every plane, all of one length. Planes that the format
// does not have repeat the last.
func planeRow(src []byte, bits, plane, at, n int) (p0, p1, p2, p3 []byte) {
	row := func(p int) []byte {
		at := min(p, bits-1)*plane + at
		return src[at : at+n : at+n]
	}
	return row(0), row(1), row(2), row(3)
}

// lookUp writes the values of eight codes, the lowest byte first.
func lookUp(dst []float32, table *[16]float32, codes uint64) {
	_ = dst[7]
	dst[0] = table[codes&15]
	dst[1] = table[codes>>8&15]
	dst[2] = table[codes>>16&15]
	dst[3] = table[codes>>24&15]
	dst[4] = table[codes>>32&15]
	dst[5] = table[codes>>40&15]
	dst[6] = table[codes>>48&15]
	dst[7] = table[codes>>56&15]
}
