// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

// quantizeLM256 is quantizeLM512, eight values at a time.
func quantizeLM256(bits int) {
	name := fmt.Sprintf("quantizeLM%dAVX2", bits)
	function(name, "func(planes *byte, plane, rowBytes int, y *float32, rows, stride, n, half int, "+
		"dim float32, thresholds *float32, centroids *int32, tmp *float32, sums *float32, "+
		"cc *int32)",
		name+" writes the codes of rows of n times 8 values to bit planes. sums gets |y|^2 and "+
			"<y,c> of every row, cc <c,c>. half is half the power of two from n up, 0 for one. "+
			"centroids has 8 entries.")
	planes, plane := load("planes"), load("plane")
	y, tmp := load("y"), load("tmp")
	levels := 1 << (bits - 1)
	th, mag := ymms(levels), YMM()
	m := GP64()
	Load(Param("centroids"), m)
	VMOVDQU(Mem{Base: m}, mag)
	Label("row")
	n, half := load("n"), load("half")
	p, q, i := GP64(), GP64(), GP64()
	MOVQ(y, p)
	MOVQ(tmp, q)
	MOVQ(n, i)
	times("square", i, func() {
		v := YMM()
		VMOVUPS(Mem{Base: p}, v)
		VMULPS(v, v, v)
		VMOVUPS(v, Mem{Base: q})
		ADDQ(Imm(32), p)
		ADDQ(Imm(32), q)
	})
	s := treeSum256("xx", tmp, n, half)
	sums := load("sums")
	VMOVSS(s, Mem{Base: sums})
	VDIVSS(param("dim"), s, s)
	VSQRTSS(s, s, s)
	sigma, zero, nonzero := YMM(), YMM(), YMM()
	VBROADCASTSS(s, sigma)
	VXORPS(zero, zero, zero)
	VCMPPS(Imm(4), zero, sigma, nonzero)
	t := load("thresholds")
	for l := 1; l < levels; l++ {
		VBROADCASTSS(Mem{Base: t, Disp: 4 * l}, th[l])
		VMULPS(sigma, th[l], th[l])
	}
	ccSum := YMM()
	VPXOR(ccSum, ccSum, ccSum)
	MOVQ(y, p)
	MOVQ(tmp, q)
	out := GP64()
	MOVQ(planes, out)
	MOVQ(n, i)
	times("chunk", i, func() {
		v, a, neg, count, c := YMM(), YMM(), YMM(), YMM(), YMM()
		VMOVUPS(Mem{Base: p}, v)
		VXORPS(count, count, count)
		VCMPPS(Imm(1), count, v, neg)
		abs := broadcastBits256(0x7fffffff)
		VANDPS(abs, v, a)
		for l := 1; l < levels; l++ {
			k := YMM()
			VCMPPS(Imm(13), th[l], a, k)
			VANDPS(nonzero, k, k)
			VPSUBD(k, count, count)
		}
		VPERMD(mag, count, c)
		f := YMM()
		VCVTDQ2PS(c, f)
		VMULPS(f, a, f)
		VMOVUPS(f, Mem{Base: q})
		VPMADDWD(c, c, c)
		VPADDD(c, ccSum, ccSum)
		at, g := GP64(), GP32()
		MOVQ(out, at)
		VMOVMSKPS(neg, g)
		NOTL(g)
		MOVB(g.As8(), Mem{Base: at})
		VPXOR(neg, count, count)
		for b := bits - 2; b >= 0; b-- {
			w := YMM()
			VPSLLD(Imm(uint64(31-b)), count, w)
			VMOVMSKPS(w, g)
			ADDQ(plane, at)
			MOVB(g.As8(), Mem{Base: at})
		}
		ADDQ(Imm(32), p)
		ADDQ(Imm(32), q)
		ADDQ(Imm(1), out)
	})
	xc := treeSum256("xc", tmp, n, half)
	VMOVSS(xc, Mem{Base: sums, Disp: 4})
	ADDQ(Imm(8), sums)
	Store(sums, Param("sums"))
	cc := reduce256(ccSum, func(a, b, d Op) { VPADDD(a, b, d) })
	ccPtr := load("cc")
	VMOVD(cc, Mem{Base: ccPtr})
	ADDQ(Imm(4), ccPtr)
	Store(ccPtr, Param("cc"))
	stride, rowBytes, rows := load("stride"), load("rowBytes"), load("rows")
	ADDQ(stride, y)
	ADDQ(rowBytes, planes)
	SUBQ(Imm(1), rows)
	Store(rows, Param("rows"))
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

func quantizeU8256() {
	function("quantizeU8AVX2", "func(codes *byte, y, steps *float32, rows, stride, n int)",
		"quantizeU8AVX2 writes 128 + y/step, rounded to even and held within 1 to 255, of rows of "+
			"n times 8 values. A step of 0 gives 128.")
	codes, y, steps, rows := load("codes"), load("y"), load("steps"), load("rows")
	stride, n := load("stride"), load("n")
	most, least := broadcastFloat256(127), broadcastFloat256(-127)
	bias, zero := broadcastBits256(128), YMM()
	VXORPS(zero, zero, zero)
	pick := make([]byte, 32)
	for i := range pick {
		pick[i] = 0x80
		if i%16 < 4 {
			pick[i] = byte(4 * (i % 16))
		}
	}
	low := YMM()
	VMOVDQU(bytesConstant("lowBytes", pick), low)
	times("row", rows, func() {
		step, k := YMM(), YMM()
		VBROADCASTSS(Mem{Base: steps}, step)
		VCMPPS(Imm(4), zero, step, k)
		p, i := GP64(), GP64()
		MOVQ(y, p)
		MOVQ(n, i)
		times("chunk", i, func() {
			v, x := YMM(), XMM()
			VMOVUPS(Mem{Base: p}, v)
			VDIVPS(step, v, v)
			VANDPS(k, v, v)
			VMINPS(most, v, v)
			VMAXPS(least, v, v)
			VCVTPS2DQ(v, v)
			VPADDD(bias, v, v)
			VPSHUFB(low, v, v)
			VEXTRACTI128(Imm(1), v, x)
			VPUNPCKLDQ(x, v.AsX(), x)
			VMOVQ(x, Mem{Base: codes})
			ADDQ(Imm(32), p)
			ADDQ(Imm(8), codes)
		})
		ADDQ(Imm(4), steps)
		ADDQ(stride, y)
	})
	VZEROUPPER()
	RET()
}
