// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Group is a stored group of a quantized type, taken apart: small integers, and what they are
// multiplied by. Value i is
//
//	float32(s*float32(Codes[i])), with s = Scale*float32(Scales[i/Step])
//
// and, where HasMin, Min*float32(Mins[i/Step]) added to it. Both products of a scale are exact in
// float32. This is the arithmetic of ggml's dequantization and of the gguf Python package.
type Group struct {
	Len  int // values: 32 or 256
	Step int // values that share an element of Scales and Mins: 16 or 32

	Scale, Min   float32
	Scales, Mins [superGroup / 16]int8
	HasMin       bool
	Codes        [superGroup]int8
}

// SplitGroup takes one stored group of a quantized type apart.
//
// b must hold Layout's bytes, and the type must be Quantized.
func SplitGroup(t TensorType, b []byte, g *Group) { types[t].split(b, g) }

// floats writes the values of the group.
func (g *Group) floats(dst []float32) {
	for i, c := range g.Codes[:g.Len] {
		s := g.Scale * float32(g.Scales[i/g.Step])
		v := float32(s * float32(c))
		if g.HasMin {
			v += float32(g.Min * float32(g.Mins[i/g.Step]))
		}
		dst[i] = v
	}
}

func f16(b []byte) float32 { return quant.F16ToF32(binary.LittleEndian.Uint16(b)) }

// simple describes a group of 32 with one scale, and no minimum.
func (g *Group) simple(scale float32) {
	g.Len, g.Step, g.Scale, g.HasMin = GroupSize, GroupSize, scale, false
	g.Scales[0], g.Mins[0] = 1, 1
}

// nibbles writes codes whose low halves are the first 16 values, less an offset.
func nibbles(dst []int8, packed []byte, offset int8) {
	half := len(packed)
	for i, p := range packed {
		dst[i] = int8(p&15) - offset
		dst[i+half] = int8(p>>4) - offset
	}
}

func splitQ4_0(b []byte, g *Group) {
	g.simple(f16(b))
	nibbles(g.Codes[:], b[2:18], 8)
}

func splitQ4_1(b []byte, g *Group) {
	g.simple(f16(b))
	g.Min, g.HasMin = f16(b[2:]), true
	nibbles(g.Codes[:], b[4:20], 0)
}

// fifths adds the fifth bits of 32 codes.
func fifths(dst []int8, bits uint32) {
	for i := range dst[:GroupSize] {
		dst[i] += int8(bits>>i&1) << 4
	}
}

func splitQ5_0(b []byte, g *Group) {
	g.simple(f16(b))
	nibbles(g.Codes[:], b[6:22], 16)
	fifths(g.Codes[:], binary.LittleEndian.Uint32(b[2:]))
}

func splitQ5_1(b []byte, g *Group) {
	g.simple(f16(b))
	g.Min, g.HasMin = f16(b[2:]), true
	nibbles(g.Codes[:], b[8:24], 0)
	fifths(g.Codes[:], binary.LittleEndian.Uint32(b[4:]))
}

func splitQ8_0(b []byte, g *Group) {
	g.simple(f16(b))
	for i, c := range b[2:34] {
		g.Codes[i] = int8(c)
	}
}

// super describes a group of 256.
func (g *Group) super(step int, scale float32) {
	g.Len, g.Step, g.Scale, g.HasMin = superGroup, step, scale, false
}

// twoBits writes 256 codes of 2 bits: each 32 bytes hold four runs of 32.
func twoBits(dst []int8, packed []byte) {
	for i := range superGroup {
		dst[i] = int8(packed[i/128*32+i%32] >> (i / 32 % 4 * 2) & 3)
	}
}

func splitQ2K(b []byte, g *Group) {
	g.super(16, f16(b[80:]))
	g.Min, g.HasMin = -f16(b[82:]), true
	for i, s := range b[:16] {
		g.Scales[i], g.Mins[i] = int8(s&15), int8(s>>4)
	}
	twoBits(g.Codes[:], b[16:80])
}

func splitQ3K(b []byte, g *Group) {
	g.super(16, f16(b[108:]))
	high, scales := b[:32], b[96:108]
	for i := range g.Scales {
		low := scales[i%8] >> (i / 8 * 4) & 15
		g.Scales[i] = int8(low|scales[8+i%4]>>(i/4*2)&3<<4) - 32
	}
	twoBits(g.Codes[:], b[32:96])
	for i := range g.Codes { // a bit that is not set takes 4 off
		g.Codes[i] -= int8(^high[i%32]>>(i/32)&1) << 2
	}
}

// sixBits unpacks the 8 scales and 8 minima of Q4_K and Q5_K.
func (g *Group) sixBits(b []byte) {
	for i := range 4 {
		g.Scales[i], g.Mins[i] = int8(b[i]&63), int8(b[i+4]&63)
		g.Scales[i+4] = int8(b[i+8]&15 | b[i]>>6<<4)
		g.Mins[i+4] = int8(b[i+8]>>4 | b[i+4]>>6<<4)
	}
}

func splitQ4K(b []byte, g *Group) {
	g.super(32, f16(b))
	g.Min, g.HasMin = -f16(b[2:]), true
	g.sixBits(b[4:16])
	for i := 0; i < superGroup; i += 64 {
		nibbles(g.Codes[i:], b[16+i/2:][:32], 0)
	}
}

func splitQ5K(b []byte, g *Group) {
	g.super(32, f16(b))
	g.Min, g.HasMin = -f16(b[2:]), true
	g.sixBits(b[4:16])
	for i := 0; i < superGroup; i += 64 {
		nibbles(g.Codes[i:], b[48+i/2:][:32], 0)
	}
	for i := range g.Codes {
		g.Codes[i] += int8(b[16+i%32]>>(i/32)&1) << 4
	}
}

func splitQ6K(b []byte, g *Group) {
	g.super(16, f16(b[208:]))
	for i := range g.Scales {
		g.Scales[i] = int8(b[192+i])
	}
	low, high := b[:128], b[128:192]
	for i := range g.Codes {
		c := low[i/128*64+i%64] >> (i / 64 % 2 * 4) & 15
		h := high[i/128*32+i%32] >> (i / 32 % 4 * 2) & 3
		g.Codes[i] = int8(c|h<<4) - 32
	}
}

// CodesIQ4 and CodesMXFP4 are the weights that the codes of IQ4_NL and IQ4_XS, and of MXFP4, stand
// for. Those of MXFP4 are twice the numbers of the OCP Microscaling format E2M1, so that they are
// whole.
var (
	CodesIQ4 = [16]int8{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

	CodesMXFP4 = [16]int8{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}
)

// table replaces each of n codes by its value in t.
func (g *Group) table(n int, t *[16]int8) {
	for i := range g.Codes[:n] {
		g.Codes[i] = t[g.Codes[i]]
	}
}

func splitIQ4NL(b []byte, g *Group) {
	g.simple(f16(b))
	nibbles(g.Codes[:], b[2:18], 0)
	g.table(GroupSize, &CodesIQ4)
}

func splitIQ4XS(b []byte, g *Group) {
	g.super(32, f16(b))
	high := binary.LittleEndian.Uint16(b[2:])
	for i := range superGroup / 32 {
		g.Scales[i] = int8(b[4+i/2]>>(i%2*4)&15|uint8(high>>(2*i)&3)<<4) - 32
		nibbles(g.Codes[32*i:], b[8+16*i:][:16], 0)
	}
	g.table(superGroup, &CodesIQ4)
}

// splitMXFP4: the scale is 2^(e-128), half of what E8M0 says, since the codes are doubled.
func splitMXFP4(b []byte, g *Group) {
	bits := uint32(0x00200000) << (b[0] & 1) // subnormal
	if b[0] > 1 {
		bits = (uint32(b[0]) - 1) << 23
	}
	g.simple(math.Float32frombits(bits))
	nibbles(g.Codes[:], b[1:17], 0)
	g.table(GroupSize, &CodesMXFP4)
}
