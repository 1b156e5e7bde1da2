// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// The tiles multiply `rows` rows of quantized activations with one panel of 16 outputs (or
// half of one, AVX2). Activations lie as [group][row][32] codes and [group][row] scales. Per
// group the integer sum is exact; then, per output and in this order,
//
//	acc = fma(float32(sum), float32(scaleW*scaleA), acc)
//	acc = fma(min, float32(scaleA*sumA), acc)              4-bit weights only

func tileSignature(bits int) string {
	if bits == 4 {
		return "func(c *float32, ldc int, " + weightSignature(4) +
			", aq *int8, sa, as *float32, groups int)"
	}
	return "func(c *float32, ldc int, " + weightSignature(8) +
		", aq *int8, sa *float32, ai *int32, groups int)"
}

// rowBatch is how many rows have their chains of VPDPBUSD interleaved: 4 chains of latency 4
// to 5 keep two units nearly busy, and the next batch overlaps.
const rowBatch = 4

// products512 multiplies rows rows of activations with the expanded group w.
func products512(bits, rows int, w, acc []VecVirtual, sw, mn VecVirtual, aq, sa, side Register) {
	for r0 := 0; r0 < rows; r0 += rowBatch {
		batch := min(rowBatch, rows-r0)
		sums := zmms(batch)
		for i, s := range sums {
			if bits == 4 {
				VXORPS(s, s, s)
			} else { // start at -128 times the sum of the activations: takes the bias back
				VPBROADCASTD(Mem{Base: side, Disp: 4 * (r0 + i)}, s)
			}
		}
		for q := range w {
			for i, s := range sums {
				VPDPBUSD_BCST(Mem{Base: aq, Disp: 32*(r0+i) + 4*q}, w[q], s)
			}
		}
		for i, s := range sums {
			t := ZMM()
			VCVTDQ2PS(s, s)
			VMULPS_BCST(Mem{Base: sa, Disp: 4 * (r0 + i)}, sw, t)
			VFMADD231PS(t, s, acc[r0+i])
			if bits == 4 {
				VFMADD231PS_BCST(Mem{Base: side, Disp: 4 * (r0 + i)}, mn, acc[r0+i])
			}
		}
	}
}

func tile512(bits, rows int) {
	function(fmt.Sprintf("q%dTile%dAVX512", bits, rows),
		tileSignature(bits),
		fmt.Sprintf("q%dTile%dAVX512 computes c[%d][16]; ldc is in bytes.", bits, rows, rows))
	c, ldc := load("c"), load("ldc")
	codes, scales, mins := weightParams(bits)
	aq, sa := load("aq"), load("sa")
	var side Register
	if bits == 4 {
		side = load("as")
	} else {
		side = load("ai")
	}
	n := load("groups")
	acc := zmms(rows)
	for _, r := range acc {
		VXORPS(r, r, r)
	}

	Label("loop")
	w := zmms(8)
	// The constant is made again for each group: 16 rows need every register after this.
	flip, m := ZMM(), GP32()
	if bits == 4 {
		MOVL(U32(0x0f0f0f0f), m)
	} else {
		MOVL(U32(0x80808080), m)
	}
	VPBROADCASTD(m, flip)
	if bits == 4 {
		for q := 0; q < 4; q++ {
			t := ZMM()
			VMOVDQU32(Mem{Base: codes, Disp: 64 * q}, t)
			VPANDD(flip, t, w[q])
			VPSRLD(Imm(4), t, t)
			VPANDD(flip, t, w[q+4])
		}
	} else {
		for q := range w { // signed to biased: VPDPBUSD takes unsigned by signed
			VPXORD(Mem{Base: codes, Disp: 64 * q}, flip, w[q])
		}
	}
	group := zmms(2)
	sw, mn := group[0], group[1]
	VMOVUPS(Mem{Base: scales}, sw)
	if bits == 4 {
		VMOVUPS(Mem{Base: mins}, mn)
	}
	products512(bits, rows, w, acc, sw, mn, aq, sa, side)
	ADDQ(U32(64*uint32(bits)), codes)
	ADDQ(U32(64), scales)
	if bits == 4 {
		ADDQ(U32(64), mins)
	}
	ADDQ(U32(32*uint32(rows)), aq)
	ADDQ(U32(4*uint32(rows)), sa)
	ADDQ(U32(4*uint32(rows)), side)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	for r, v := range acc {
		VMOVUPS(v, Mem{Base: c})
		if r < rows-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

func q4Tile512(rows int) { tile512(4, rows) }
func q8Tile512(rows int) { tile512(8, rows) }

// tile256 covers 8 outputs: the caller hands pointers to one half of each 64-byte vector.
func tile256(bits, rows int, body func(rows int, codes, aq Register, sums []VecVirtual)) {
	function(fmt.Sprintf("q%dTile%dAVX2", bits, rows),
		tileSignature(bits),
		fmt.Sprintf("q%dTile%dAVX2 computes c[%d][8] of half a panel; ldc is in bytes.",
			bits, rows, rows))
	c, ldc := load("c"), load("ldc")
	codes, scales, mins := weightParams(bits)
	aq, sa := load("aq"), load("sa")
	var as Register
	if bits == 4 {
		as = load("as")
	}
	n := load("groups")
	acc := ymms(rows)
	for _, r := range acc {
		VXORPS(r, r, r)
	}
	Label("loop")
	sums := ymms(rows)
	body(rows, codes, aq, sums)
	sw := YMM()
	VMOVUPS(Mem{Base: scales}, sw)
	for i, s := range sums {
		t := YMM()
		VCVTDQ2PS(s, s)
		VBROADCASTSS(Mem{Base: sa, Disp: 4 * i}, t)
		VMULPS(sw, t, t)
		VFMADD231PS(t, s, acc[i])
		if bits == 4 {
			u := YMM()
			VBROADCASTSS(Mem{Base: as, Disp: 4 * i}, u)
			VFMADD231PS(Mem{Base: mins}, u, acc[i])
		}
	}
	ADDQ(U32(64*uint32(bits)), codes)
	ADDQ(U32(64), scales)
	ADDQ(U32(32*uint32(rows)), aq)
	ADDQ(U32(4*uint32(rows)), sa)
	if bits == 4 {
		ADDQ(U32(64), mins)
		ADDQ(U32(4*uint32(rows)), as)
	}
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	for r, v := range acc {
		VMOVUPS(v, Mem{Base: c})
		if r < rows-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

// q4Tile256: 8 products of codes 0..15 with -127..127, two at a time, stay within int16
// (8*2*15*127 = 30480), so that pairs are widened once a group.
func q4Tile256(rows int) {
	tile256(4, rows, func(rows int, codes, aq Register, sums []VecVirtual) {
		nibble := YMM()
		word32(0x0f0f0f0f, nibble.(VecVirtual))
		for q := 0; q < 4; q++ {
			lo, hi := YMM(), YMM()
			VMOVDQU(Mem{Base: codes, Disp: 64 * q}, hi)
			VPAND(nibble, hi, lo)
			VPSRLD(Imm(4), hi, hi)
			VPAND(nibble, hi, hi)
			for half, w := range []Register{lo, hi} {
				for i, s := range sums {
					dst := s
					if q > 0 || half > 0 {
						dst = YMM()
					}
					t := YMM()
					VPBROADCASTD(Mem{Base: aq, Disp: 32*i + 4*q + 16*half}, t)
					VPMADDUBSW(t, w, dst)
					if q > 0 || half > 0 {
						VPADDW(dst, s, s)
					}
				}
			}
		}
		ones := YMM()
		word32(0x00010001, ones.(VecVirtual))
		for _, s := range sums {
			VPMADDWD(ones, s, s)
		}
	})
}

// q8Tile256: |w| is unsigned, the sign of w goes to the activation; 2*128*127 fits int16.
func q8Tile256(rows int) {
	tile256(8, rows, func(rows int, codes, aq Register, sums []VecVirtual) {
		ones := YMM()
		word32(0x00010001, ones.(VecVirtual))
		for q := 0; q < 8; q++ {
			w, m := YMM(), YMM()
			VMOVDQU(Mem{Base: codes, Disp: 64 * q}, w)
			VPABSB(w, m)
			for i, s := range sums {
				t := YMM()
				VPBROADCASTD(Mem{Base: aq, Disp: 32*i + 4*q}, t)
				VPSIGNB(w, t, t)
				VPMADDUBSW(t, m, t)
				if q == 0 {
					VPMADDWD(ones, t, s)
				} else {
					VPMADDWD(ones, t, t)
					VPADDD(t, s, s)
				}
			}
		}
	})
}
