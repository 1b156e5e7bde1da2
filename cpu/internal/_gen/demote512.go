// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// demote512 writes the kernels of demotion for AVX-512 with VPOPCNTDQ.
func demote512() {
	for bits := 2; bits <= 4; bits++ {
		countPlanes512(bits)
	}
	ratios512()
	log8Codes512()
}

// countPlanes512 counts, in words of 64 values, how many have which bits of their magnitude, and
// weighs the counts.
func countPlanes512(bits int) {
	name := fmt.Sprintf("countLM%dAVX512", bits)
	function(name, "func(xx, xc, cc *int32, src *byte, plane int, weights *uint32, groups int)",
		name+" writes three weighted sums of counts for each of groups times 8 words of 64 codes. "+
			"weights holds, per sum, words of two weights of 16 bits: of the counts of values with "+
			"magnitude bits 1 and 2, 3 and 4, and so on; the last one is of all 64.")
	xx, xc, cc := load("xx"), load("xc"), load("cc")
	src, plane, weights, groups := load("src"), load("plane"), load("weights"), load("groups")
	low := bits - 1
	pairs := 1 << low / 2
	plane3 := GP64()
	LEAQ(Mem{Base: plane, Index: plane, Scale: 2}, plane3)
	w := make([][]VecVirtual, 3)
	for s := range w {
		w[s] = zmms(pairs)
		for p := range w[s] {
			VPBROADCASTD(Mem{Base: weights, Disp: 4 * (4*s + p)}, w[s][p])
		}
	}
	all := ZMM()
	VPBROADCASTQ(constant("all64", 64<<16), all)
	place := planeAddress(src, plane, plane3)
	times("group", groups, func() {
		sign := ZMM()
		VMOVDQU64(place(0), sign)
		n := make([]VecVirtual, 1<<low) // by set of bits, [0] not used
		for b := range low {
			m := ZMM()
			VMOVDQU64(place(low-b), m)
			// The magnitude of a negative value, whose sign bit is 0, stands complemented.
			VPTERNLOGQ(Imm(0x81), sign, m, m)
			n[1<<b] = m
		}
		for s := 3; s < len(n); s++ {
			if s&(s-1) != 0 {
				n[s] = ZMM()
				high := 4
				for s&high == 0 {
					high /= 2
				}
				VPANDQ(n[high], n[s^high], n[s])
			}
		}
		for s := 1; s < len(n); s++ {
			VPOPCNTQ(n[s], n[s])
		}
		sums := zmms(3)
		for p := range pairs {
			a, b := n[2*p+1], all
			if 2*p+2 < len(n) {
				b = n[2*p+2]
				VPSLLD(Imm(16), b, b)
			}
			VPORQ(b, a, a)
			for s := range sums {
				if p == 0 {
					VPMADDWD(w[s][p], a, sums[s])
					continue
				}
				t := ZMM()
				VPMADDWD(w[s][p], a, t)
				VPADDD(t, sums[s], sums[s])
			}
		}
		for s, p := range []Register{xx, xc, cc} {
			VPMOVQD(sums[s], Mem{Base: p})
			ADDQ(Imm(32), p)
		}
		ADDQ(Imm(64), src)
	})
	VZEROUPPER()
	RET()
}

// ratios512 multiplies scales by what the rule makes of the sums.
func ratios512() {
	function("ratiosAVX512", "func(scales *float32, xx, xc, cc *int32, rule, n int)",
		"ratiosAVX512 multiplies n times 16 scales with xc/cc (rule 0), sqrt(xx/cc) (1) or xx/xc "+
			"(2). A scale of 0 stays.")
	scales, xx, xc, cc := load("scales"), load("xx"), load("xc"), load("cc")
	rule, n := load("rule"), load("n")
	zero := ZMM()
	VPXORD(zero, zero, zero)
	times("loop", n, func() {
		a, b, c, s := ZMM(), ZMM(), ZMM(), ZMM()
		VCVTDQ2PS(Mem{Base: xx}, a)
		VCVTDQ2PS(Mem{Base: xc}, b)
		VCVTDQ2PS(Mem{Base: cc}, c)
		VMOVUPS(Mem{Base: scales}, s)
		r, k := ZMM(), K()
		CMPQ(rule, Imm(1))
		JEQ(LabelRef("length"))
		JGT(LabelRef("product"))
		VDIVPS(c, b, r)
		JMP(LabelRef("scale"))
		Label("length")
		VDIVPS(c, a, r)
		VSQRTPS(r, r)
		JMP(LabelRef("scale"))
		Label("product")
		VDIVPS(b, a, r)
		Label("scale")
		VCMPPS(Imm(4), zero, s, k)
		VMULPS(r, s, k, s)
		VMOVUPS(s, Mem{Base: scales})
		for _, p := range []Register{scales, xx, xc, cc} {
			ADDQ(Imm(64), p)
		}
	})
	VZEROUPPER()
	RET()
}

// log8Codes512 finds 8-bit logarithms: a guess from the bits of base/s, which is a step off at
// most, then the bounds beside it.
func log8Codes512() {
	function("log8CodesAVX512",
		"func(dst *byte, scales *float32, base float32, n int, mid *float32, guess *byte)",
		"log8CodesAVX512 writes the logarithms of n scales below base. scales is read up to a "+
			"multiple of 16.")
	dst, scales, n := load("dst"), load("scales"), load("n")
	mid, guess := load("mid"), load("guess")
	base, bounds, table, zero := ZMM(), ZMM(), ZMM(), ZMM()
	VBROADCASTSS(param("base"), base)
	VMOVUPS(Mem{Base: mid}, bounds)
	VMULPS(base, bounds, bounds)
	VMOVDQU64(Mem{Base: guess}, table)
	VPXORD(zero, zero, zero)
	dword := func(x uint32) VecVirtual {
		z, g := ZMM(), GP32()
		MOVL(U32(x), g)
		VPBROADCASTD(g, z)
		return z
	}
	bias, low6, most, one, none := dword(127), dword(63), dword(254), dword(1), dword(255)
	bytes := K()
	g := GP64()
	MOVQ(U64(0x1111111111111111), g)
	KMOVQ(g, bytes)
	bound := func(k VecVirtual) VecVirtual { // base*mid[k%16] * 2^-(k/16)
		b, e := ZMM(), ZMM()
		VPERMPS(bounds, k, b)
		VPSRLD(Imm(4), k, e)
		VPSUBD(e, bias, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, b, b)
		return b
	}
	Label("loop")
	cx := RCX
	MOVQ(n, cx)
	CMPQ(cx, Imm(16))
	JLE(LabelRef("part"))
	MOVQ(U32(16), cx)
	Label("part")
	mask, k := GP64(), K()
	MOVQ(U32(1), mask)
	SHLQ(CL, mask)
	SUBQ(Imm(1), mask)
	KMOVW(mask.As32(), k)
	s, r, e, t := ZMM(), ZMM(), ZMM(), ZMM()
	VMOVUPS(Mem{Base: scales}, s)
	VDIVPS(s, base, r)
	VPSRLD(Imm(23), r, e)
	VPSUBD(bias, e, e)
	VPSLLD(Imm(4), e, e)
	VPSRLD(Imm(17), r, t)
	VPANDD(low6, t, t)
	VPERMB_Z(table, t, bytes, t)
	VPADDD(t, e, e)
	VPMAXSD(one, e, e)
	VPMINSD(most, e, e)
	VPSUBD(one, e, t) // the guess less one
	below := K()
	VCMPPS(Imm(1), bound(t), s, below)
	VCMPPS(Imm(1), bound(e), s, k, k)
	VPADDD(one, t, below, t)
	VPADDD(one, t, k, t)
	VPMINSD(most, t, t)
	VCMPPS(Imm(0), zero, s, below)
	VMOVDQA32(none, below, t)
	KMOVW(mask.As32(), k)
	VPMOVDB(t, k, Mem{Base: dst})
	ADDQ(Imm(64), scales)
	ADDQ(Imm(16), dst)
	SUBQ(Imm(16), n)
	JG(LabelRef("loop"))
	VZEROUPPER()
	RET()
}
