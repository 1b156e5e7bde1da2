// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// expConstants are those of exp512, kept in registers.
type expConstants struct {
	log2e, hi, lo, one, low, floor VecVirtual
	poly                           []VecVirtual
}

func newExp() expConstants {
	e := expConstants{log2e: broadcastFloat(1.44269504), hi: broadcastFloat(0.693145751953125),
		lo: broadcastFloat(1.42860677e-6), one: broadcastFloat(1), low: broadcastFloat(-87.33654),
		floor: broadcastFloat(-150)}
	for _, c := range []float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
		4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1} {
		e.poly = append(e.poly, broadcastFloat(c))
	}
	return e
}

// exp512 returns exp(x), and leaves in keep those of its lanes where the result is a normal number
// or a NaN. x is used up.
func (e expConstants) exp512(x VecVirtual, keep Register) VecVirtual {
	VCMPPS(Imm(5), e.low, x, keep, keep) // not less than: NaN stays
	VMAXPS(x, e.floor, x)                // NaN stays
	n, p, rr := ZMM(), ZMM(), ZMM()
	VMULPS(e.log2e, x, n)
	VRNDSCALEPS(Imm(8), n, n)
	VFNMADD231PS(e.hi, n, x)
	VFNMADD231PS(e.lo, n, x)
	VMOVAPS(e.poly[0], p)
	for _, c := range e.poly[1:] {
		VFMADD213PS(c, x, p)
	}
	VMULPS(x, x, rr)
	VADDPS(e.one, x, x)
	VFMADD231PS(rr, p, x)
	VSCALEFPS(n, x, x)
	return x
}

// reduce512 folds the lanes of z with op, and returns the result in the first.
func reduce512(z VecVirtual, op func(a, b, dst Op)) VecVirtual {
	y, x, t := YMM(), XMM(), XMM()
	VEXTRACTF64X4(Imm(1), z, y)
	op(y, z.AsY(), y)
	VEXTRACTF32X4(Imm(1), y, x)
	op(x, y.AsX(), x)
	VPERMILPS(Imm(0x4e), x, t)
	op(t, x, x)
	VPERMILPS(Imm(0xb1), x, t)
	op(t, x, x)
	return x
}

// scorer512 holds what scores of a tile are made of.
type scorer512 struct {
	mul, add, noise []VecVirtual
	inf             VecVirtual
}

func newScorer512() scorer512 {
	s := scorer512{mul: zmms(2), add: zmms(2), noise: zmms(2)}
	for _, p := range []struct {
		name string
		v    []VecVirtual
	}{{"mul", s.mul}, {"add", s.add}, {"noise", s.noise}} {
		ptr := load(p.name)
		for i := range 2 {
			VMOVUPS(Mem{Base: ptr, Disp: 64 * i}, p.v[i])
		}
	}
	s.inf = broadcastFloat(float32(math.Inf(-1)))
	return s
}

// scores returns the scores of a head, and masks of the rows that have one.
func (s scorer512) scores(dots, energy, masks Register) (x []VecVirtual, ok []Register) {
	x, ok = zmms(2), []Register{K(), K()}
	e := ZMM()
	VBROADCASTSS(Mem{Base: energy}, e)
	KMOVW(Mem{Base: masks}, ok[0])
	KMOVW(Mem{Base: masks, Disp: 2}, ok[1])
	for i := range x {
		VMOVUPS(Mem{Base: dots, Disp: 64 * i}, x[i])
		VFMADD213PS(s.add[i], s.mul[i], x[i])
		VFNMADD231PS(s.noise[i], e, x[i])
		VCMPPS(Imm(4), s.inf, x[i], ok[i], ok[i]) // not equal: NaN stays
	}
	return x, ok
}

// softmax512 makes weights of inner products; cut, it cuts them into digits too.
func softmax512(cut bool) {
	name, sig := "softmaxAVX512", "func(w, sums, tops, dots, mul, add, noise, scale, "+
		"energy *float32, masks *uint32, heads int"
	doc := " makes weights of the inner products of a tile: per head " +
		"s = dots*mul + add - energy*noise, tops = max(tops, s), p = exp(s - tops), " +
		"sums = sum of p, w = p*scale. Rows without a bit in masks have w = 0; bits of rows " +
		"whose p is 0 are cleared."
	if cut {
		name = "softmaxCutAVX512"
		sig += ", digits *byte, units *float32) (largest uint32"
		doc += " It also writes weights as integers of 24 bits, the lowest byte of every row first, " +
			"and what one is worth, and returns the largest of the bits of the scales."
	}
	function(name, sig+")", name+doc)
	w, sums, tops, dots := load("w"), load("sums"), load("tops"), load("dots")
	scale, energy, masks, heads := load("scale"), load("energy"), load("masks"), load("heads")
	s := newScorer512()
	vs := zmms(2)
	for i := range vs {
		VMOVUPS(Mem{Base: scale, Disp: 64 * i}, vs[i])
	}
	var to, units Register
	if cut {
		to, units = load("digits"), load("units")
		m, r := ZMM(), GP32()
		VPMAXUD(vs[1], vs[0], m)
		VMOVD(reduce512(m, func(a, b, d Op) { VPMAXUD(a, b, d) }), r)
		Store(r, ReturnIndex(0))
	}
	exp := newExp()
	times("head", heads, func() {
		x, ok := s.scores(dots, energy, masks)
		m, t := ZMM(), ZMM()
		VMOVAPS(s.inf, m)
		for i := range x {
			VMAXPS(m, x[i], ok[i], m) // NaN gives way
		}
		VBROADCASTSS(Mem{Base: tops}, t)
		higher := K()
		VCMPPS(Imm(14), t, m, higher)
		KORTESTW(higher, higher)
		JZ(LabelRef("same")) // in most tiles no row is above those before
		top := reduce512(m, func(a, b, d Op) { VMAXPS(a, b, d) })
		VMOVSS(top, Mem{Base: tops})
		VBROADCASTSS(top, t)
		Label("same")
		var p, v [2]VecVirtual
		for i := range x {
			VSUBPS(t, x[i], x[i])
			p[i] = exp.exp512(x[i], ok[i])
			VMOVAPS_Z(p[i], ok[i], p[i])
			v[i] = ZMM()
			VMULPS_Z(vs[i], p[i], ok[i], v[i])
			VMOVUPS(v[i], Mem{Base: w, Disp: 64 * i})
			KMOVW(ok[i], Mem{Base: masks, Disp: 2 * i})
		}
		if cut {
			cutWeights512(v, exp.one, to, units)
			ADDQ(Imm(digits*tileRows), to)
			ADDQ(Imm(4), units)
		}
		VADDPS(p[1], p[0], p[0])
		sum := reduce512(p[0], func(a, b, d Op) { VADDPS(a, b, d) })
		VMOVSS(sum, Mem{Base: sums})
		ADDQ(U32(4*tileRows), w)
		ADDQ(U32(4*tileRows), dots)
		for _, r := range []Register{sums, tops, energy, masks} {
			ADDQ(Imm(4), r)
		}
	})
	VZEROUPPER()
	RET()
}

func probs512() {
	function("probsAVX512", "func(acc *float64, dots, mul, add, noise, energy, "+
		"lse *float32, masks *uint32, heads, power int)",
		"probsAVX512 adds exp(s - lse)^power of every head to acc[32], with scores s as "+
			"softmaxAVX512 makes them.")
	acc, dots := load("acc"), load("dots")
	energy, lse, masks := load("energy"), load("lse"), load("masks")
	heads, power := load("heads"), load("power")
	s := newScorer512()
	exp := newExp()
	sum := zmms(4)
	for i, z := range sum {
		VMOVUPD(Mem{Base: acc, Disp: 64 * i}, z)
	}
	times("head", heads, func() {
		x, ok := s.scores(dots, energy, masks)
		t := ZMM()
		VBROADCASTSS(Mem{Base: lse}, t)
		p := make([]VecVirtual, 2)
		for i := range x {
			VSUBPS(t, x[i], x[i])
			p[i] = exp.exp512(x[i], ok[i])
			VMOVAPS_Z(p[i], ok[i], p[i])
		}
		CMPQ(power, Imm(2))
		JNE(LabelRef("once"))
		for i := range p {
			VMULPS(p[i], p[i], p[i])
		}
		Label("once")
		for i := range p {
			y, d := YMM(), ZMM()
			VCVTPS2PD(p[i].AsY(), d)
			VADDPD(d, sum[2*i], sum[2*i])
			VEXTRACTF64X4(Imm(1), p[i], y)
			VCVTPS2PD(y, d)
			VADDPD(d, sum[2*i+1], sum[2*i+1])
		}
		ADDQ(U32(4*tileRows), dots)
		for _, r := range []Register{lse, energy, masks} {
			ADDQ(Imm(4), r)
		}
	})
	for i, z := range sum {
		VMOVUPD(z, Mem{Base: acc, Disp: 64 * i})
	}
	VZEROUPPER()
	RET()
}

func fold512() {
	function("foldAVX512", "func(sum *float64, acc *float32, n int)",
		"foldAVX512 adds n times 16 floats to doubles and clears them.")
	sum, acc, n := load("sum"), load("acc"), load("n")
	zero := ZMM()
	VPXORD(zero, zero, zero)
	times("loop", n, func() {
		for i := range 2 {
			z := ZMM()
			VCVTPS2PD(Mem{Base: acc, Disp: 32 * i}, z)
			VADDPD(Mem{Base: sum, Disp: 64 * i}, z, z)
			VMOVUPD(z, Mem{Base: sum, Disp: 64 * i})
		}
		VMOVUPS(zero, Mem{Base: acc})
		ADDQ(Imm(64), acc)
		ADDQ(U32(128), sum)
	})
	VZEROUPPER()
	RET()
}

func square512() {
	function("squareAVX512", "func(dst, src *float32, factor float32)",
		"squareAVX512 writes factor*src^2, 32 values.")
	dst, src := load("dst"), load("src")
	f := ZMM()
	VBROADCASTSS(param("factor"), f)
	for i := range 2 {
		z := ZMM()
		VMOVUPS(Mem{Base: src, Disp: 64 * i}, z)
		VMULPS(z, z, z)
		VMULPS(f, z, z)
		VMOVUPS(z, Mem{Base: dst, Disp: 64 * i})
	}
	VZEROUPPER()
	RET()
}

func prefetch() {
	function("prefetchLines", "func(p *byte, lines int)",
		"prefetchLines asks for lines of 64 bytes, one at least.")
	p, n := load("p"), load("lines")
	times("line", n, func() {
		PREFETCHT0(Mem{Base: p})
		ADDQ(Imm(64), p)
	})
	RET()
}
