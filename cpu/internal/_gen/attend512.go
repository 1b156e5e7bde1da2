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
