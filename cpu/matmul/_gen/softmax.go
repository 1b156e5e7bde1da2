// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// The constants of exp, as in exp.go of the package: e^x = 2^n * e^r, with |r| <= ln2/2.
const (
	expMin   = -87
	expMax   = 88
	log2e    = math.Log2E
	ln2Hi    = 0.693359375
	ln2Lo    = -2.12194440e-4
	lanesAll = 32 // running sums, as dot
)

// expTerms are the coefficients of e^r = 1 + r + r^2*(...), the highest power first.
var expTerms = []float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
	1.6666665459e-1, 5.0000001201e-1}

// float fills a register with a number.
func (v vectors) float(x float32) VecVirtual {
	r := v.reg()
	VBROADCASTSS(constant(x), r)
	return r
}

// constant returns where a number lies 8 times.
func constant(x float32) Mem {
	bits := math.Float32bits(x)
	m, ok := constants[bits]
	if !ok {
		m = GLOBL(fmt.Sprintf("float%08x", bits), RODATA|NOPTR)
		for i := range 8 {
			DATA(4*i, U32(bits))
		}
		constants[bits] = m
	}
	return m
}

var constants = map[uint32]Mem{}

// exponential computes e^x in place; a NaN stays one. AVX2 has too few registers for the constants
// and reads them from memory.
type exponential struct {
	v                       vectors
	high                    VecVirtual
	low, scale, hi, lo, one Op
	terms                   []Op
}

func newExponential(v vectors) *exponential {
	of := func(x float32) Op {
		if v.is512() {
			return v.float(x)
		}
		return constant(x)
	}
	e := &exponential{v: v, high: v.float(expMax), low: of(expMin), scale: of(log2e),
		hi: of(ln2Hi), lo: of(ln2Lo), one: of(1)}
	for _, t := range expTerms {
		e.terms = append(e.terms, of(t))
	}
	return e
}

func (e *exponential) of(x VecVirtual) VecVirtual {
	v := e.v
	y, n, p := v.reg(), v.reg(), v.reg()
	VMINPS(x, e.high, y) // of a NaN: x
	VMULPS(e.scale, y, n)
	if v.is512() {
		VRNDSCALEPS(Imm(0), n, n)
	} else {
		VROUNDPS(Imm(0), n, n)
	}
	VFNMADD231PS(e.hi, n, y)
	VFNMADD231PS(e.lo, n, y)
	VMOVUPS(e.terms[0], p)
	for _, t := range e.terms[1:] {
		VFMADD213PS(t, y, p)
	}
	sq := v.reg()
	VMULPS(y, y, sq)
	VFMADD213PS(y, sq, p)
	VADDPS(e.one, p, p)
	VCVTPS2DQ(n, n) // adding to the exponent multiplies by 2^n
	VPSLLD(Imm(23), n, n)
	VPADDD(n, p, p)
	// 0 below expMin. A NaN is not below, and 2^n of one keeps the NaN.
	if v.is512() {
		k := K()
		VCMPPS(Imm(13), e.low, x, k) // x >= low
		u := K()
		VCMPPS(Imm(3), x, x, u) // unordered
		KORW(k, u, k)
		VMOVAPS_Z(p, k, p)
		VBLENDMPS(x, p, u, p)
	} else {
		m := v.reg()
		VCMPPS(Imm(1), e.low, x, m) // x < low
		VANDNPS(p, m, p)
		VCMPPS(Imm(3), x, x, m)
		VBLENDVPS(m, x, p, p)
	}
	return p
}

// softmax writes the kernels of a softmax over scores.
func softmax(v vectors) {
	table := tails()
	for _, x := range append([]float32{expMin, expMax, log2e, ln2Hi, ln2Lo, 1}, expTerms...) {
		constant(x) // no data can be written within a function
	}
	lanes := v.size / 4
	name := "expSum" + v.isa
	function(name, "func(dst, x *float32, top float32, n int) float32",
		name+" writes e^(x-top) to dst, n elements, and returns their sum: 32 running sums, then a tree.")
	dst, x, n := load("dst"), load("x"), Register(nil)
	t := v.reg()
	addr, err := Param("top").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(addr.Addr, t)
	n = load("n")
	e := newExponential(v)
	sums := v.regs(lanesAll / lanes)
	for _, s := range sums {
		VXORPS(s, s, s)
	}
	Label("wide")
	CMPQ(n, Imm(lanesAll))
	JLT(LabelRef("tail0"))
	for i, s := range sums {
		y := v.reg()
		VMOVUPS(Mem{Base: x, Disp: v.size * i}, y)
		VSUBPS(t, y, y)
		y = e.of(y)
		VMOVUPS(y, Mem{Base: dst, Disp: v.size * i})
		VADDPS(y, s, s)
	}
	ADDQ(U32(4*lanesAll), x)
	ADDQ(U32(4*lanesAll), dst)
	SUBQ(Imm(lanesAll), n)
	JMP(LabelRef("wide"))
	for i, s := range sums {
		Label(fmt.Sprintf("tail%d", i))
		if i < len(sums)-1 {
			CMPQ(n, Imm(uint64(lanes)))
			JLT(LabelRef(fmt.Sprintf("last%d", i)))
			y := v.reg()
			VMOVUPS(Mem{Base: x}, y)
			VSUBPS(t, y, y)
			y = e.of(y)
			VMOVUPS(y, Mem{Base: dst})
			VADDPS(y, s, s)
			ADDQ(Imm(uint64(v.size)), x)
			ADDQ(Imm(uint64(v.size)), dst)
			SUBQ(Imm(uint64(lanes)), n)
			JMP(LabelRef(fmt.Sprintf("tail%d", i+1)))
			Label(fmt.Sprintf("last%d", i))
		}
		y := v.reg()
		if v.is512() {
			k := tailMask512(n)
			VMOVUPS_Z(Mem{Base: x}, k, y)
			VSUBPS(t, y, y)
			y = e.of(y)
			VMOVUPS(y, k, Mem{Base: dst})
			VMOVAPS_Z(y, k, y)
		} else {
			m := YMM()
			tailMask256(table, n, m)
			VMASKMOVPS(Mem{Base: x}, m, y)
			VSUBPS(t, y, y)
			y = e.of(y)
			VMASKMOVPS(y, m, Mem{Base: dst})
			VANDPS(m, y, y)
		}
		VADDPS(y, s, s)
		if i < len(sums)-1 {
			JMP(LabelRef("sum"))
		}
	}
	Label("sum")
	reduceSums(v, sums)

	largest(v, table)
}

// reduceSums adds 32 running sums as a tree with strides 16, 8, 4, 2, 1 and returns the sum.
func reduceSums(v vectors, s []VecVirtual) {
	if v.is512() {
		VADDPS(s[1], s[0], s[0])
		y := YMM()
		VEXTRACTF64X4(Imm(1), s[0], y)
		VADDPS(y, s[0].AsY(), y)
		reduce8(y)
		return
	}
	VADDPS(s[2], s[0], s[0])
	VADDPS(s[3], s[1], s[1])
	VADDPS(s[1], s[0], s[0])
	reduce8(s[0])
}

// largest returns the largest element, ignoring NaN.
func largest(v vectors, table Mem) {
	name := "largest" + v.isa
	function(name, "func(x *float32, top float32, n int) float32",
		name+" returns the largest of top and n elements, ignoring NaN among them.")
	x := load("x")
	acc := v.reg()
	addr, err := Param("top").Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(addr.Addr, acc)
	n := load("n")
	lanes := v.size / 4
	Label("loop")
	CMPQ(n, Imm(uint64(lanes)))
	JLT(LabelRef("tail"))
	y := v.reg()
	VMOVUPS(Mem{Base: x}, y)
	VMAXPS(acc, y, acc) // of a NaN in y: acc
	ADDQ(Imm(uint64(v.size)), x)
	SUBQ(Imm(uint64(lanes)), n)
	JMP(LabelRef("loop"))
	Label("tail")
	if v.is512() {
		k := tailMask512(n)
		z := v.reg()
		VMOVAPS(acc, z)
		VMOVUPS(Mem{Base: x}, k, z)
		VMAXPS(acc, z, acc)
	} else {
		m, z := YMM(), YMM()
		tailMask256(table, n, m)
		VMASKMOVPS(Mem{Base: x}, m, z)
		VBLENDVPS(m, z, acc, z)
		VMAXPS(acc, z, acc)
	}
	h := XMM()
	if v.is512() {
		u := YMM()
		VEXTRACTF64X4(Imm(1), acc, u)
		VMAXPS(u, acc.AsY(), acc.AsY())
	}
	VEXTRACTF128(Imm(1), acc.AsY(), h)
	VMAXPS(h, acc.AsX(), h)
	q := XMM()
	VPERMILPS(Imm(0x4e), h, q)
	VMAXPS(q, h, h)
	VPERMILPS(Imm(0xb1), h, q)
	VMAXPS(q, h, h)
	VZEROUPPER()
	Store(h, ReturnIndex(0))
	RET()
}
