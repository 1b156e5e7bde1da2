// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// A panel holds 16 outputs. Per group of 32 inputs, the codes of 8 bits are 8 vectors of 64
// bytes: vector q holds, for each output, the 4 codes of inputs 4q..4q+3. The codes of 4 bits
// are 4 vectors: the low nibbles of vector q are inputs 4q..4q+3, the high ones 4(q+4)...

// weightParams loads the arguments that a kernel over weights of the given bits has.
func weightParams(bits int) (codes, scales, mins Register) {
	codes, scales = load("codes"), load("scales")
	if bits == 4 {
		mins = load("mins")
	}
	return codes, scales, mins
}

func weightSignature(bits int) string {
	if bits == 4 {
		return "codes *byte, scales, mins *float32"
	}
	return "codes *byte, scales *float32"
}

// expand writes the 32 x lanes weights of one group, half says which bytes of each vector.
func expand(bits, half int, dst, codes Register, sw, mn, nibble VecVirtual, vec func() VecVirtual) {
	put := func(t VecVirtual, input int) {
		VCVTDQ2PS(t, t)
		VMULPS(sw, t, t)
		if bits == 4 {
			VADDPS(mn, t, t)
		}
		VMOVUPS(t, Mem{Base: dst, Disp: 64*input + half})
	}
	wide := sw.Size() == 64
	and := func(v, t VecVirtual) {
		if wide {
			VPANDD(nibble, v, t)
		} else {
			VPAND(nibble, v, t)
		}
	}
	for q := 0; q < bits; q++ {
		v := vec()
		move(wide, Mem{Base: codes, Disp: 64*q + half}, v)
		for b := 0; b < 32/bits; b++ {
			t := vec()
			if bits == 4 { // nibble b of each output: even ones inputs 0..15, odd 16..31
				if b == 0 {
					and(v, t)
				} else {
					VPSRLD(Imm(uint64(4*b)), v, t)
					and(t, t)
				}
				put(t, 4*q+b/2+16*(b%2))
				continue
			}
			if b < 3 { // byte b of each output, its sign extended
				VPSLLD(Imm(uint64(24-8*b)), v, t)
				VPSRAD(Imm(24), t, t)
			} else {
				VPSRAD(Imm(24), v, t)
			}
			put(t, 4*q+b)
		}
	}
}

func move(wide bool, src, dst Op) {
	if wide {
		VMOVDQU32(src, dst)
	} else {
		VMOVDQU(src, dst)
	}
}

func expand512(bits int) {
	function(fmt.Sprintf("expandQ%dAVX512", bits),
		"func(dst *float32, "+weightSignature(bits)+", groups int)",
		fmt.Sprintf("expandQ%dAVX512 writes one panel of weights as float32 [32*groups][16].", bits))
	dst := load("dst")
	codes, scales, mins := weightParams(bits)
	n := load("groups")
	nibble := ZMM()
	if bits == 4 {
		m := GP32()
		MOVL(U32(15), m)
		VPBROADCASTD(m, nibble)
	}
	Label("loop")
	sw, mn := ZMM(), ZMM()
	VMOVUPS(Mem{Base: scales}, sw)
	if bits == 4 {
		VMOVUPS(Mem{Base: mins}, mn)
		ADDQ(U32(64), mins)
	}
	expand(bits, 0, dst, codes, sw, mn, nibble, func() VecVirtual { return ZMM() })
	ADDQ(U32(2048), dst)
	ADDQ(U32(64*uint32(bits)), codes)
	ADDQ(U32(64), scales)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func expand256(bits int) {
	function(fmt.Sprintf("expandQ%dAVX2", bits),
		"func(dst *float32, "+weightSignature(bits)+", groups int)",
		fmt.Sprintf("expandQ%dAVX2 writes one panel of weights as float32 [32*groups][16].", bits))
	dst := load("dst")
	codes, scales, mins := weightParams(bits)
	n := load("groups")
	nibble := YMM()
	if bits == 4 {
		word32(15, nibble)
	}
	Label("loop")
	for half := 0; half < 64; half += 32 {
		sw, mn := YMM(), YMM()
		VMOVUPS(Mem{Base: scales, Disp: half}, sw)
		if bits == 4 {
			VMOVUPS(Mem{Base: mins, Disp: half}, mn)
		}
		expand(bits, half, dst, codes, sw, mn, nibble, func() VecVirtual { return YMM() })
	}
	if bits == 4 {
		ADDQ(U32(64), mins)
	}
	ADDQ(U32(2048), dst)
	ADDQ(U32(64*uint32(bits)), codes)
	ADDQ(U32(64), scales)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// row512 multiplies one row of float32 activations with 4 panels without storing the expanded
// weights: 4 chains of fused additions hide each other's latency. The weights and the order of
// sums are those of expand512 followed by f32Tile512.
func row512(bits int) {
	function(fmt.Sprintf("rowQ%dAVX512", bits),
		"func(c *float32, "+weightSignature(bits)+
			", codeStride, scaleStride int, a *float32, groups int)",
		fmt.Sprintf("rowQ%dAVX512 computes c[64] = a . the weights of 4 panels; the distances of "+
			"panels are in bytes.", bits))
	const panels = 4
	c := load("c")
	codes, scales, mins := weightParams(bits)
	codeStride, scaleStride := load("codeStride"), load("scaleStride")
	a, n := load("a"), load("groups")
	code := rowPointers(codes, codeStride, panels)
	scale := rowPointers(scales, scaleStride, panels)
	least := func(int, int) Mem { return Mem{} }
	if bits == 4 {
		least = rowPointers(mins, scaleStride, panels)
	}
	nibble, acc := ZMM(), zmms(panels)
	for _, r := range acc {
		VXORPS(r, r, r)
	}
	if bits == 4 {
		m := GP32()
		MOVL(U32(15), m)
		VPBROADCASTD(m, nibble)
	}
	Label("loop")
	sw, mn := zmms(panels), zmms(panels)
	for p := range acc {
		VMOVUPS(scale(p, 0), sw[p])
		if bits == 4 {
			VMOVUPS(least(p, 0), mn[p])
		}
	}
	for k := 0; k < 32; k++ {
		for p, r := range acc {
			t := ZMM()
			if bits == 4 {
				VPSRLD(Imm(uint64(8*(k%4)+k/16*4)), code(p, k%16/4*64), t)
				VPANDD(nibble, t, t)
			} else {
				VPSLLD(Imm(uint64(24-8*(k%4))), code(p, k/4*64), t)
				VPSRAD(Imm(24), t, t)
			}
			VCVTDQ2PS(t, t)
			VMULPS(sw[p], t, t)
			if bits == 4 {
				VADDPS(mn[p], t, t)
			}
			VFMADD231PS_BCST(Mem{Base: a, Disp: 4 * k}, t, r)
		}
	}
	for p := 0; p < panels; p += 3 {
		ADDQ(U32(64*uint32(bits)), code(p, 0).Base)
		ADDQ(U32(64), scale(p, 0).Base)
		if bits == 4 {
			ADDQ(U32(64), least(p, 0).Base)
		}
	}
	ADDQ(U32(128), a)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	for p, r := range acc {
		VMOVUPS(r, Mem{Base: c, Disp: 64 * p})
	}
	VZEROUPPER()
	RET()
}

// word32 fills the YMM register y with a 32-bit word.
func word32(w uint32, y VecVirtual) {
	m := GP32()
	MOVL(U32(w), m)
	VMOVD(m, y.AsX())
	VPBROADCASTD(y.AsX(), y)
}

// The thresholds of the activation quantizer, as float32 bits: below 2^-100 a group is zero
// (127/largest must stay finite), from infinity on it is not a number.
const (
	tinyBits   = (127 - 100) << 23
	infBits    = 0x7f800000
	nanBits    = 0x7fc00000
	levelsBits = 0x42fe0000 // 127
)

const quantizeSignature = "func(codes *int8, sa, as *float32, ai *int32, src *float32, " +
	"stride int, groups int)"

const quantizeDoc = "quantizes one row of activations: group g goes to codes[32*stride*g...], " +
	"its scale, scale*sum and -128*sum to element stride*g of sa, as and ai."

// quantizeBody emits the loop over groups; vectors loads one group, returns its largest
// magnitude as bits in the low lane, and finish scales, rounds, stores and sums.
func quantizeBody(largest func(src Register) VecVirtual,
	finish func(inv VecVirtual, codes Register) VecVirtual, zero func(codes Register)) {
	codes, sa, as, ai := load("codes"), load("sa"), load("as"), load("ai")
	src, stride, n := load("src"), load("stride"), load("groups")
	Label("loop")
	x := largest(src)
	bits := GP32()
	VMOVD(x.AsX(), bits)
	CMPL(bits, U32(infBits))
	JAE(LabelRef("nan"))
	CMPL(bits, U32(tinyBits))
	JB(LabelRef("zero"))
	levels, t := XMM(), GP32()
	MOVL(U32(levelsBits), t)
	VMOVD(t, levels)
	scale, inv := XMM(), XMM()
	VDIVSS(levels, x.AsX(), scale)
	VDIVSS(x.AsX(), levels, inv)
	sum := finish(inv.(VecVirtual), codes)
	VMOVSS(scale, Mem{Base: sa})
	f := XMM()
	VCVTDQ2PS(sum.AsX(), f)
	VMULSS(scale, f, f)
	VMOVSS(f, Mem{Base: as})
	s := GP32()
	VMOVD(sum.AsX(), s)
	SHLL(Imm(7), s)
	NEGL(s)
	MOVL(s, Mem{Base: ai})
	JMP(LabelRef("next"))
	Label("nan")
	w := GP32()
	MOVL(U32(nanBits), w)
	JMP(LabelRef("blank"))
	Label("zero")
	XORL(w, w)
	Label("blank")
	zero(codes)
	MOVL(w, Mem{Base: sa})
	MOVL(w, Mem{Base: as})
	MOVL(U32(0), Mem{Base: ai})
	Label("next")
	ADDQ(U32(128), src)
	LEAQ(Mem{Base: sa, Index: stride, Scale: 4}, sa)
	LEAQ(Mem{Base: as, Index: stride, Scale: 4}, as)
	LEAQ(Mem{Base: ai, Index: stride, Scale: 4}, ai)
	d := GP64()
	MOVQ(stride, d)
	SHLQ(Imm(5), d)
	ADDQ(d, codes)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// maxLanes reduces the 8 unsigned words of y to the low lane.
func maxLanes(y VecVirtual) VecVirtual {
	x, t := XMM(), XMM()
	VEXTRACTI128(Imm(1), y, x)
	VPMAXUD(x, y.AsX(), x)
	VPSHUFD(Imm(0x4e), x, t)
	VPMAXUD(t, x, x)
	VPSHUFD(Imm(0xb1), x, t)
	VPMAXUD(t, x, x)
	return x.(VecVirtual)
}

// sumLanes adds the 8 words of y into the low lane.
func sumLanes(y VecVirtual) VecVirtual {
	x, t := XMM(), XMM()
	VEXTRACTI128(Imm(1), y, x)
	VPADDD(x, y.AsX(), x)
	VPSHUFD(Imm(0x4e), x, t)
	VPADDD(t, x, x)
	VPSHUFD(Imm(0xb1), x, t)
	VPADDD(t, x, x)
	return x.(VecVirtual)
}

func quantize512() {
	function("quantizeAVX512",
		quantizeSignature,
		"quantizeAVX512 "+quantizeDoc)
	magnitude := ZMM()
	m := GP32()
	MOVL(U32(0x7fffffff), m)
	VPBROADCASTD(m, magnitude)
	v := zmms(2)
	quantizeBody(func(src Register) VecVirtual {
		t := zmms(2)
		for i := range v {
			VMOVUPS(Mem{Base: src, Disp: 64 * i}, v[i])
			VPANDD(magnitude, v[i], t[i])
		}
		VPMAXUD(t[1], t[0], t[0])
		y := YMM()
		VEXTRACTI64X4(Imm(1), t[0], y)
		VPMAXUD(y, t[0].AsY(), y)
		return maxLanes(y.(VecVirtual))
	}, func(inv VecVirtual, codes Register) VecVirtual {
		z := ZMM()
		VBROADCASTSS(inv, z)
		for i := range v {
			VMULPS(z, v[i], v[i])
			VCVTPS2DQ(v[i], v[i])
			VPMOVDB(v[i], Mem{Base: codes, Disp: 16 * i})
		}
		VPADDD(v[1], v[0], v[0])
		y := YMM()
		VEXTRACTI64X4(Imm(1), v[0], y)
		VPADDD(y, v[0].AsY(), y)
		return sumLanes(y.(VecVirtual))
	}, func(codes Register) {
		z := YMM()
		VPXOR(z, z, z)
		VMOVDQU(z, Mem{Base: codes})
	})
}

func quantize256() {
	order := GLOBL("packorder", RODATA|NOPTR)
	for i, w := range []uint32{0, 4, 1, 5, 2, 6, 3, 7} {
		DATA(4*i, U32(w))
	}
	function("quantizeAVX2",
		quantizeSignature,
		"quantizeAVX2 "+quantizeDoc)
	magnitude, perm := YMM(), YMM()
	word32(0x7fffffff, magnitude.(VecVirtual))
	VMOVDQU(order, perm)
	v := ymms(4)
	quantizeBody(func(src Register) VecVirtual {
		t := ymms(4)
		for i := range v {
			VMOVUPS(Mem{Base: src, Disp: 32 * i}, v[i])
			VPAND(magnitude, v[i], t[i])
		}
		VPMAXUD(t[1], t[0], t[0])
		VPMAXUD(t[3], t[2], t[2])
		VPMAXUD(t[2], t[0], t[0])
		return maxLanes(t[0])
	}, func(inv VecVirtual, codes Register) VecVirtual {
		y := YMM()
		VBROADCASTSS(inv, y)
		for i := range v {
			VMULPS(y, v[i], v[i])
			VCVTPS2DQ(v[i], v[i])
		}
		a, b, s := YMM(), YMM(), YMM()
		VPACKSSDW(v[1], v[0], a)
		VPACKSSDW(v[3], v[2], b)
		VPACKSSWB(b, a, a)
		VPERMD(a, perm, a) // undo the interleaving of 128-bit halves
		VMOVDQU(a, Mem{Base: codes})
		VPADDD(v[1], v[0], s)
		VPADDD(v[3], v[2], b)
		VPADDD(b, s, s)
		return sumLanes(s.(VecVirtual))
	}, func(codes Register) {
		z := YMM()
		VPXOR(z, z, z)
		VMOVDQU(z, Mem{Base: codes})
	})
}
