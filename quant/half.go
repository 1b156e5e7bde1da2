// SPDX-License-Identifier: Apache-2.0

package quant

import "math"

// F16ToF32 converts a binary16 exactly. NaN payloads are kept.
func F16ToF32(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp := uint32(h>>10) & 0x1f
	man := uint32(h & 0x3ff)
	switch {
	case exp == 0x1f: // Inf, NaN
		return math.Float32frombits(sign | 0x7f800000 | man<<13)
	case exp != 0:
		return math.Float32frombits(sign | (exp+112)<<23 | man<<13)
	case man == 0:
		return math.Float32frombits(sign)
	}
	// A subnormal is man * 2^-24, exact in float32.
	v := float32(man) * (1.0 / (1 << 24))
	return math.Float32frombits(math.Float32bits(v) | sign)
}

// F32ToF16 rounds to the nearest binary16, ties to even. Magnitudes from 65520 up become an
// infinity; a NaN keeps its sign and its upper payload bits and stays a NaN.
func F32ToF16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000: // NaN
		m := uint16(b>>13) & 0x3ff
		if m == 0 {
			m = 0x200 // the payload lies in the bits that go: any payload keeps it a NaN
		}
		return sign | 0x7c00 | m
	case b >= 0x477ff000: // 65520 and up
		return sign | 0x7c00
	case b < 0x38800000: // below 2^-14: subnormal or zero
		// Adding 2^-1 puts the value's 2^-24 unit at the last bit of the sum, which the hardware
		// rounds to even.
		v := math.Float32frombits(b) + 0.5
		return sign | uint16(math.Float32bits(v)-0x3f000000)
	}
	b += 0xfff + (b>>13)&1 // round half to even at bit 13
	return sign | uint16((b-0x38000000)>>13)
}

// BF16ToF32 converts a bfloat16 exactly.
func BF16ToF32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F32ToBF16 rounds to the nearest bfloat16, ties to even. A NaN stays a NaN.
func F32ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7fffffff > 0x7f800000 {
		h := uint16(b >> 16)
		if h&0x7f == 0 {
			h |= 0x40
		}
		return h
	}
	return uint16((b + 0x7fff + (b>>16)&1) >> 16)
}

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }

func sqrt32(x float32) float32 { return float32(math.Sqrt(float64(x))) }
