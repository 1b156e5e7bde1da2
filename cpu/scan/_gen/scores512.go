// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// A cell becomes four vectors of levels, vector g with components 4j+g in byte j of the 32 bits of a row.
//
// The path of a row, 16 bits and 3 of the cell before, is spread so that byte j has the 7 bits from 4j on: the
// window of component 4j+g is the 4 bits from bit g on. VPERMB looks at the lowest 6 bits of an index and
// VPERMI2B at 7, wherever window and member lie in them: every g has a table of its own, which repeats over the
// bits that do not count. So few bits are shifted, which is what takes time. VPTERNLOG joins window and member.
//
//	width  g = 0            1                2                3
//	1      y: 0..3          y: 1..4          y: 2..5          y>>1: 2..5
//	2      y: 0..3, m: 4    y: 1..4, m: 5    y: 2..5, m>>6: 0 y>>1: 2..5, m>>6: 1
//	3      y: 0..3, p: 4..  y>>1: 0..3, p>>2: 4..  y: 2..5, p: 0..  y>>1: 2..5, p>>2: 0..
//	4      as 3, and m: 6
//
// y is the path, p pairs of member bits, m the last bits. For wider codes an affine map over GF(2) turns all
// four windows into subsets, two bits each.

// wide says that levels are found by subset and member, not by window and member.
func wide(width int) bool { return width >= 5 }

// decoder512 has the constants of a width in registers.
type decoder512 struct {
	width                int
	spread, spreadMember VecVirtual     // controls of VPMULTISHIFTQB
	spreadUpper          VecVirtual     // width 4: for g = 2 and 3
	subsets              VecVirtual     // the affine map
	masks                []VecVirtual   // the bits of the windows or subsets
	mask6                VecVirtual     // all bits below the last bit of the member
	table                [][]VecVirtual // of each g, one or two vectors; one for all g from 5 bits on
	before               VecVirtual     // the path of the cell before
}

// shifts returns a control for VPMULTISHIFTQB: byte j of a row gets 8 bits from 4j+first on.
func shifts(first int) []byte {
	b := make([]byte, 64)
	for i := range b {
		b[i] = byte(32*(i/4%2)+4*(i%4)+first) & 63
	}
	return b
}

// subsetMap is the matrix whose bits 2g and 2g+1 are the subset of the window from bit g on. Row 7-i of the
// matrix gives bit i.
func subsetMap() []byte {
	b := make([]byte, 64)
	for g := range 4 {
		low, high := byte(2)<<g, byte(1|4|8)<<g
		for q := range 8 {
			b[8*q+7-2*g], b[8*q+7-2*g-1] = low, high
		}
	}
	return b
}

func newDecoder512(width int, table Register) *decoder512 {
	constant := func(name string, b []byte) VecVirtual {
		z := ZMM()
		VMOVDQU64(bytesConstant(name, b), z)
		return z
	}
	d := &decoder512{width: width, spread: constant("spreadPath", shifts(0)), before: ZMM()}
	masks := map[int][]byte{2: {0x0f, 0x1e, 0x3c}, 3: {0x0f, 0x3c}, 4: {0x0f, 0x3c}, 5: {0x03}, 6: {0x03}}[width]
	for _, m := range masks {
		d.masks = append(d.masks, constant(fmt.Sprintf("bits%02x", m), repeated(m, 64)))
	}
	if wide(width) {
		d.subsets = constant("subsetMap", subsetMap())
	}
	switch width {
	case 2:
		d.spreadMember = constant("spreadMember4", shifts(-4))
	case 4:
		d.spreadMember = constant("spreadMember6", shifts(-6))
		d.spreadUpper = constant("spreadMember4", shifts(-4))
		d.mask6 = constant("bits3f", repeated(0x3f, 64))
	case 6:
		d.spreadMember = constant("spreadMember3", shifts(-3))
		d.mask6 = constant("bits3f", repeated(0x3f, 64))
	}
	vectors := 1 + b2i(width == 4 || width == 6)
	for i := range tables512(width) {
		var t []VecVirtual
		for range vectors {
			z := ZMM()
			VMOVDQU64(Mem{Base: table, Disp: 64 * (vectors*i + len(t))}, z)
			t = append(t, z)
		}
		d.table = append(d.table, t)
	}
	return d
}

// tables512 returns the number of tables.
func tables512(width int) int { return []int{0, 3, 4, 2, 2, 1, 1}[width] }

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// start loads the path before the first cell.
func (d *decoder512) start(tile, prev Register, k Register) {
	VPMOVZXWD_Z(Mem{Base: tile, Index: prev, Scale: 1}, k, d.before)
}

// shift shifts the 32-bit words of x right by n, left if n is negative.
func shift512(x VecVirtual, n int) VecVirtual {
	if n == 0 {
		return x
	}
	z := ZMM()
	if n > 0 {
		VPSRLD(Imm(uint64(n)), x, z)
	} else {
		VPSLLD(Imm(uint64(-n)), x, z)
	}
	return z
}

// join returns the bits of a that mask has, and those of b that it has not.
func join(a, b, mask VecVirtual) VecVirtual {
	z := ZMM()
	VMOVDQA64(a, z)
	return joinTo(z, b, mask)
}

// joinTo is join into a.
func joinTo(a, b, mask VecVirtual) VecVirtual {
	VPTERNLOGD(Imm(0xe4), mask, b, a)
	return a
}

// cell decodes the cell at p and calls emit with each of its vectors.
func (d *decoder512) cell(p Register, emit func(g int, levels VecVirtual)) {
	now, y := ZMM(), ZMM()
	VPMOVZXWD(Mem{Base: p}, now)
	VPSRLD(Imm(13), d.before, y)
	VMOVDQA64(now, d.before)
	VPSLLD(Imm(3), now, now)
	VPORD(now, y, y)
	VPMULTISHIFTQB(y, d.spread, y)
	if wide(d.width) {
		VGF2P8AFFINEQB(Imm(0), d.subsets, y, y)
	}
	at := 32
	var nibbles [2]VecVirtual
	var pairs, last, upper VecVirtual
	w := d.width - 1
	if w&4 != 0 {
		for i := range nibbles {
			nibbles[i] = ZMM()
			VMOVDQU64(Mem{Base: p, Disp: at + 64*i}, nibbles[i])
		}
		at += 128
	}
	if w&2 != 0 {
		pairs = ZMM()
		VMOVDQU64(Mem{Base: p, Disp: at}, pairs)
		at += 64
	}
	if w&1 != 0 {
		last = ZMM()
		VPMOVZXWD(Mem{Base: p, Disp: at}, last)
		if d.width == 4 {
			upper = ZMM()
			VPMULTISHIFTQB(last, d.spreadUpper, upper) // bits 4 to 7
		}
		VPMULTISHIFTQB(last, d.spreadMember, last)
	}
	var y1, pairs2, members6 VecVirtual
	if d.width <= 4 {
		y1 = shift512(y, 1)
	}
	switch d.width {
	case 2:
		members6 = shift512(last, 6)
	case 3, 4:
		pairs2 = shift512(pairs, 2)
	}
	for g := range 4 {
		var index VecVirtual
		table := d.table[0]
		switch d.width {
		case 1:
			index, table = []VecVirtual{y, y, y, y1}[g], d.table[min(g, 2)]
		case 2:
			index = join([]VecVirtual{y, y, y, y1}[g], []VecVirtual{last, last, members6, members6}[g], d.masks[min(g, 2)])
			table = d.table[g]
		case 3, 4:
			index = join([]VecVirtual{y, y1}[g%2], []VecVirtual{pairs, pairs2}[g%2], d.masks[g/2])
			table = d.table[g/2]
			if d.width == 4 { // the last bits of g = 0 and 1 at 6 and 7 of last, of 2 and 3 at 6 and 7 of upper
				index = joinTo(index, shift512([]VecVirtual{last, upper}[g/2], g%2), d.mask6)
			}
		case 5, 6: // nibbles at 4(g%2), wanted at 2
			index = join(shift512(y, 2*g), shift512(nibbles[g/2], 4*(g%2)-2), d.masks[0])
			if d.width == 6 { // the last bit at 3+g, wanted at 6
				index = joinTo(index, shift512(last, g-3), d.mask6)
			}
		}
		z := ZMM()
		if len(table) == 2 {
			VMOVDQA64(index, z)
			VPERMI2B(table[1], table[0], z)
		} else {
			VPERMB(table[0], index, z)
		}
		emit(g, z)
	}
}

func scores512(width int) {
	function(fmt.Sprintf("scores%dAVX512", width), scoresSignature,
		fmt.Sprintf("adds scale * (start + the products of codes and levels) of a run of cells of width %d to the "+
			"scores of n tiles, which lie stride bytes apart. The path before the run lies prev bytes from it, if "+
			"mask is 0xffff. n and cells are at least 1.", width), scoresLoop)
	out, tile, stride, n := load("out"), load("tile"), load("stride"), load("n")
	cells, prev, codes := load("cells"), load("prev"), load("codes")
	k := K()
	mask := load("mask")
	KMOVW(mask.(GPVirtual).As32(), k)
	table := load("table")
	d := newDecoder512(width, table)
	start, scale := ZMM(), ZMM()
	VBROADCASTSS(param("start"), start)
	VBROADCASTSS(param("scale"), scale)
	acc := []VecVirtual{ZMM(), ZMM(), ZMM(), ZMM()}
	Label("tile")
	d.start(tile, prev, k)
	VMOVDQA64(start, acc[0])
	for _, a := range acc[1:] {
		VPXORD(a, a, a)
	}
	p, q, c := GP64(), GP64(), GP64()
	MOVQ(tile, p)
	MOVQ(codes, q)
	MOVQ(cells, c)
	Label("cell")
	d.cell(p, func(g int, levels VecVirtual) {
		VPDPBUSD_BCST(Mem{Base: q, Disp: 4 * g}, levels, acc[g])
	})
	ADDQ(U32(uint32(32*width)), p)
	ADDQ(Imm(16), q)
	SUBQ(Imm(1), c)
	JNZ(LabelRef("cell"))
	VPADDD(acc[1], acc[0], acc[0])
	VPADDD(acc[3], acc[2], acc[2])
	VPADDD(acc[2], acc[0], acc[0])
	VCVTDQ2PS(acc[0], acc[0])
	VMULPS(scale, acc[0], acc[0])
	VADDPS(Mem{Base: out}, acc[0], acc[0])
	VMOVUPS(acc[0], Mem{Base: out})
	ADDQ(Imm(64), out)
	ADDQ(stride, tile)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

func unpack512(width int) {
	function(fmt.Sprintf("unpack%dAVX512", width), unpackSignature,
		fmt.Sprintf("writes the levels of a run of cells of width %d of one tile. The path before the run lies prev "+
			"bytes from it, if mask is 0xffff. cells is at least 1.", width), unpackLoop)
	dst, tile, cells, prev := load("dst"), load("tile"), load("cells"), load("prev")
	k := K()
	mask := load("mask")
	KMOVW(mask.(GPVirtual).As32(), k)
	table := load("table")
	d := newDecoder512(width, table)
	d.start(tile, prev, k)
	Label("cell")
	d.cell(tile, func(g int, levels VecVirtual) {
		VMOVDQU64(levels, Mem{Base: dst, Disp: 64 * g})
	})
	ADDQ(U32(uint32(32*width)), tile)
	ADDQ(U32(256), dst)
	SUBQ(Imm(1), cells)
	JNZ(LabelRef("cell"))
	VZEROUPPER()
	RET()
}

const dotsLoop = `
for k := range queries {
	sum[r] = starts[k] // of every row r
	for v := range n {
		for j := range 4 {
			sum[r] += codes[4*(queries*v+k)+j] * levels[64*v+4*r+j]
		}
	}
	out[k*stride+r] += scales[k] * sum[r]
}`

const dotsSignature = "func(out *float32, stride int, levels *byte, codes *int8, n int, starts *int32, scales *float32)"

func dots512(queries int) {
	function(fmt.Sprintf("dots%dAVX512", queries), dotsSignature,
		fmt.Sprintf("adds scales * (starts + the products of codes and n vectors of levels) of one tile to the scores "+
			"of %d queries, whose codes are interleaved. n is at least 1.", queries), dotsLoop)
	out, stride, levels, codes := load("out"), load("stride"), load("levels"), load("codes")
	n, starts, scales := load("n"), load("starts"), load("scales")
	SHLQ(Imm(2), stride)
	acc := make([]VecVirtual, queries)
	for k := range acc {
		acc[k] = ZMM()
		VPBROADCASTD(Mem{Base: starts, Disp: 4 * k}, acc[k])
	}
	Label("vector")
	z := ZMM()
	VMOVDQU64(Mem{Base: levels}, z)
	for k, a := range acc {
		VPDPBUSD_BCST(Mem{Base: codes, Disp: 4 * k}, z, a)
	}
	ADDQ(Imm(64), levels)
	ADDQ(Imm(uint64(4*queries)), codes)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("vector"))
	for k, a := range acc {
		VCVTDQ2PS(a, a)
		VMULPS_BCST(Mem{Base: scales, Disp: 4 * k}, a, a)
		VADDPS(Mem{Base: out}, a, a)
		VMOVUPS(a, Mem{Base: out})
		ADDQ(stride, out)
	}
	VZEROUPPER()
	RET()
}

const finishLoop = `
for t := range n {
	masks[t] = 0
	for r := range 16 { // x, factor, norm of row 16*t+r
		x *= factor
		if norms != nil {
			x -= norm
		}
		if x > threshold {
			masks[t] |= 1 << r
		}
	}
}`

const finishSignature = "func(masks *uint16, scores *float32, factors *byte, table, norms *float32, n int, threshold float32)"

func finish512() {
	function("finishAVX512", finishSignature, "makes keys of the scores of n tiles; table or norms may be nil. n is at least 1.", finishLoop)
	masks, scores, factors := load("masks"), load("scores"), load("factors")
	table, norms, n := load("table"), load("norms"), load("n")
	threshold, f, x := ZMM(), ZMM(), ZMM()
	VBROADCASTSS(param("threshold"), threshold)
	k, all := K(), K()
	m := GP32()
	Label("tile")
	TESTQ(table, table)
	JZ(LabelRef("halves"))
	index := ZMM()
	VPMOVZXBD(Mem{Base: factors}, index)
	KXNORW(all, all, all)
	VPXORD(f, f, f)
	VGATHERDPS(Mem{Base: table, Index: index, Scale: 4}, all, f)
	ADDQ(Imm(16), factors)
	JMP(LabelRef("multiply"))
	Label("halves")
	VPMOVZXWD(Mem{Base: factors}, f)
	VPSLLD(Imm(16), f, f)
	ADDQ(Imm(32), factors)
	Label("multiply")
	VMULPS(Mem{Base: scores}, f, x)
	TESTQ(norms, norms)
	JZ(LabelRef("compare"))
	VSUBPS(Mem{Base: norms}, x, x)
	ADDQ(Imm(64), norms)
	Label("compare")
	VMOVUPS(x, Mem{Base: scores})
	VCMPPS(Imm(0x1e), threshold, x, k) // greater, ordered, quiet
	KMOVW(k, m)
	MOVW(m.As16(), Mem{Base: masks})
	ADDQ(Imm(64), scores)
	ADDQ(Imm(2), masks)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

const searchLoop = `
for s := range 8 { // of every row
	next[s], from[s] = cost[low] + dist[low], 0
	if c := cost[high] + dist[high]; c < next[s] {
		next[s], from[s] = c, 1
	}
}`

// subset is trellis.Subset.
func subset(state, u int) int { return 2*((u^state^state>>2)&1) + state>>1&1 }

func search512() {
	function("searchAVX512", "func(x *float32, n int, levels *float32, members int, from *uint16, member *byte, cost *float32)",
		"takes 16 rows through n components of one width, with so many members in a subset: x is [n][16], cost "+
			"[8][16] the costs of the states. dist is the distance to the nearest level of a state's subset, which "+
			"member records. n is at least 1.", searchLoop)
	x, n, levels, members := load("x"), load("n"), load("levels"), load("members")
	from, member, cost := load("from"), load("member"), load("cost")
	c := make([]VecVirtual, 8)
	for s := range c {
		c[s] = ZMM()
		VMOVUPS(Mem{Base: cost, Disp: 64 * s}, c[s])
	}
	inf := ZMM()
	VPTERNLOGD(Imm(0xff), inf, inf, inf)
	VPSRLD(Imm(24), inf, inf)
	VPSLLD(Imm(23), inf, inf) // 0x7f800000
	one := ZMM()
	VPTERNLOGD(Imm(0xff), one, one, one)
	VPSRLD(Imm(31), one, one)
	k := K()
	Label("component")
	v := ZMM()
	VMOVUPS(Mem{Base: x}, v)
	dist, which := make([]VecVirtual, 4), make([]VecVirtual, 4)
	for i := range dist {
		dist[i], which[i] = ZMM(), ZMM()
		VMOVAPS(inf, dist[i])
		VPXORD(which[i], which[i], which[i])
	}
	count, p := GP64(), GP64()
	MOVQ(members, count)
	MOVQ(levels, p)
	m := ZMM()
	VPXORD(m, m, m)
	Label("member")
	for i := range dist {
		d := ZMM()
		VSUBPS_BCST(Mem{Base: p, Disp: 4 * i}, v, d)
		VMULPS(d, d, d)
		VCMPPS(Imm(0x11), dist[i], d, k) // d < dist
		VMINPS(dist[i], d, dist[i])      // dist where either is no number
		VMOVDQA32(m, k, which[i])
	}
	VPADDD(one, m, m)
	ADDQ(Imm(16), p)
	SUBQ(Imm(1), count)
	JNZ(LabelRef("member"))
	for i := range which {
		VPMOVDB(which[i], Mem{Base: member, Disp: 16 * i})
	}
	next := make([]VecVirtual, 8)
	for s := range next {
		u, low, high := s&1, s>>1, s>>1|4
		a, b := ZMM(), ZMM()
		VADDPS(dist[subset(low, u)], c[low], a)
		VADDPS(dist[subset(high, u)], c[high], b)
		VCMPPS(Imm(0x11), a, b, k) // b < a
		next[s] = ZMM()
		VMINPS(a, b, next[s])
		bits := GP32()
		KMOVW(k, bits)
		MOVW(bits.As16(), Mem{Base: from, Disp: 2 * s})
	}
	for s := range next {
		VMOVAPS(next[s], c[s])
	}
	ADDQ(Imm(64), x)
	ADDQ(Imm(16), from)
	ADDQ(Imm(64), member)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("component"))
	for s := range c {
		VMOVUPS(c[s], Mem{Base: cost, Disp: 64 * s})
	}
	VZEROUPPER()
	RET()
}
