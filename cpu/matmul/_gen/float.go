// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// f32Tile512: rows x 32 outputs, one fused running sum per output, k ascending.
func f32Tile512(rows int) {
	function(fmt.Sprintf("f32Tile%dx32AVX512", rows),
		"func(c *float32, ldc int, a *float32, lda int, b *float32, k int, accumulate int)",
		fmt.Sprintf("f32Tile%dx32AVX512 computes c[%d][32] (+)= a[%d][k] . b, where b is two "+
			"panels [k][16] one after the other; ldc and lda are in bytes.", rows, rows, rows))
	c, ldc := load("c"), load("ldc")
	a, lda := load("a"), load("lda")
	b, k, acc := load("b"), load("k"), load("accumulate")
	b1 := GP64()
	MOVQ(k, b1)
	SHLQ(Imm(6), b1)
	ADDQ(b, b1)

	lo, hi := zmms(rows), zmms(rows)
	for r := range lo {
		VXORPS(lo[r], lo[r], lo[r])
		VXORPS(hi[r], hi[r], hi[r])
	}
	TESTQ(acc, acc)
	JZ(LabelRef("start"))
	p := GP64()
	MOVQ(c, p)
	for r := range lo {
		VMOVUPS(Mem{Base: p}, lo[r])
		VMOVUPS(Mem{Base: p, Disp: 64}, hi[r])
		if r < rows-1 {
			ADDQ(ldc, p)
		}
	}
	Label("start")
	at := rowPointers(a, lda, rows)
	step := func(u int) {
		x, y := ZMM(), ZMM()
		VMOVUPS(Mem{Base: b, Disp: 64 * u}, x)
		VMOVUPS(Mem{Base: b1, Disp: 64 * u}, y)
		for r := range lo {
			t := ZMM()
			VBROADCASTSS(at(r, 4*u), t)
			VFMADD231PS(x, t, lo[r])
			VFMADD231PS(y, t, hi[r])
		}
	}
	kLoop(k, 4, func(u int) {
		for i := 0; i < u; i++ {
			step(i)
		}
		advance(at, rows, 4*u)
		ADDQ(U32(64*u), b)
		ADDQ(U32(64*u), b1)
	})
	for r := range lo {
		VMOVUPS(lo[r], Mem{Base: c})
		VMOVUPS(hi[r], Mem{Base: c, Disp: 64})
		if r < rows-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

// kLoop runs body(unroll) while at least unroll steps are left, then body(1).
func kLoop(k Register, unroll int, body func(u int)) {
	Label("wide")
	CMPQ(k, Imm(uint64(unroll)))
	JLT(LabelRef("narrow"))
	body(unroll)
	SUBQ(Imm(uint64(unroll)), k)
	JMP(LabelRef("wide"))
	Label("narrow")
	TESTQ(k, k)
	JZ(LabelRef("done"))
	body(1)
	SUBQ(Imm(1), k)
	JMP(LabelRef("narrow"))
	Label("done")
}

// f32Tile256: rows x 16 outputs, the same sums as f32Tile512.
func f32Tile256(rows int) {
	function(fmt.Sprintf("f32Tile%dx16AVX2", rows),
		"func(c *float32, ldc int, a *float32, lda int, b *float32, k int, accumulate int)",
		fmt.Sprintf("f32Tile%dx16AVX2 computes c[%d][16] (+)= a[%d][k] . b, where b is one "+
			"panel [k][16]; ldc and lda are in bytes.", rows, rows, rows))
	c, ldc := load("c"), load("ldc")
	a, lda := load("a"), load("lda")
	b, k, acc := load("b"), load("k"), load("accumulate")

	lo, hi := ymms(rows), ymms(rows)
	for r := range lo {
		VXORPS(lo[r], lo[r], lo[r])
		VXORPS(hi[r], hi[r], hi[r])
	}
	TESTQ(acc, acc)
	JZ(LabelRef("start"))
	p := GP64()
	MOVQ(c, p)
	for r := range lo {
		VMOVUPS(Mem{Base: p}, lo[r])
		VMOVUPS(Mem{Base: p, Disp: 32}, hi[r])
		if r < rows-1 {
			ADDQ(ldc, p)
		}
	}
	Label("start")
	at := rowPointers(a, lda, rows)
	step := func(u int) {
		x, y := YMM(), YMM()
		VMOVUPS(Mem{Base: b, Disp: 64 * u}, x)
		VMOVUPS(Mem{Base: b, Disp: 64*u + 32}, y)
		for r := range lo {
			t := YMM()
			VBROADCASTSS(at(r, 4*u), t)
			VFMADD231PS(x, t, lo[r])
			VFMADD231PS(y, t, hi[r])
		}
	}
	kLoop(k, 4, func(u int) {
		for i := 0; i < u; i++ {
			step(i)
		}
		advance(at, rows, 4*u)
		ADDQ(U32(64*u), b)
	})
	for r := range lo {
		VMOVUPS(lo[r], Mem{Base: c})
		VMOVUPS(hi[r], Mem{Base: c, Disp: 32})
		if r < rows-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

// pack8 transposes 8 x 8 blocks: 8 rows of a matrix become half of a panel [k][16].
func pack8() {
	function("pack8AVX2",
		"func(dst, src *float32, ld int, blocks int)",
		"pack8AVX2 writes dst[16*i+r] = src[r][i] for r in 0..7 and i in 0..8*blocks-1; ld, "+
			"the distance of two rows of src, is in bytes.")
	dst, src, ld, n := load("dst"), load("src"), load("ld"), load("blocks")
	at := rowPointers(src, ld, 8)
	Label("loop")
	v, t := ymms(8), ymms(8)
	for r := range v {
		VMOVUPS(at(r, 0), v[r])
	}
	advance(at, 8, 32)
	for i := 0; i < 8; i += 2 { // pairs of rows interleaved
		VUNPCKLPS(v[i+1], v[i], t[i])
		VUNPCKHPS(v[i+1], v[i], t[i+1])
	}
	u := ymms(8)
	for i := 0; i < 8; i += 4 { // four rows of column q in each 128-bit half
		VUNPCKLPD(t[i+2], t[i], u[i])
		VUNPCKHPD(t[i+2], t[i], u[i+1])
		VUNPCKLPD(t[i+3], t[i+1], u[i+2])
		VUNPCKHPD(t[i+3], t[i+1], u[i+3])
	}
	for q := 0; q < 4; q++ {
		lo, hi := YMM(), YMM()
		VPERM2F128(Imm(0x20), u[q+4], u[q], lo)
		VPERM2F128(Imm(0x31), u[q+4], u[q], hi)
		VMOVUPS(lo, Mem{Base: dst, Disp: 64 * q})
		VMOVUPS(hi, Mem{Base: dst, Disp: 64 * (q + 4)})
	}
	ADDQ(U32(512), dst)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// reduce8 adds the 8 lanes of y as a tree with strides 4, 2, 1 and returns the sum.
func reduce8(y Register) {
	x := XMM()
	VEXTRACTF128(Imm(1), y, x)
	VADDPS(x, y.(VecVirtual).AsX(), x)
	t := XMM()
	VPERMILPS(Imm(0x4e), x, t)
	VADDPS(t, x, x)
	VPERMILPS(Imm(0xb1), x, t)
	VADDPS(t, x, x)
	VZEROUPPER() // before Store, which is an SSE move
	Store(x, ReturnIndex(0))
	RET()
}

// tailMask512 leaves in a mask register the low n bits, n in 0..16.
func tailMask512(n Register) Register {
	one, k := GP32(), K()
	MOVL(U32(1), one)
	cx := RCX
	MOVQ(n, cx)
	SHLL(CL, one)
	SUBL(Imm(1), one)
	KMOVW(one, k)
	return k
}

func dot512() {
	function("dotAVX512",
		"func(a, b *float32, n int) float32",
		"dotAVX512 returns the dot product of n elements: 32 running sums, then a tree.")
	a, b, n := load("a"), load("b"), load("n")
	s := zmms(2)
	for _, r := range s {
		VXORPS(r, r, r)
	}
	Label("wide")
	CMPQ(n, Imm(32))
	JLT(LabelRef("half"))
	for i, r := range s {
		t := ZMM()
		VMOVUPS(Mem{Base: a, Disp: 64 * i}, t)
		VFMADD231PS(Mem{Base: b, Disp: 64 * i}, t, r)
	}
	ADDQ(U32(128), a)
	ADDQ(U32(128), b)
	SUBQ(Imm(32), n)
	JMP(LabelRef("wide"))
	Label("half")
	which := 0
	tail := func() {
		k := tailMask512(n)
		x, y := ZMM(), ZMM()
		VMOVUPS_Z(Mem{Base: a}, k, x)
		VMOVUPS_Z(Mem{Base: b}, k, y)
		VFMADD231PS(x, y, s[which])
	}
	CMPQ(n, Imm(16))
	JLT(LabelRef("tail0"))
	t := ZMM()
	VMOVUPS(Mem{Base: a}, t)
	VFMADD231PS(Mem{Base: b}, t, s[0])
	ADDQ(U32(64), a)
	ADDQ(U32(64), b)
	SUBQ(Imm(16), n)
	which = 1
	tail()
	JMP(LabelRef("sum"))
	Label("tail0")
	which = 0
	tail()
	Label("sum")
	VADDPS(s[1], s[0], s[0])
	y := YMM()
	VEXTRACTF64X4(Imm(1), s[0], y)
	VADDPS(y, s[0].AsY(), y)
	reduce8(y)
}

// maskTable returns the address of 8 words of ones followed by 8 of zeros: reading 8 words
// at 8-n gives a mask of n lanes.
func maskTable() Mem {
	d := GLOBL("tailmask", RODATA|NOPTR)
	for i := 0; i < 8; i++ {
		DATA(4*i, U32(0xffffffff))
	}
	for i := 8; i < 16; i++ {
		DATA(4*i, U32(0))
	}
	return d
}

// tailMask256 leaves in y the first n lanes set, n in 0..8.
func tailMask256(table Mem, n Register, y VecVirtual) {
	p, i := GP64(), GP64()
	LEAQ(table, p)
	MOVQ(U32(8), i)
	SUBQ(n, i)
	VMOVUPS(Mem{Base: p, Index: i, Scale: 4}, y)
}

var table256 *Mem

func tails() Mem {
	if table256 == nil {
		m := maskTable()
		table256 = &m
	}
	return *table256
}

func dot256() {
	table := tails()
	function("dotAVX2",
		"func(a, b *float32, n int) float32",
		"dotAVX2 returns the dot product of n elements: 32 running sums, then a tree.")
	a, b, n := load("a"), load("b"), load("n")
	s := ymms(4)
	for _, r := range s {
		VXORPS(r, r, r)
	}
	Label("wide")
	CMPQ(n, Imm(32))
	JLT(LabelRef("tail0"))
	for i, r := range s {
		t := YMM()
		VMOVUPS(Mem{Base: a, Disp: 32 * i}, t)
		VFMADD231PS(Mem{Base: b, Disp: 32 * i}, t, r)
	}
	ADDQ(U32(128), a)
	ADDQ(U32(128), b)
	SUBQ(Imm(32), n)
	JMP(LabelRef("wide"))
	for i := 0; i < 4; i++ { // element i of the tail still goes to running sum i
		Label(fmt.Sprintf("tail%d", i))
		if i < 3 {
			CMPQ(n, Imm(8))
			JLT(LabelRef(fmt.Sprintf("last%d", i)))
			t := YMM()
			VMOVUPS(Mem{Base: a}, t)
			VFMADD231PS(Mem{Base: b}, t, s[i])
			ADDQ(Imm(32), a)
			ADDQ(Imm(32), b)
			SUBQ(Imm(8), n)
			JMP(LabelRef(fmt.Sprintf("tail%d", i+1)))
			Label(fmt.Sprintf("last%d", i))
		}
		m, x, y := YMM(), YMM(), YMM()
		tailMask256(table, n, m)
		VMASKMOVPS(Mem{Base: a}, m, x)
		VMASKMOVPS(Mem{Base: b}, m, y)
		VFMADD231PS(x, y, s[i])
		if i < 3 {
			JMP(LabelRef("sum"))
		}
	}
	Label("sum")
	VADDPS(s[2], s[0], s[0])
	VADDPS(s[3], s[1], s[1])
	VADDPS(s[1], s[0], s[0])
	reduce8(s[0])
}

func axpy512() {
	function("axpyAVX512",
		"func(dst *float32, x float32, src *float32, n int)",
		"axpyAVX512 adds x*src to dst, n elements, fused.")
	d, s, n := load("dst"), load("src"), load("n")
	x := ZMM()
	addr, err := Param("x").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(addr.Addr, x)
	Label("loop")
	CMPQ(n, Imm(16))
	JLT(LabelRef("tail"))
	t := ZMM()
	VMOVUPS(Mem{Base: d}, t)
	VFMADD231PS(Mem{Base: s}, x, t)
	VMOVUPS(t, Mem{Base: d})
	ADDQ(Imm(64), d)
	ADDQ(Imm(64), s)
	SUBQ(Imm(16), n)
	JMP(LabelRef("loop"))
	Label("tail")
	k := tailMask512(n)
	u, v := ZMM(), ZMM()
	VMOVUPS_Z(Mem{Base: d}, k, u)
	VMOVUPS_Z(Mem{Base: s}, k, v)
	VFMADD231PS(v, x, u)
	VMOVUPS(u, k, Mem{Base: d})
	VZEROUPPER()
	RET()
}

func axpy256() {
	table := tails()
	function("axpyAVX2",
		"func(dst *float32, x float32, src *float32, n int)",
		"axpyAVX2 adds x*src to dst, n elements, fused.")
	d, s, n := load("dst"), load("src"), load("n")
	x := YMM()
	addr, err := Param("x").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(addr.Addr, x)
	Label("loop")
	CMPQ(n, Imm(8))
	JLT(LabelRef("tail"))
	t := YMM()
	VMOVUPS(Mem{Base: d}, t)
	VFMADD231PS(Mem{Base: s}, x, t)
	VMOVUPS(t, Mem{Base: d})
	ADDQ(Imm(32), d)
	ADDQ(Imm(32), s)
	SUBQ(Imm(8), n)
	JMP(LabelRef("loop"))
	Label("tail")
	m, u, v := YMM(), YMM(), YMM()
	tailMask256(table, n, m)
	VMASKMOVPS(Mem{Base: d}, m, u)
	VMASKMOVPS(Mem{Base: s}, m, v)
	VFMADD231PS(v, x, u)
	VMASKMOVPS(u, m, Mem{Base: d})
	VZEROUPPER()
	RET()
}
