// SPDX-License-Identifier: Apache-2.0

// Package half converts runs of binary16 to float32 and back, with the bits that package quant gives, and looks
// for what is not a number.
package half

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Widen converts little-endian binary16.
//
//	for i := range dst {
//		dst[i] = quant.F16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
//	}
//
// src: at least 2*len(dst) bytes.
func Widen(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for len(dst) > 0 {
		n := widen(dst, src) // stops where a value is Inf or NaN
		dst, src = dst[n:], src[2*n:]
		n = min(len(dst), lanes)
		widenGeneric(dst[:n], src)
		dst, src = dst[n:], src[2*n:]
	}
}

// Narrow rounds to little-endian binary16. What is finite stays finite: 65504 at most.
//
//	for i, v := range src {
//		if !math.IsInf(float64(v), 0) {
//			v = min(max(v, -65504), 65504)
//		}
//		binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(v))
//	}
//
// dst: at least 2*len(src) bytes.
func Narrow(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for len(src) > 0 {
		n := narrow(dst, src) // stops where a value is beyond 65504, or NaN
		dst, src = dst[2*n:], src[n:]
		n = min(len(src), lanes)
		narrowGeneric(dst, src[:n])
		dst, src = dst[2*n:], src[n:]
	}
}

// Finite reports whether no value is Inf or NaN.
func Finite(x []float32) bool {
	n, ok := finite(x)
	return ok && finiteGeneric(x[n:])
}

func finiteGeneric(x []float32) bool {
	var a, b, c, d uint32 // without their signs, those that are not finite are the largest
	for ; len(x) >= 4; x = x[4:] {
		v := (*[4]float32)(x)
		a, b = max(a, math.Float32bits(v[0])<<1), max(b, math.Float32bits(v[1])<<1)
		c, d = max(c, math.Float32bits(v[2])<<1), max(d, math.Float32bits(v[3])<<1)
	}
	for _, v := range x {
		a = max(a, math.Float32bits(v)<<1)
	}
	return max(a, b, c, d) < 0xff<<24
}

// lanes is how many values plain Go converts at a time where the fast way stopped.
const lanes = 64

func widenGeneric(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for i := range dst {
		h := binary.LittleEndian.Uint16(src[2*i:])
		if e := h & 0x7c00; e == 0 || e == 0x7c00 { // zeros, subnormals, Inf and NaN
			dst[i] = quant.F16ToF32(h)
			continue
		}
		// What quant.F16ToF32 does with all others.
		dst[i] = math.Float32frombits(uint32(h&0x8000)<<16 | (uint32(h&0x7fff)<<13 + 112<<23))
	}
}

func narrowGeneric(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for i, v := range src {
		// Between the subnormals and 65504 only the mantissa is rounded, as quant.F32ToF16 does it.
		if b := math.Float32bits(v); b&0x7fffffff-0x38800000 < 0x477fe000-0x38800000 {
			h := b>>16&0x8000 | (b&0x7fffffff+0xfff+b>>13&1-0x38000000)>>13
			binary.LittleEndian.PutUint16(dst[2*i:], uint16(h))
			continue
		}
		// Not a number stays one: it is in neither order.
		if v > 65504 && v <= math.MaxFloat32 {
			v = 65504
		} else if v < -65504 && v >= -math.MaxFloat32 {
			v = -65504
		}
		binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(v))
	}
}
