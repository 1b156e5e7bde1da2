// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func floatBits(x float32) uint32 { return math.Float32bits(x) }

// tileRows is the number of rows of a tile, and the distance of heads in dots and weights.
const tileRows = 32

// headPointers returns the addresses of heads vectors that lie stride bytes apart.
func headPointers(base, stride Register, heads int) func(head, disp int) Mem {
	var third Register
	if heads > 3 {
		third = GP64()
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, third)
	}
	return func(head, disp int) Mem {
		m := Mem{Base: base, Disp: disp}
		switch head {
		case 1, 2:
			m.Index, m.Scale = stride, uint8(head)
		case 3:
			m.Index, m.Scale = third, 1
		}
		return m
	}
}

// quadSums adds up the four values in each 128-bit lane of four vectors: element e of lane l is
// the sum of lane l of vector e.
func quadSums(a []VecVirtual) VecVirtual {
	t := zmms(2)
	for i := range t {
		u := ZMM()
		VUNPCKLPS(a[2*i+1], a[2*i], t[i])
		VUNPCKHPS(a[2*i+1], a[2*i], u)
		VADDPS(u, t[i], t[i])
	}
	z, u := ZMM(), ZMM()
	VUNPCKLPD(t[1], t[0], z)
	VUNPCKHPD(t[1], t[0], u)
	VADDPS(u, z, z)
	return z
}

// dotQuads512 multiplies heads queries with rows in quad order.
func dotQuads512(heads int) {
	quads := 4
	if heads < 3 {
		quads = 8 // enough sums to hide the latency of each
	}
	turn := make([]uint32, 16)
	for i := range turn {
		turn[i] = uint32(4*(i%4) + i/4)
	}
	table := dwordsConstant("transpose4", turn)
	name := fmt.Sprintf("dotQuads%dAVX512", heads)
	function(name, "func(dots, q, tile *float32, stride, blocks, groups int)",
		fmt.Sprintf("%s writes the inner products of %d queries in quad order, stride bytes apart, "+
			"with groups times %d rows of blocks times 64 values in quad order.", name, heads,
			4*quads))
	dots, q, tile := load("dots"), load("q"), load("tile")
	stride, blocks, groups := load("stride"), load("blocks"), load("groups")
	query := headPointers(q, stride, heads)
	quad := GP64() // bytes of a quad
	MOVQ(blocks, quad)
	SHLQ(Imm(10), quad)
	quad3 := GP64()
	LEAQ(Mem{Base: quad, Index: quad, Scale: 2}, quad3)
	Label("group")
	acc := make([][]VecVirtual, heads)
	for h := range acc {
		acc[h] = zmms(quads)
		for _, a := range acc[h] {
			VPXORD(a, a, a)
		}
	}
	var upper Register
	if quads == 8 {
		upper = GP64()
		LEAQ(Mem{Base: tile, Index: quad, Scale: 4}, upper)
	}
	row := func(g, disp int) Mem {
		m := Mem{Base: tile, Disp: disp}
		if g >= 4 {
			m.Base = upper
		}
		switch g % 4 {
		case 1, 2:
			m.Index, m.Scale = quad, uint8(g%4)
		case 3:
			m.Index, m.Scale = quad3, 1
		}
		return m
	}
	n := GP64()
	MOVQ(blocks, n)
	Label("block")
	for t := range 16 {
		qs := zmms(heads)
		for h, z := range qs {
			VBROADCASTF32X4(query(h, 16*t), z)
		}
		for g := range quads {
			if heads == 1 {
				VFMADD231PS(row(g, 64*t), qs[0], acc[0][g])
				continue
			}
			v := ZMM()
			VMOVUPS(row(g, 64*t), v)
			for h := range heads {
				VFMADD231PS(v, qs[h], acc[h][g])
			}
		}
	}
	ADDQ(U32(256), q)
	ADDQ(U32(1024), tile)
	if quads == 8 {
		ADDQ(U32(1024), upper)
	}
	SUBQ(Imm(1), n)
	JNZ(LabelRef("block"))
	t := ZMM()
	VMOVDQU32(table, t)
	for h := range heads {
		for g := 0; g < quads; g += 4 {
			z := quadSums(acc[h][g : g+4])
			VPERMPS(z, t, z)
			VMOVUPS(z, Mem{Base: dots, Disp: 4*tileRows*h + 16*g})
		}
	}
	// The tile has moved by one quad; the query goes back.
	back := GP64()
	MOVQ(blocks, back)
	SHLQ(Imm(8), back)
	SUBQ(back, q)
	ADDQ(quad3, tile)
	ADDQ(U32(uint32(16*quads)), dots)
	if quads == 8 {
		LEAQ(Mem{Base: tile, Index: quad, Scale: 4}, tile)
	}
	SUBQ(Imm(1), groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// dotRows512 multiplies heads queries with rows that lie one after the other.
func dotRows512(heads int) {
	rows := 4
	if heads < 3 {
		rows = 8
	}
	name := fmt.Sprintf("dotRows%dAVX512", heads)
	function(name, "func(dots, q, tile *float32, stride, blocks, groups int)",
		fmt.Sprintf("%s writes the inner products of %d queries, stride bytes apart, with groups "+
			"times %d rows of blocks times 64 values, stride bytes apart.", name, heads, rows))
	dots, q, tile := load("dots"), load("q"), load("tile")
	stride, blocks, groups := load("stride"), load("blocks"), load("groups")
	query := headPointers(q, stride, heads)
	stride3 := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	Label("group")
	acc := make([][]VecVirtual, heads)
	for h := range acc {
		acc[h] = zmms(rows)
		for _, a := range acc[h] {
			VPXORD(a, a, a)
		}
	}
	var upper Register
	if rows == 8 {
		upper = GP64()
		LEAQ(Mem{Base: tile, Index: stride, Scale: 4}, upper)
	}
	row := func(r, disp int) Mem {
		m := Mem{Base: tile, Disp: disp}
		if r >= 4 {
			m.Base = upper
		}
		switch r % 4 {
		case 1, 2:
			m.Index, m.Scale = stride, uint8(r%4)
		case 3:
			m.Index, m.Scale = stride3, 1
		}
		return m
	}
	n := GP64()
	MOVQ(blocks, n)
	Label("block")
	for c := range 4 {
		qs := zmms(heads)
		for h, z := range qs {
			VMOVUPS(query(h, 64*c), z)
		}
		for r := range rows {
			if heads == 1 {
				VFMADD231PS(row(r, 64*c), qs[0], acc[0][r])
				continue
			}
			v := ZMM()
			VMOVUPS(row(r, 64*c), v)
			for h := range heads {
				VFMADD231PS(v, qs[h], acc[h][r])
			}
		}
	}
	ADDQ(U32(256), q)
	ADDQ(U32(256), tile)
	if rows == 8 {
		ADDQ(U32(256), upper)
	}
	SUBQ(Imm(1), n)
	JNZ(LabelRef("block"))
	for h := range heads {
		for r := 0; r < rows; r += 4 {
			z := quadSums(acc[h][r : r+4])
			y, x := YMM(), XMM()
			VEXTRACTF64X4(Imm(1), z, y)
			VADDPS(y, z.AsY(), y)
			VEXTRACTF32X4(Imm(1), y, x)
			VADDPS(x, y.AsX(), x)
			VMOVUPS(x, Mem{Base: dots, Disp: 4*tileRows*h + 4*r})
		}
	}
	back := GP64()
	MOVQ(blocks, back)
	SHLQ(Imm(8), back)
	SUBQ(back, q)
	SUBQ(back, tile)
	LEAQ(Mem{Base: tile, Index: stride, Scale: 4}, tile)
	if rows == 8 {
		LEAQ(Mem{Base: tile, Index: stride, Scale: 4}, tile)
	}
	ADDQ(U32(uint32(4*rows)), dots)
	SUBQ(Imm(1), groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// accumulate512 adds weighted rows to the sums of heads queries.
func accumulate512(heads int) {
	const sets = 2 // even and odd rows, to hide the latency of one head's sums
	name := fmt.Sprintf("accumulate%dAVX512", heads)
	function(name, "func(acc, w, tile *float32, stride, blocks, rows int)",
		fmt.Sprintf("%s adds w[head][row]*row to %d sums of blocks times 64 values; sums and rows "+
			"lie stride bytes apart.", name, heads))
	acc, w, tile := load("acc"), load("w"), load("tile")
	stride, blocks, rows := load("stride"), load("blocks"), load("rows")
	sum := headPointers(acc, stride, heads)
	Label("block")
	a := make([][][]VecVirtual, sets)
	for s := range a {
		a[s] = make([][]VecVirtual, heads)
		for h := range a[s] {
			a[s][h] = zmms(4)
			for c, z := range a[s][h] {
				if s == 0 {
					VMOVUPS(sum(h, 64*c), z)
				} else {
					VPXORD(z, z, z)
				}
			}
		}
	}
	step := func(set, disp int, p, weights Register) {
		var v [4]VecVirtual
		if heads > 1 {
			for c := range v {
				v[c] = ZMM()
				VMOVUPS(Mem{Base: p, Disp: 64 * c}, v[c])
			}
		}
		for h := range heads {
			x := ZMM()
			VBROADCASTSS(Mem{Base: weights, Disp: disp + 4*tileRows*h}, x)
			for c, z := range a[set][h] {
				if heads == 1 {
					VFMADD231PS(Mem{Base: p, Disp: 64 * c}, x, z)
				} else {
					VFMADD231PS(v[c], x, z)
				}
			}
		}
		ADDQ(stride, p)
	}
	p, weights, n := GP64(), GP64(), GP64()
	MOVQ(tile, p)
	MOVQ(w, weights)
	MOVQ(rows, n)
	Label("pair")
	CMPQ(n, Imm(2))
	JLT(LabelRef("last"))
	step(0, 0, p, weights)
	step(1, 4, p, weights)
	ADDQ(Imm(8), weights)
	SUBQ(Imm(2), n)
	JMP(LabelRef("pair"))
	Label("last")
	TESTQ(n, n)
	JZ(LabelRef("store"))
	step(0, 0, p, weights)
	Label("store")
	for h := range heads {
		for c := range 4 {
			VADDPS(a[1][h][c], a[0][h][c], a[0][h][c])
		}
	}
	for h := range heads {
		for c, z := range a[0][h] {
			VMOVUPS(z, sum(h, 64*c))
		}
	}
	ADDQ(U32(256), acc)
	ADDQ(U32(256), tile)
	SUBQ(Imm(1), blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

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

func softmax512() {
	function("softmaxAVX512", "func(w, sums, tops, dots, mul, add, noise, scale, "+
		"energy *float32, masks *uint32, heads int)",
		"softmaxAVX512 makes weights of the inner products of a tile: per head "+
			"s = dots*mul + add - energy*noise, tops = max(tops, s), p = exp(s - tops), "+
			"sums = sum of p, w = p*scale. Rows without a bit in masks have w = 0; bits of rows "+
			"whose p is 0 are cleared.")
	w, sums, tops, dots := load("w"), load("sums"), load("tops"), load("dots")
	scale, energy, masks, heads := load("scale"), load("energy"), load("masks"), load("heads")
	s := newScorer512()
	vs := zmms(2)
	for i := range vs {
		VMOVUPS(Mem{Base: scale, Disp: 64 * i}, vs[i])
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
		p := make([]VecVirtual, 2)
		for i := range x {
			VSUBPS(t, x[i], x[i])
			p[i] = exp.exp512(x[i], ok[i])
			VMOVAPS_Z(p[i], ok[i], p[i])
			v := ZMM()
			VMULPS_Z(vs[i], p[i], ok[i], v)
			VMOVUPS(v, Mem{Base: w, Disp: 64 * i})
			KMOVW(ok[i], Mem{Base: masks, Disp: 2 * i})
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
