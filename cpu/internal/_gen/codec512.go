// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// codec512 writes the kernels of encoding and decoding for AVX-512 with VBMI and GFNI.
func codec512() {
	for _, n := range []int{8, 16, 32, 64, 128, 256} {
		hadamard512(n, false)
		hadamard512(n, true)
	}
	butterflies512()
	peaks512()
	scaleRows512()
	for bits := 1; bits <= 4; bits++ {
		quantizeLM512(bits)
	}
	quantizeU8512()
	for bits := 1; bits <= 4; bits++ {
		decodePlanes512(bits)
	}
	decodeU8512()
	demote512()
}

// signs512 is +1 where bit h of the lane is 0 and -1 where it is 1.
func signs512(h int) VecVirtual {
	s := make([]float32, 16)
	for i := range s {
		s[i] = 1
		if i&h != 0 {
			s[i] = -1
		}
	}
	z := ZMM()
	VMOVUPS(floatsConstant(fmt.Sprintf("signs%d", h), s), z)
	return z
}

// within512 runs the butterflies of strides 1 to most within each vector: x = swapped + x*(+-1),
// where the fused product is exact.
func within512(v []VecVirtual, most int) {
	for h := 1; h <= most; h *= 2 {
		sign := signs512(h)
		for i := range v {
			u := ZMM()
			switch h {
			case 1:
				VPERMILPS(Imm(0xb1), v[i], u)
			case 2:
				VPERMILPS(Imm(0x4e), v[i], u)
			case 4:
				VSHUFF64X2(Imm(0xb1), v[i], v[i], u)
			case 8:
				VSHUFF64X2(Imm(0x4e), v[i], v[i], u)
			}
			VFMADD213PS(u, sign, v[i])
		}
	}
}

// across512 runs the butterflies of strides 16 and up across vectors.
func across512(v []VecVirtual) {
	for h := 1; h < len(v); h *= 2 {
		for i := range v {
			if i&h == 0 {
				d := ZMM()
				VSUBPS(v[i+h], v[i], d)
				VADDPS(v[i+h], v[i], v[i])
				v[i+h] = d
			}
		}
	}
}

// hadamard512 transforms windows of n values.
func hadamard512(n int, inverse bool) {
	name, what := fmt.Sprintf("forward%dAVX512", n), "flips signs, then transforms and scales"
	if inverse {
		name, what = fmt.Sprintf("inverse%dAVX512", n), "transforms and scales, then flips signs of"
	}
	function(name, "func(x *float32, signs *uint32, rows, stride, signStride int, norm float32)",
		fmt.Sprintf("%s %s rows of %d values that lie stride bytes apart; signs has the sign bits, "+
			"signStride bytes further for the next row.", name, what, n))
	x, signs, rows := load("x"), load("signs"), load("rows")
	stride, signStride := load("stride"), load("signStride")
	norm := ZMM()
	VBROADCASTSS(param("norm"), norm)
	var k Register
	if n == 8 {
		k = K()
		m := GP32()
		MOVL(U32(0xff), m)
		KMOVW(m, k)
	}
	vectors := (n + 15) / 16
	move := func(i int) Mem { return Mem{Base: x, Disp: 64 * i} }
	sign := func(i int) Mem { return Mem{Base: signs, Disp: 64 * i} }
	flip := func(i int, z VecVirtual) {
		if n == 8 {
			s := ZMM()
			VMOVDQU32_Z(sign(i), k, s)
			VPXORD(s, z, z)
			return
		}
		VPXORD(sign(i), z, z)
	}
	times("row", rows, func() {
		v := zmms(vectors)
		for i, z := range v {
			if n == 8 {
				VMOVUPS_Z(move(i), k, z)
			} else {
				VMOVUPS(move(i), z)
			}
			if !inverse {
				flip(i, z)
			}
		}
		within512(v, min(8, n/2))
		across512(v)
		for i, z := range v {
			VMULPS(norm, z, z)
			if inverse {
				flip(i, z)
			}
			if n == 8 {
				VMOVUPS(z, k, move(i))
			} else {
				VMOVUPS(z, move(i))
			}
		}
		ADDQ(stride, x)
		ADDQ(signStride, signs)
	})
	VZEROUPPER()
	RET()
}

// butterflies512 is one pass of a longer transform.
func butterflies512() {
	function("butterfliesAVX512", "func(x *float32, h, pairs int, factor float32)",
		"butterfliesAVX512 runs the butterflies of stride h bytes, a multiple of 64, over pairs "+
			"times 2h bytes, and multiplies with factor.")
	x, h, pairs := load("x"), load("h"), load("pairs")
	f := ZMM()
	VBROADCASTSS(param("factor"), f)
	times("pair", pairs, func() {
		n := GP64()
		MOVQ(h, n)
		SHRQ(Imm(6), n)
		times("value", n, func() {
			a, b, s, d := ZMM(), ZMM(), ZMM(), ZMM()
			VMOVUPS(Mem{Base: x}, a)
			VMOVUPS(Mem{Base: x, Index: h, Scale: 1}, b)
			VADDPS(b, a, s)
			VSUBPS(b, a, d)
			VMULPS(f, s, s)
			VMULPS(f, d, d)
			VMOVUPS(s, Mem{Base: x})
			VMOVUPS(d, Mem{Base: x, Index: h, Scale: 1})
			ADDQ(Imm(64), x)
		})
		ADDQ(h, x)
	})
	VZEROUPPER()
	RET()
}

// abs512 returns a vector with all bits but the sign.
func abs512() VecVirtual {
	z := ZMM()
	VPBROADCASTQ(constant("absBits", 0x7fffffff7fffffff), z)
	return z
}

func peaks512() {
	function("peaksAVX512", "func(peaks *uint32, x *float32, rows, n, stride int)",
		"peaksAVX512 writes the largest magnitude, as bits, of rows of n times 16 values.")
	peaks, x, rows := load("peaks"), load("x"), load("rows")
	n, stride := load("n"), load("stride")
	abs := abs512()
	times("row", rows, func() {
		m, p, i := ZMM(), GP64(), GP64()
		VPXORD(m, m, m)
		MOVQ(x, p)
		MOVQ(n, i)
		times("value", i, func() {
			z := ZMM()
			VPANDD(Mem{Base: p}, abs, z)
			VPMAXUD(z, m, m)
			ADDQ(Imm(64), p)
		})
		top := reduce512(m, func(a, b, d Op) { VPMAXUD(a, b, d) })
		VMOVD(top, Mem{Base: peaks})
		ADDQ(Imm(4), peaks)
		ADDQ(stride, x)
	})
	VZEROUPPER()
	RET()
}

func scaleRows512() {
	function("scaleRowsAVX512", "func(x, factors *float32, rows, n, stride int)",
		"scaleRowsAVX512 multiplies rows of n times 16 values with a factor each.")
	x, factors, rows := load("x"), load("factors"), load("rows")
	n, stride := load("n"), load("stride")
	times("row", rows, func() {
		f, p, i := ZMM(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: factors}, f)
		MOVQ(x, p)
		MOVQ(n, i)
		times("value", i, func() {
			z := ZMM()
			VMULPS(Mem{Base: p}, f, z)
			VMOVUPS(z, Mem{Base: p})
			ADDQ(Imm(64), p)
		})
		ADDQ(Imm(4), factors)
		ADDQ(stride, x)
	})
	VZEROUPPER()
	RET()
}

// treeSum512 adds up tmp[n] vectors in the order of the formats: x[i] += x[i+h] for h from half the
// power of two from n up, down to 1. half is that h in vectors (0 for one vector). It destroys
// tmp and returns the sum in the first lane.
func treeSum512(name string, tmp, n, half Register) VecVirtual {
	h, left := GP64(), GP64()
	MOVQ(half, h)
	MOVQ(n, left)
	Label(name + "stride")
	TESTQ(h, h)
	JZ(LabelRef(name + "lanes"))
	count, p, q := GP64(), GP64(), GP64()
	MOVQ(left, count)
	SUBQ(h, count) // pairs that exist
	MOVQ(tmp, p)
	MOVQ(h, q)
	SHLQ(Imm(6), q)
	Label(name + "pair")
	z := ZMM()
	VMOVUPS(Mem{Base: p}, z)
	VADDPS(Mem{Base: p, Index: q, Scale: 1}, z, z)
	VMOVUPS(z, Mem{Base: p})
	ADDQ(Imm(64), p)
	SUBQ(Imm(1), count)
	JNZ(LabelRef(name + "pair"))
	MOVQ(h, left)
	SHRQ(Imm(1), h)
	JMP(LabelRef(name + "stride"))
	Label(name + "lanes")
	s := ZMM()
	VMOVUPS(Mem{Base: tmp}, s)
	return reduce512(s, func(a, b, d Op) { VADDPS(a, b, d) })
}

// decodePlanes512 writes values of rows in bit planes in their order, with their scale: 64 values
// at a time, of which the last of a row may be fewer in the planes; dst has room for 64.
func decodePlanes512(bits int) {
	name := fmt.Sprintf("decodeLM%dAVX512", bits)
	control := make([]byte, 64)
	for k := range 8 {
		for p := range bits {
			control[8*k+7-(bits-1-p)] = byte(8*p + k)
		}
	}
	controlMem := bytesConstant(fmt.Sprintf("decode%d", bits), control)
	var owns uint64 // other bytes are zero: codes have no bits but their own
	for k := range 8 {
		for p := range bits {
			owns |= 1 << (8*k + 7 - (bits - 1 - p))
		}
	}
	spread := make([]byte, 256)
	for j := range 4 {
		for l := range 16 {
			spread[64*j+4*l] = byte(16*j + l)
		}
	}
	spreadMem := bytesConstant("spread16", spread)
	unit := constant("unitBits", 0x8040201008040201)
	function(name, "func(dst *float32, src *byte, plane, rowBytes int, table, units *float32, "+
		"rows, blocks, stride int)",
		name+" writes units[row]*table[code] of rows of blocks times 64 values, which lie stride "+
			"bytes apart in dst and rowBytes apart in every plane; up to 7 bytes after a row are read.")
	dst, src, plane, rowBytes := load("dst"), load("src"), load("plane"), load("rowBytes")
	tablePtr, units := load("table"), load("units")
	rows, blocks, stride := load("rows"), load("blocks"), load("stride")
	table, bit, ctl := ZMM(), ZMM(), ZMM()
	VMOVUPS(Mem{Base: tablePtr}, table)
	VPBROADCASTQ(unit, bit)
	VMOVDQU64(controlMem, ctl)
	own, one := K(), K()
	g := GP64()
	MOVQ(U64(owns), g)
	KMOVQ(g, own)
	MOVQ(U64(0x1111111111111111), g)
	KMOVQ(g, one)
	spreads := zmms(4)
	for j, s := range spreads {
		VMOVDQU64(at(spreadMem, 64*j), s)
	}
	plane3 := GP64()
	LEAQ(Mem{Base: plane, Index: plane, Scale: 2}, plane3)
	times("row", rows, func() {
		u, s, d, n := ZMM(), GP64(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: units}, u)
		// The table times the scale of the row: the rounding is that of the oracle.
		t := ZMM()
		VMULPS(table, u, t)
		MOVQ(src, s)
		MOVQ(dst, d)
		MOVQ(blocks, n)
		times("block", n, func() {
			lo, hi, y := XMM(), XMM(), YMM()
			VMOVQ(Mem{Base: s}, lo)
			if bits > 1 {
				VMOVHPS(Mem{Base: s, Index: plane, Scale: 1}, lo, lo)
			}
			if bits > 2 {
				VMOVQ(Mem{Base: s, Index: plane, Scale: 2}, hi)
				if bits > 3 {
					VMOVHPS(Mem{Base: s, Index: plane3, Scale: 1}, hi, hi)
				}
				VINSERTI32X4(Imm(1), hi, lo.AsY(), y)
			} else {
				VMOVDQA64(lo.AsY(), y)
			}
			c := ZMM()
			VPERMB_Z(y.AsZ(), ctl, own, c)
			VGF2P8AFFINEQB(Imm(0), c, bit, c)
			for j := range 4 {
				z := ZMM()
				VPERMB_Z(c, spreads[j], one, z)
				VPERMPS(t, z, z)
				VMOVUPS(z, Mem{Base: d, Disp: 64 * j})
			}
			ADDQ(Imm(8), s)
			ADDQ(U32(256), d)
		})
		ADDQ(Imm(4), units)
		ADDQ(rowBytes, src)
		ADDQ(stride, dst)
	})
	VZEROUPPER()
	RET()
}

func decodeU8512() {
	function("decodeU8AVX512",
		"func(dst *float32, src *byte, units *float32, rows, n, odd, stride int)",
		"decodeU8AVX512 writes units[row]*(code-128) of rows of n times 16 values (of 8 fewer in src "+
			"where odd is 1), which lie stride bytes apart in dst.")
	dst, src, units, rows := load("dst"), load("src"), load("units"), load("rows")
	n, odd, stride := load("n"), load("odd"), load("stride")
	bias, g := ZMM(), GP32()
	MOVL(U32(128), g)
	VPBROADCASTD(g, bias)
	SUBQ(odd, n)
	times("row", rows, func() {
		u, d, i := ZMM(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: units}, u)
		MOVQ(dst, d)
		MOVQ(n, i)
		store := func(z VecVirtual) {
			VPSUBD(bias, z, z)
			VCVTDQ2PS(z, z)
			VMULPS(u, z, z)
			VMOVUPS(z, Mem{Base: d})
		}
		TESTQ(i, i)
		JZ(LabelRef("tail"))
		times("chunk", i, func() {
			z := ZMM()
			VPMOVZXBD(Mem{Base: src}, z)
			store(z)
			ADDQ(Imm(64), d)
			ADDQ(Imm(16), src)
		})
		Label("tail")
		TESTQ(odd, odd)
		JZ(LabelRef("next"))
		x, z := XMM(), ZMM()
		VMOVQ(Mem{Base: src}, x)
		VPMOVZXBD(x, z)
		store(z)
		ADDQ(Imm(8), src)
		Label("next")
		ADDQ(Imm(4), units)
		ADDQ(stride, dst)
	})
	VZEROUPPER()
	RET()
}
