// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// quantizeLM512 writes the codes of rotated rows and what their scales are made of.
func quantizeLM512(bits int) {
	name := fmt.Sprintf("quantizeLM%dAVX512", bits)
	function(name, "func(planes *byte, plane, rowBytes int, y *float32, rows, stride, n, half, "+
		"odd int, dim float32, thresholds *float32, centroids *int32, tmp *float32, sums *float32, "+
		"cc *int32)",
		name+" writes the codes of rows of n times 16 values (of 8 fewer where odd is 1) to bit "+
			"planes. sums gets |y|^2 and <y,c> of every row, cc <c,c>. half is half the power of two "+
			"from n up, 0 for one.")
	planes, plane, rowBytes := load("planes"), load("plane"), load("rowBytes")
	y, rows := load("y"), load("rows")
	tmp := load("tmp")
	levels := 1 << (bits - 1)
	th, mag := zmms(levels), zmms(levels)
	m := GP64()
	Load(Param("centroids"), m)
	for i := range mag {
		VPBROADCASTD(Mem{Base: m, Disp: 4 * i}, mag[i])
	}
	abs := abs512()
	zero := ZMM()
	VPXORD(zero, zero, zero)
	Label("row")

	// |y|^2, and the thresholds of this row.
	n, half := load("n"), load("half")
	p, q, i := GP64(), GP64(), GP64()
	MOVQ(y, p)
	MOVQ(tmp, q)
	MOVQ(n, i)
	times("square", i, func() {
		z := ZMM()
		VMOVUPS(Mem{Base: p}, z)
		VMULPS(z, z, z)
		VMOVUPS(z, Mem{Base: q})
		ADDQ(Imm(64), p)
		ADDQ(Imm(64), q)
	})
	xx := treeSum512("xx", tmp, n, half)
	sums := load("sums")
	VMOVSS(xx.AsX(), Mem{Base: sums})
	s := xx.AsX()
	VDIVSS(param("dim"), s, s)
	VSQRTSS(s, s, s)
	sigma := ZMM()
	VBROADCASTSS(s, sigma)
	t := load("thresholds")
	for l := 1; l < levels; l++ {
		VMULPS_BCST(Mem{Base: t, Disp: 4 * l}, sigma, th[l])
	}

	// Codes. A row of zeros has thresholds of 0, which its values must not reach.
	nonzero := K()
	VCMPPS(Imm(4), zero, sigma, nonzero)
	ccSum := ZMM()
	VPXORD(ccSum, ccSum, ccSum)
	chunk := func(valid Register) (stored []Register) {
		v, a, c := ZMM(), ZMM(), ZMM()
		VMOVUPS(Mem{Base: p}, v)
		negative := K()
		VCMPPS(Imm(1), zero, v, negative)
		VPANDD(abs, v, a)
		VMOVDQA32(mag[0], c)
		var low []Register // of the magnitude's number, the highest bit first
		for range bits - 1 {
			low = append(low, nil)
		}
		for l := 1; l < levels; l++ {
			k := K()
			VCMPPS(Imm(13), th[l], a, nonzero, k) // not less than
			VMOVDQA32(mag[l], k, c)
			for b := range low {
				// Bit b changes at every multiple of its value.
				step := levels >> (b + 1)
				if l%step != 0 {
					continue
				}
				if low[b] == nil {
					low[b] = K()
					KMOVW(k, low[b])
				} else {
					KXORW(k, low[b], low[b])
				}
			}
		}
		f := ZMM()
		VCVTDQ2PS(c, f)
		VMULPS(f, a, f)
		VMOVUPS(f, Mem{Base: q})
		sq := ZMM()
		VPMADDWD(c, c, sq)
		if valid != nil {
			VMOVDQA32_Z(sq, valid, sq)
		}
		VPADDD(sq, ccSum, ccSum)
		top := K()
		KNOTW(negative, top)
		stored = append(stored, top)
		for _, k := range low {
			KXORW(negative, k, k)
			stored = append(stored, k)
		}
		return stored
	}
	MOVQ(y, p)
	MOVQ(tmp, q)
	out := GP64()
	MOVQ(planes, out)
	odd := load("odd")
	MOVQ(n, i)
	SUBQ(odd, i)
	TESTQ(i, i)
	JZ(LabelRef("tail"))
	times("chunk", i, func() {
		at := GP64()
		MOVQ(out, at)
		for b, k := range chunk(nil) {
			KMOVW(k, Mem{Base: at})
			if b < bits-1 {
				ADDQ(plane, at)
			}
		}
		ADDQ(Imm(64), p)
		ADDQ(Imm(64), q)
		ADDQ(Imm(2), out)
	})
	Label("tail")
	TESTQ(odd, odd)
	JZ(LabelRef("sums"))
	valid, g := K(), GP32()
	MOVL(U32(0xff), g)
	KMOVW(g, valid)
	at := GP64()
	MOVQ(out, at)
	for b, k := range chunk(valid) {
		KMOVB(k, Mem{Base: at})
		if b < bits-1 {
			ADDQ(plane, at)
		}
	}
	Label("sums")
	xc := treeSum512("xc", tmp, n, half)
	VMOVSS(xc.AsX(), Mem{Base: sums, Disp: 4})
	ADDQ(Imm(8), sums)
	Store(sums, Param("sums"))
	cc := reduce512(ccSum, func(a, b, d Op) { VPADDD(a, b, d) })
	ccPtr := load("cc")
	VMOVD(cc, Mem{Base: ccPtr})
	ADDQ(Imm(4), ccPtr)
	Store(ccPtr, Param("cc"))
	stride := load("stride")
	ADDQ(stride, y)
	ADDQ(rowBytes, planes)
	SUBQ(Imm(1), rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

func quantizeU8512() {
	function("quantizeU8AVX512",
		"func(codes *byte, y, steps *float32, rows, stride, n, odd int)",
		"quantizeU8AVX512 writes 128 + y/step, rounded to even and held within 1 to 255, of rows of "+
			"n times 16 values (of 8 fewer where odd is 1). A step of 0 gives 128.")
	codes, y, steps, rows := load("codes"), load("y"), load("steps"), load("rows")
	stride, n, odd := load("stride"), load("n"), load("odd")
	most, least := broadcastFloat(127), broadcastFloat(-127)
	bias, g, zero := ZMM(), GP32(), ZMM()
	MOVL(U32(128), g)
	VPBROADCASTD(g, bias)
	VPXORD(zero, zero, zero)
	SUBQ(odd, n)
	times("row", rows, func() {
		step, k := ZMM(), K()
		VBROADCASTSS(Mem{Base: steps}, step)
		VCMPPS(Imm(4), zero, step, k)
		p, i := GP64(), GP64()
		MOVQ(y, p)
		quantize := func() VecVirtual {
			z, x := ZMM(), XMM()
			VMOVUPS(Mem{Base: p}, z)
			VDIVPS_Z(step, z, k, z)
			VMINPS(most, z, z)
			VMAXPS(least, z, z)
			VCVTPS2DQ(z, z)
			VPADDD(bias, z, z)
			VPMOVDB(z, x)
			return x
		}
		MOVQ(n, i)
		TESTQ(i, i)
		JZ(LabelRef("tail"))
		times("chunk", i, func() {
			VMOVDQU32(quantize(), Mem{Base: codes})
			ADDQ(Imm(64), p)
			ADDQ(Imm(16), codes)
		})
		Label("tail")
		TESTQ(odd, odd)
		JZ(LabelRef("next"))
		VMOVQ(quantize(), Mem{Base: codes})
		ADDQ(Imm(8), codes)
		Label("next")
		ADDQ(Imm(4), steps)
		ADDQ(stride, y)
	})
	VZEROUPPER()
	RET()
}
