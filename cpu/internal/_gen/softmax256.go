// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// exp256 returns exp(x); keep is narrowed to the lanes where the result is a normal number or a
// NaN. x is used up; if small, it is at most topSlack. Constants are read from memory, for there are
// 16 registers only.
func exp256(x, keep VecVirtual, small bool) VecVirtual {
	c := eightFloats
	k := YMM()
	VCMPPS(Imm(5), c(-87.33654), x, k) // not less than: NaN stays
	VANDPS(k, keep, keep)
	floor := YMM()
	VMOVUPS(c(-87.33654), floor)
	VMAXPS(x, floor, x) // NaN stays
	if !small {
		ceiling := YMM()
		VMOVUPS(c(89), ceiling)
		VMINPS(x, ceiling, x)
	}
	n, p, r := YMM(), YMM(), YMM()
	VMULPS(c(1.44269504), x, n)
	VROUNDPS(Imm(8), n, n)
	VFNMADD231PS(c(0.693145751953125), n, x)
	VFNMADD231PS(c(1.42860677e-6), n, x)
	VMOVUPS(c(1.9875691500e-4), p)
	for _, v := range []float32{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
		1.6666665459e-1, 5.0000001201e-1} {
		VFMADD213PS(c(v), x, p)
	}
	VMULPS(x, x, r)
	VADDPS(c(1), x, x)
	VFMADD231PS(r, p, x)
	VCVTPS2DQ(n, n)
	factors := []VecVirtual{n}
	if !small { // 2^n in two factors, for n = 128 is the exponent of infinity
		half := YMM()
		VPSRAD(Imm(1), n, half)
		VPSUBD(half, n, n)
		factors = []VecVirtual{half, n}
	}
	for _, e := range factors {
		VPADDD(c(math.Float32frombits(127)), e, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, x, x)
	}
	return x
}

// eightFloats addresses eight times a float.
func eightFloats(v float32) Mem {
	s := make([]float32, 8)
	for i := range s {
		s[i] = v
	}
	return floatsConstant(fmt.Sprintf("eight%x", floatBits(v)), s)
}

func reduce256(y VecVirtual, op func(a, b, dst Op)) VecVirtual {
	x, t := XMM(), XMM()
	VEXTRACTF128(Imm(1), y, x)
	op(x, y.AsX(), x)
	VPERMILPS(Imm(0x4e), x, t)
	op(t, x, x)
	VPERMILPS(Imm(0xb1), x, t)
	op(t, x, x)
	return x
}

// scores256 returns the scores of eight rows of a head, and which of them have one.
func scores256(i int, dots, mul, add, noise Register, energy, mask VecVirtual) (x, ok VecVirtual) {
	bits := make([]uint32, 32)
	for j := range bits {
		bits[j] = 1 << j
	}
	table := dwordsConstant("rowBits", bits)
	x, ok = YMM(), YMM()
	VMOVDQU(at(table, 32*i), ok)
	b := YMM()
	VPAND(ok, mask, b)
	VPCMPEQD(ok, b, ok)
	m := YMM()
	VMOVUPS(Mem{Base: dots, Disp: 32 * i}, x)
	VMOVUPS(Mem{Base: mul, Disp: 32 * i}, m)
	VFMADD213PS(Mem{Base: add, Disp: 32 * i}, m, x)
	VFNMADD231PS(Mem{Base: noise, Disp: 32 * i}, energy, x)
	k := YMM()
	VCMPPS(Imm(4), infinite256(), x, k) // not equal: NaN stays
	VANDPS(k, ok, ok)
	return x, ok
}

// infinite256 addresses eight times minus infinity.
func infinite256() Mem {
	s := make([]float32, 8)
	for i := range s {
		s[i] = float32(math.Inf(-1))
	}
	return floatsConstant("minusInf", s)
}

func softmax256() {
	function("softmaxAVX2", "func(w, sums, tops, dots, mul, add, noise, scale, "+
		"energy *float32, masks *uint32, heads int, tmp *float32)",
		"softmaxAVX2 is softmaxAVX512; tmp is scratch of 64 floats.")
	w, sums, tops, dots := load("w"), load("sums"), load("tops"), load("dots")
	scale, energy, masks := load("scale"), load("energy"), load("masks")
	mul, add, noise, tmp := load("mul"), load("add"), load("noise"), load("tmp")
	Label("head")
	e, mask, m := YMM(), YMM(), YMM()
	VBROADCASTSS(Mem{Base: energy}, e)
	VPBROADCASTD(Mem{Base: masks}, mask)
	VMOVUPS(infinite256(), m)
	for i := range 4 {
		x, ok := scores256(i, dots, mul, add, noise, e, mask)
		VMOVUPS(x, Mem{Base: tmp, Disp: 32 * i})
		VMOVUPS(ok, Mem{Base: tmp, Disp: 128 + 32*i})
		inf := YMM()
		VMOVUPS(infinite256(), inf)
		VBLENDVPS(ok, x, inf, x)
		VMAXPS(m, x, m) // NaN gives way
	}
	t := YMM()
	VBROADCASTSS(Mem{Base: tops}, t)
	high, any := YMM(), GP32()
	VADDPS(eightFloats(topSlack), t, high)
	VCMPPS(Imm(14), high, m, high)
	VMOVMSKPS(high, any)
	TESTL(any, any)
	JZ(LabelRef("same")) // in most tiles no row is that far above those before
	top := reduce256(m, func(a, b, d Op) { VMAXPS(a, b, d) })
	VMOVSS(top, Mem{Base: tops})
	VBROADCASTSS(top, t)
	Label("same")
	sum := YMM()
	VXORPS(sum, sum, sum)
	live := GP32()
	XORL(live, live)
	for i := 3; i >= 0; i-- {
		x, ok := YMM(), YMM()
		VMOVUPS(Mem{Base: tmp, Disp: 32 * i}, x)
		VMOVUPS(Mem{Base: tmp, Disp: 128 + 32*i}, ok)
		VSUBPS(t, x, x)
		p := exp256(x, ok, true)
		VANDPS(ok, p, p)
		VADDPS(p, sum, sum)
		VMULPS(Mem{Base: scale, Disp: 32 * i}, p, p)
		VANDPS(ok, p, p)
		VMOVUPS(p, Mem{Base: w, Disp: 32 * i})
		bits := GP32()
		VMOVMSKPS(ok, bits)
		SHLL(Imm(8), live)
		ORL(bits, live)
	}
	MOVL(live, Mem{Base: masks})
	total := reduce256(sum, func(a, b, d Op) { VADDPS(a, b, d) })
	VMOVSS(total, Mem{Base: sums})
	ADDQ(U32(4*tileRows), w)
	ADDQ(U32(4*tileRows), dots)
	for _, r := range []Register{sums, tops, energy, masks} {
		ADDQ(Imm(4), r)
	}
	heads := load("heads")
	SUBQ(Imm(1), heads)
	Store(heads, Param("heads"))
	JNZ(LabelRef("head"))
	VZEROUPPER()
	RET()
}

func probs256() {
	function("probsAVX2", "func(acc *float64, dots, mul, add, noise, energy, "+
		"lse *float32, masks *uint32, heads, power int)", "probsAVX2 is probsAVX512.")
	acc, dots := load("acc"), load("dots")
	energy, lse, masks := load("energy"), load("lse"), load("masks")
	mul, add, noise := load("mul"), load("add"), load("noise")
	heads, power := load("heads"), load("power")
	times("head", heads, func() {
		e, mask, t := YMM(), YMM(), YMM()
		VBROADCASTSS(Mem{Base: energy}, e)
		VPBROADCASTD(Mem{Base: masks}, mask)
		VBROADCASTSS(Mem{Base: lse}, t)
		for i := range 4 {
			x, ok := scores256(i, dots, mul, add, noise, e, mask)
			VSUBPS(t, x, x)
			p := exp256(x, ok, false)
			VANDPS(ok, p, p)
			CMPQ(power, Imm(2))
			JNE(LabelRef(fmt.Sprintf("once%d", i)))
			VMULPS(p, p, p)
			Label(fmt.Sprintf("once%d", i))
			for half := range 2 {
				h, d := XMM(), YMM()
				VEXTRACTF128(Imm(uint64(half)), p, h)
				VCVTPS2PD(h, d)
				VADDPD(Mem{Base: acc, Disp: 64*i + 32*half}, d, d)
				VMOVUPD(d, Mem{Base: acc, Disp: 64*i + 32*half})
			}
		}
		ADDQ(U32(4*tileRows), dots)
		for _, r := range []Register{lse, energy, masks} {
			ADDQ(Imm(4), r)
		}
	})
	VZEROUPPER()
	RET()
}

func fold256() {
	function("foldAVX2", "func(sum *float64, acc *float32, n int)",
		"foldAVX2 adds n times 8 floats to doubles and clears them.")
	sum, acc, n := load("sum"), load("acc"), load("n")
	zero := YMM()
	VXORPS(zero, zero, zero)
	times("loop", n, func() {
		for i := range 2 {
			y := YMM()
			VCVTPS2PD(Mem{Base: acc, Disp: 16 * i}, y)
			VADDPD(Mem{Base: sum, Disp: 32 * i}, y, y)
			VMOVUPD(y, Mem{Base: sum, Disp: 32 * i})
		}
		VMOVUPS(zero, Mem{Base: acc})
		ADDQ(Imm(32), acc)
		ADDQ(Imm(64), sum)
	})
	VZEROUPPER()
	RET()
}

func square256() {
	function("squareAVX2", "func(dst, src *float32, factor float32)",
		"squareAVX2 writes factor*src^2, 32 values.")
	dst, src := load("dst"), load("src")
	f := YMM()
	VBROADCASTSS(param("factor"), f)
	for i := range 4 {
		y := YMM()
		VMOVUPS(Mem{Base: src, Disp: 32 * i}, y)
		VMULPS(y, y, y)
		VMULPS(f, y, y)
		VMOVUPS(y, Mem{Base: dst, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}
