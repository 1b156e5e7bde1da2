// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// codec256 writes the kernels of encoding and decoding for AVX2 with FMA.
func codec256() {
	for _, n := range []int{8, 16, 32, 64} {
		hadamard256(n, false)
		hadamard256(n, true)
	}
	butterflies256()
	peaks256()
	scaleRows256()
	for bits := 1; bits <= 4; bits++ {
		quantizeLM256(bits)
	}
	quantizeU8256()
	for bits := 1; bits <= 4; bits++ {
		decodePlanes256(bits)
	}
	decodeU8256()
	toF16256()
}

// hadamard256 transforms windows of n values.
func hadamard256(n int, inverse bool) {
	name, what := fmt.Sprintf("forward%dAVX2", n), "flips signs, then transforms and scales"
	if inverse {
		name, what = fmt.Sprintf("inverse%dAVX2", n), "transforms and scales, then flips signs of"
	}
	function(name, "func(x *float32, signs *uint32, rows, stride, signStride int, norm float32)",
		fmt.Sprintf("%s %s rows of %d values that lie stride bytes apart; signs has the sign bits, "+
			"signStride bytes further for the next row.", name, what, n))
	x, signs, rows := load("x"), load("signs"), load("rows")
	stride, signStride := load("stride"), load("signStride")
	norm := YMM()
	VBROADCASTSS(param("norm"), norm)
	times("row", rows, func() {
		v := ymms(n / 8)
		for i, y := range v {
			VMOVUPS(Mem{Base: x, Disp: 32 * i}, y)
			if !inverse {
				VXORPS(Mem{Base: signs, Disp: 32 * i}, y, y)
			}
		}
		for h := 1; h <= 4; h *= 2 {
			s := make([]float32, 16)
			for i := range s {
				s[i] = 1
				if i&h != 0 {
					s[i] = -1
				}
			}
			sign := floatsConstant(fmt.Sprintf("signs%d", h), s)
			for i := range v {
				u, w := YMM(), YMM()
				switch h {
				case 1:
					VPERMILPS(Imm(0xb1), v[i], u)
				case 2:
					VPERMILPS(Imm(0x4e), v[i], u)
				case 4:
					VPERM2F128(Imm(1), v[i], v[i], u)
				}
				VMOVUPS(sign, w)
				VFMADD213PS(u, w, v[i]) // the fused product with +-1 is exact
			}
		}
		for h := 1; h < len(v); h *= 2 {
			for i := range v {
				if i&h == 0 {
					d := YMM()
					VSUBPS(v[i+h], v[i], d)
					VADDPS(v[i+h], v[i], v[i])
					v[i+h] = d
				}
			}
		}
		for i, y := range v {
			VMULPS(norm, y, y)
			if inverse {
				VXORPS(Mem{Base: signs, Disp: 32 * i}, y, y)
			}
			VMOVUPS(y, Mem{Base: x, Disp: 32 * i})
		}
		ADDQ(stride, x)
		ADDQ(signStride, signs)
	})
	VZEROUPPER()
	RET()
}

func butterflies256() {
	function("butterfliesAVX2", "func(x *float32, h, pairs int, factor float32)",
		"butterfliesAVX2 runs the butterflies of stride h bytes, a multiple of 32, over pairs "+
			"times 2h bytes, and multiplies with factor.")
	x, h, pairs := load("x"), load("h"), load("pairs")
	f := YMM()
	VBROADCASTSS(param("factor"), f)
	times("pair", pairs, func() {
		n := GP64()
		MOVQ(h, n)
		SHRQ(Imm(5), n)
		times("value", n, func() {
			a, b, s, d := YMM(), YMM(), YMM(), YMM()
			VMOVUPS(Mem{Base: x}, a)
			VMOVUPS(Mem{Base: x, Index: h, Scale: 1}, b)
			VADDPS(b, a, s)
			VSUBPS(b, a, d)
			VMULPS(f, s, s)
			VMULPS(f, d, d)
			VMOVUPS(s, Mem{Base: x})
			VMOVUPS(d, Mem{Base: x, Index: h, Scale: 1})
			ADDQ(Imm(32), x)
		})
		ADDQ(h, x)
	})
	VZEROUPPER()
	RET()
}

func peaks256() {
	function("peaksAVX2", "func(peaks *uint32, x *float32, rows, n, stride int)",
		"peaksAVX2 writes the largest magnitude, as bits, of rows of n times 8 values.")
	peaks, x, rows := load("peaks"), load("x"), load("rows")
	n, stride := load("n"), load("stride")
	abs := broadcastBits256(0x7fffffff)
	times("row", rows, func() {
		m, p, i := YMM(), GP64(), GP64()
		VPXOR(m, m, m)
		MOVQ(x, p)
		MOVQ(n, i)
		times("value", i, func() {
			y := YMM()
			VPAND(Mem{Base: p}, abs, y)
			VPMAXUD(y, m, m)
			ADDQ(Imm(32), p)
		})
		top := reduce256(m, func(a, b, d Op) { VPMAXUD(a, b, d) })
		VMOVD(top, Mem{Base: peaks})
		ADDQ(Imm(4), peaks)
		ADDQ(stride, x)
	})
	VZEROUPPER()
	RET()
}

func scaleRows256() {
	function("scaleRowsAVX2", "func(x, factors *float32, rows, n, stride int)",
		"scaleRowsAVX2 multiplies rows of n times 8 values with a factor each.")
	x, factors, rows := load("x"), load("factors"), load("rows")
	n, stride := load("n"), load("stride")
	times("row", rows, func() {
		f, p, i := YMM(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: factors}, f)
		MOVQ(x, p)
		MOVQ(n, i)
		times("value", i, func() {
			y := YMM()
			VMULPS(Mem{Base: p}, f, y)
			VMOVUPS(y, Mem{Base: p})
			ADDQ(Imm(32), p)
		})
		ADDQ(Imm(4), factors)
		ADDQ(stride, x)
	})
	VZEROUPPER()
	RET()
}

// treeSum256 is treeSum512 in vectors of 8.
func treeSum256(name string, tmp, n, half Register) VecVirtual {
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
	SHLQ(Imm(5), q)
	Label(name + "pair")
	y := YMM()
	VMOVUPS(Mem{Base: p}, y)
	VADDPS(Mem{Base: p, Index: q, Scale: 1}, y, y)
	VMOVUPS(y, Mem{Base: p})
	ADDQ(Imm(32), p)
	SUBQ(Imm(1), count)
	JNZ(LabelRef(name + "pair"))
	MOVQ(h, left)
	SHRQ(Imm(1), h)
	JMP(LabelRef(name + "stride"))
	Label(name + "lanes")
	s := YMM()
	VMOVUPS(Mem{Base: tmp}, s)
	return reduce256(s, func(a, b, d Op) { VADDPS(a, b, d) })
}

func decodePlanes256(bits int) {
	name := fmt.Sprintf("decodeLM%dAVX2", bits)
	function(name, "func(dst *float32, src *byte, plane, rowBytes int, table *int8, "+
		"units *float32, rows, blocks, stride int)",
		name+" writes units[row]*table[code], of a table of 16, of rows of blocks times 32 values, "+
			"which lie stride bytes apart in dst and rowBytes apart in every plane; up to 3 bytes "+
			"after a row are read.")
	dst, src, plane := load("dst"), load("src"), load("plane")
	tablePtr, units := load("table"), load("units")
	rows, blocks := load("rows"), load("blocks")
	c := newCodes256(bits)
	table := YMM()
	VBROADCASTI128(Mem{Base: tablePtr}, table)
	plane3 := GP64()
	LEAQ(Mem{Base: plane, Index: plane, Scale: 2}, plane3)
	times("row", rows, func() {
		u, s, d, n := YMM(), GP64(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: units}, u)
		MOVQ(src, s)
		MOVQ(dst, d)
		MOVQ(blocks, n)
		times("block", n, func() {
			y := c.gather(planeAddress(s, plane, plane3))
			VPSHUFB(y, table, y)
			widen256(y, func(i int, v VecVirtual) {
				VCVTDQ2PS(v, v)
				VMULPS(u, v, v)
				VMOVUPS(v, Mem{Base: d, Disp: 32 * i})
			})
			ADDQ(Imm(4), s)
			ADDQ(U32(128), d)
		})
		ADDQ(Imm(4), units)
		rowBytes, stride := load("rowBytes"), load("stride")
		ADDQ(rowBytes, src)
		ADDQ(stride, dst)
	})
	VZEROUPPER()
	RET()
}

func decodeU8256() {
	function("decodeU8AVX2", "func(dst *float32, src *byte, units *float32, rows, n, stride int)",
		"decodeU8AVX2 writes units[row]*(code-128) of rows of n times 8 values, which lie stride "+
			"bytes apart in dst.")
	dst, src, units, rows := load("dst"), load("src"), load("units"), load("rows")
	n, stride := load("n"), load("stride")
	bias := broadcastBits256(128)
	times("row", rows, func() {
		u, d, i := YMM(), GP64(), GP64()
		VBROADCASTSS(Mem{Base: units}, u)
		MOVQ(dst, d)
		MOVQ(n, i)
		times("chunk", i, func() {
			y := YMM()
			VPMOVZXBD(Mem{Base: src}, y)
			VPSUBD(bias, y, y)
			VCVTDQ2PS(y, y)
			VMULPS(u, y, y)
			VMOVUPS(y, Mem{Base: d})
			ADDQ(Imm(32), d)
			ADDQ(Imm(8), src)
		})
		ADDQ(Imm(4), units)
		ADDQ(stride, dst)
	})
	VZEROUPPER()
	RET()
}

func toF16256() {
	function("toF16AVX2", "func(dst *byte, src *float32, n int)",
		"toF16AVX2 rounds n times 8 values to binary16, ties to even.")
	dst, src, n := load("dst"), load("src"), load("n")
	times("loop", n, func() {
		y := YMM()
		VMOVUPS(Mem{Base: src}, y)
		VCVTPS2PH(Imm(0), y, Mem{Base: dst})
		ADDQ(Imm(32), src)
		ADDQ(Imm(16), dst)
	})
	VZEROUPPER()
	RET()
}

// codes256 gathers 32 codes from 4 bytes of each plane, one a byte, in order.
type codes256 struct {
	spread, bit VecVirtual
	weight      []VecVirtual
}

func newCodes256(bits int) codes256 {
	spread, bit := make([]byte, 32), make([]byte, 32)
	for i := range spread {
		spread[i], bit[i] = byte(i/8), 1<<(i%8)
	}
	c := codes256{spread: YMM(), bit: YMM()}
	VMOVDQU(bytesConstant("spread32", spread), c.spread)
	VMOVDQU(bytesConstant("bit32", bit), c.bit)
	for p := range bits {
		w := uint32(1) << (bits - 1 - p)
		c.weight = append(c.weight, broadcastBits256(w*0x01010101))
	}
	return c
}

func (c codes256) gather(planes func(p int) Mem) VecVirtual {
	var sum VecVirtual
	for p, w := range c.weight {
		y := YMM()
		VPBROADCASTD(planes(p), y)
		VPSHUFB(c.spread, y, y)
		VPAND(c.bit, y, y)
		VPCMPEQB(c.bit, y, y)
		VPAND(w, y, y)
		if sum == nil {
			sum = y
		} else {
			VPOR(y, sum, sum)
		}
	}
	return sum
}

// widen256 hands out the 32 bytes of y, sign-extended, eight at a time.
func widen256(y VecVirtual, each func(i int, v VecVirtual)) {
	for i := range 4 {
		x, v := XMM(), YMM()
		VEXTRACTI128(Imm(uint64(i/2)), y, x)
		if i%2 == 1 {
			VPSRLDQ(Imm(8), x, x)
		}
		VPMOVSXBD(x, v)
		each(i, v)
	}
}
