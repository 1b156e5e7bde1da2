// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// AVX2 has no look-up by 6 bits and no multiplication of unsigned and signed bytes into 32 bits. Levels are
// found by VPSHUFB, 16 at a time: by subset (2 bits) and the two lowest bits of the member. The table for the
// other bits of the member is chosen by VPBLENDVB. VPMADDUBSW cannot overflow, because levels have 7 bits and
// codes lie between -127 and 127.
//
// A half of a tile is 8 rows. Constants are in memory, because there are 16 registers.

// tables256 returns the number of tables of 16 levels.
func tables256(width int) int { return max(1, 1<<(width-3)) }

type decoder256 struct {
	width  int
	table  Register
	spread [2]Mem
	maps   [2]Mem
	before VecVirtual
}

func newDecoder256(width int, table Register) *decoder256 {
	d := &decoder256{width: width, table: table, before: YMM()}
	for odd := range d.spread {
		b := repeated(0x80, 32)
		for row := 0; row < 32; row += 4 {
			lane := byte(row % 16)
			b[row+odd], b[row+2+odd] = lane, lane+1
		}
		d.spread[odd] = bytesConstant([]string{"spreadEven", "spreadOdd"}[odd], b)
	}
	// The subsets of all four windows in a byte, as sums of what its two nibbles contribute.
	for part := range d.maps {
		b := make([]byte, 32)
		for i := range b {
			y := byte(i%16) << (4 * part)
			for g := range 4 {
				w := y >> g
				low, high := w>>1&1, (w^w>>2^w>>3)&1
				b[i] |= (low | high<<1) << (2 * g)
			}
		}
		d.maps[part] = bytesConstant([]string{"subsetLow", "subsetHigh"}[part], b)
	}
	return d
}

// shift256 shifts the 32-bit words of x right by n, left if n is negative, into z.
func shift256(x VecVirtual, n int) VecVirtual {
	z := YMM()
	switch {
	case n > 0:
		VPSRLD(Imm(uint64(n)), x, z)
	case n < 0:
		VPSLLD(Imm(uint64(-n)), x, z)
	default:
		VMOVDQA(x, z)
	}
	return z
}

// bytesOf spreads the 32-bit words of v: byte j gets the bits from 4j on, and others above.
func (d *decoder256) bytesOf(v VecVirtual) VecVirtual {
	odd, even := YMM(), YMM()
	VPSRLD(Imm(4), v, odd)
	VPSHUFB(d.spread[0], v, even)
	VPSHUFB(d.spread[1], odd, odd)
	VPOR(odd, even, even)
	return even
}

// masked returns x and a byte everywhere.
func masked(x VecVirtual, v byte) VecVirtual {
	VPAND(bytesConstant(fmt.Sprintf("and%02x", v), repeated(v, 32)), x, x)
	return x
}

// start loads the path before the first cell, or zeros.
func (d *decoder256) start(path, mask Register) {
	VPMOVZXWD(Mem{Base: path}, d.before)
	m := YMM()
	VMOVQ(mask, m.AsX())
	VPBROADCASTW(m.AsX(), m)
	VPAND(m, d.before, d.before)
}

// cell decodes the rows of a half in the cell at p, where 16-bit planes are read at p + half/2 and those of 32
// bits at p + half.
func (d *decoder256) cell(p16, p32 Register, emit func(g int, levels VecVirtual)) {
	now, y := YMM(), YMM()
	VPMOVZXWD(Mem{Base: p16}, now)
	VPSRLD(Imm(13), d.before, y)
	VMOVDQA(now, d.before)
	VPSLLD(Imm(3), now, now)
	VPOR(now, y, y)
	y = d.bytesOf(y)
	// Subsets of the four windows of each byte.
	low, high := shift256(y, 0), shift256(y, 4)
	masked(low, 0x0f)
	masked(high, 0x07)
	subsets, t := YMM(), YMM()
	VMOVDQU(d.maps[0], subsets)
	VPSHUFB(low, subsets, subsets)
	VMOVDQU(d.maps[1], t)
	VPSHUFB(high, t, t)
	VPXOR(t, subsets, subsets)
	at, w := 32, d.width-1
	nibbles, pairs := -1, -1
	if w&4 != 0 {
		nibbles, at = at, at+128
	}
	if w&2 != 0 {
		pairs, at = at, at+64
	}
	var last VecVirtual
	if w&1 != 0 {
		last = YMM()
		VPMOVZXWD(Mem{Base: p16, Disp: at}, last)
		last = d.bytesOf(last) // bits 0 to 3: the last bits of components 4j+g
	}
	for g := range 4 {
		index := masked(shift256(subsets, 2*g), 0x03)
		var selectors []VecVirtual // bit 7 of a byte: a bit of the member above the lowest two
		member := func(bits VecVirtual, v byte) {
			masked(bits, v)
			VPOR(bits, index, index)
		}
		wordAt := func(at int) VecVirtual {
			m := YMM()
			VMOVDQU(Mem{Base: p32, Disp: at}, m)
			return m
		}
		switch d.width {
		case 2:
			member(shift256(last, g-2), 0x04)
		case 3, 4:
			member(shift256(wordAt(pairs), (2*g+4)%8-2), 0x0c)
			if d.width == 4 {
				selectors = append(selectors, shift256(last, g-7))
			}
		case 5, 6:
			n := wordAt(nibbles + 64*(g/2))
			member(shift256(n, 4*(g%2)-2), 0x0c)
			selectors = append(selectors, shift256(n, 4*(g%2)-5), shift256(n, 4*(g%2)-4))
			if d.width == 6 {
				selectors = append(selectors, shift256(last, g-7))
			}
		}
		emit(g, d.lookup(index, selectors))
	}
}

// lookup returns the levels at index of the table that selectors choose.
func (d *decoder256) lookup(index VecVirtual, selectors []VecVirtual) VecVirtual {
	var find func(table, bit int) VecVirtual
	find = func(table, bit int) VecVirtual {
		if bit < 0 {
			z := YMM()
			VBROADCASTI128(Mem{Base: d.table, Disp: 16 * table}, z)
			VPSHUFB(index, z, z)
			return z
		}
		a := find(table, bit-1)
		b := find(table+1<<bit, bit-1)
		VPBLENDVB(selectors[bit], b, a, a)
		return a
	}
	return find(0, len(selectors)-1)
}

// halves calls body for both halves of a tile: label suffix, and offset of the first row in 16-bit planes.
func halves(body func(name string, offset int)) {
	body("A", 0)
	body("B", 16)
}

func scores256(width int) {
	function(fmt.Sprintf("scores%dAVX2", width), scoresSignature,
		fmt.Sprintf("is scores%dAVX512 for AVX2.", width), scoresLoop)
	out, tile, stride, n := load("out"), load("tile"), load("stride"), load("n")
	codes, table := load("codes"), load("table")
	d := newDecoder256(width, table)
	Label("tile")
	halves(func(name string, offset int) {
		p16, p32 := GP64(), GP64()
		t, mask := GP64(), GP64()
		Load(Param("prev"), t)
		Load(Param("mask"), mask)
		TESTQ(mask, mask)
		CMOVQEQ(mask, t) // no path before: read that of the run itself
		ADDQ(tile, t)
		ADDQ(Imm(uint64(offset)), t)
		d.start(t, mask)
		LEAQ(Mem{Base: tile, Disp: offset}, p16)
		LEAQ(Mem{Base: tile, Disp: 2 * offset}, p32)
		acc := YMM()
		VBROADCASTSS(param("start"), acc)
		q, c := GP64(), GP64()
		MOVQ(codes, q)
		Load(Param("cells"), c)
		Label("cell" + name)
		d.cell(p16, p32, func(g int, levels VecVirtual) {
			multiply256(Mem{Base: q, Disp: 4 * g}, levels, acc)
		})
		ADDQ(U32(uint32(32*width)), p16)
		ADDQ(U32(uint32(32*width)), p32)
		ADDQ(Imm(16), q)
		SUBQ(Imm(1), c)
		JNZ(LabelRef("cell" + name))
		put256(acc, param("scale"), Mem{Base: out, Disp: 2 * offset})
	})
	ADDQ(Imm(64), out)
	ADDQ(stride, tile)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

// multiply256 adds the products of levels and four codes to acc.
func multiply256(codes Mem, levels, acc VecVirtual) {
	q := YMM()
	VPBROADCASTD(codes, q)
	VPMADDUBSW(q, levels, q)
	VPMADDWD(bytesConstant("ones", words(1, 16)), q, q)
	VPADDD(q, acc, acc)
}

// words returns n 16-bit words.
func words(v byte, n int) []byte {
	b := make([]byte, 2*n)
	for i := range n {
		b[2*i] = v
	}
	return b
}

// put256 adds scale * sums to scores.
func put256(sums VecVirtual, scale, scores Mem) {
	s := YMM()
	VBROADCASTSS(scale, s)
	VCVTDQ2PS(sums, sums)
	VMULPS(s, sums, sums)
	VADDPS(scores, sums, sums)
	VMOVUPS(sums, scores)
}

func unpack256(width int) {
	function(fmt.Sprintf("unpack%dAVX2", width), unpackSignature,
		fmt.Sprintf("is unpack%dAVX512 for AVX2.", width), unpackLoop)
	table := load("table")
	d := newDecoder256(width, table)
	halves(func(name string, offset int) {
		p16, p32, dst, c := GP64(), GP64(), GP64(), GP64()
		t, mask := GP64(), GP64()
		Load(Param("tile"), p16)
		Load(Param("prev"), t)
		Load(Param("mask"), mask)
		Load(Param("dst"), dst)
		Load(Param("cells"), c)
		TESTQ(mask, mask)
		CMOVQEQ(mask, t)
		ADDQ(p16, t)
		ADDQ(Imm(uint64(offset)), t)
		d.start(t, mask)
		LEAQ(Mem{Base: p16, Disp: 2 * offset}, p32)
		ADDQ(Imm(uint64(offset)), p16)
		Label("cell" + name)
		d.cell(p16, p32, func(g int, levels VecVirtual) {
			VMOVDQU(levels, Mem{Base: dst, Disp: 64*g + 2*offset})
		})
		ADDQ(U32(uint32(32*width)), p16)
		ADDQ(U32(uint32(32*width)), p32)
		ADDQ(U32(256), dst)
		SUBQ(Imm(1), c)
		JNZ(LabelRef("cell" + name))
	})
	VZEROUPPER()
	RET()
}

func dots256(queries int) {
	function(fmt.Sprintf("dots%dAVX2", queries), dotsSignature,
		fmt.Sprintf("is dots%dAVX512 for AVX2.", queries), dotsLoop)
	halves(func(name string, offset int) {
		out, stride, levels, codes := load("out"), load("stride"), load("levels"), load("codes")
		n, starts, scales := load("n"), load("starts"), load("scales")
		SHLQ(Imm(2), stride)
		acc := make([]VecVirtual, queries)
		for k := range acc {
			acc[k] = YMM()
			VPBROADCASTD(Mem{Base: starts, Disp: 4 * k}, acc[k])
		}
		ones := YMM()
		VMOVDQU(bytesConstant("ones", words(1, 16)), ones)
		Label("vector" + name)
		z := YMM()
		VMOVDQU(Mem{Base: levels, Disp: 2 * offset}, z)
		for k, a := range acc {
			q := YMM()
			VPBROADCASTD(Mem{Base: codes, Disp: 4 * k}, q)
			VPMADDUBSW(q, z, q)
			VPMADDWD(ones, q, q)
			VPADDD(q, a, a)
		}
		ADDQ(Imm(64), levels)
		ADDQ(Imm(uint64(4*queries)), codes)
		SUBQ(Imm(1), n)
		JNZ(LabelRef("vector" + name))
		for k, a := range acc {
			put256(a, Mem{Base: scales, Disp: 4 * k}, Mem{Base: out, Disp: 2 * offset})
			ADDQ(stride, out)
		}
	})
	VZEROUPPER()
	RET()
}

func finish256() {
	function("finishAVX2", finishSignature, "is finishAVX512 for AVX2.", finishLoop)
	masks, scores, factors := load("masks"), load("scores"), load("factors")
	table, norms, n := load("table"), load("norms"), load("n")
	threshold, f, x := YMM(), YMM(), YMM()
	VBROADCASTSS(param("threshold"), threshold)
	SHLQ(Imm(1), n) // halves of tiles
	m := GP32()
	Label("half")
	TESTQ(table, table)
	JZ(LabelRef("halves"))
	index, all := YMM(), YMM()
	VPMOVZXBD(Mem{Base: factors}, index)
	VPCMPEQD(all, all, all)
	VXORPS(f, f, f)
	VGATHERDPS(all, Mem{Base: table, Index: index, Scale: 4}, f)
	ADDQ(Imm(8), factors)
	JMP(LabelRef("multiply"))
	Label("halves")
	VPMOVZXWD(Mem{Base: factors}, f)
	VPSLLD(Imm(16), f, f)
	ADDQ(Imm(16), factors)
	Label("multiply")
	VMULPS(Mem{Base: scores}, f, x)
	TESTQ(norms, norms)
	JZ(LabelRef("compare"))
	VSUBPS(Mem{Base: norms}, x, x)
	ADDQ(Imm(32), norms)
	Label("compare")
	VMOVUPS(x, Mem{Base: scores})
	VCMPPS(Imm(0x1e), threshold, x, x) // greater, ordered, quiet
	VMOVMSKPS(x, m)
	MOVB(m.As8(), Mem{Base: masks})
	ADDQ(Imm(32), scores)
	ADDQ(Imm(1), masks)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("half"))
	VZEROUPPER()
	RET()
}

func search256() {
	function("searchAVX2", "func(x *float32, n int, levels *float32, members int, from *uint16, member *byte, cost *float32)",
		"is searchAVX512 for AVX2.", searchLoop)
	inf := bytesConstant("infinity", func() []byte {
		b := make([]byte, 32)
		for i := 0; i < 32; i += 4 {
			b[i+2], b[i+3] = 0x80, 0x7f
		}
		return b
	}())
	one := bytesConstant("one32", func() []byte {
		b := make([]byte, 32)
		for i := 0; i < 32; i += 4 {
			b[i] = 1
		}
		return b
	}())
	pack := bytesConstant("lowBytes", func() []byte {
		b := repeated(0x80, 32)
		for i := range 4 {
			b[i], b[16+i] = byte(4*i), byte(4*i)
		}
		return b
	}())
	dist := AllocLocal(4 * 32)
	halves(func(half string, offset int) {
		x, n, levels, members := load("x"), load("n"), load("levels"), load("members")
		from, member, cost := load("from"), load("member"), load("cost")
		ADDQ(Imm(uint64(2*offset)), x)
		ADDQ(Imm(uint64(offset/16)), from)
		ADDQ(Imm(uint64(offset/2)), member)
		ADDQ(Imm(uint64(2*offset)), cost)
		Label("component" + half)
		for i := range 4 { // one subset after the other
			name := fmt.Sprint("member", half, i)
			v, best, which, m := YMM(), YMM(), YMM(), YMM()
			VMOVUPS(Mem{Base: x}, v)
			VMOVUPS(inf, best)
			VPXOR(which, which, which)
			VPXOR(m, m, m)
			count, p := GP64(), GP64()
			MOVQ(members, count)
			MOVQ(levels, p)
			Label(name)
			d, less := YMM(), YMM()
			VBROADCASTSS(Mem{Base: p, Disp: 4 * i}, d)
			VSUBPS(d, v, d)
			VMULPS(d, d, d)
			VCMPPS(Imm(0x11), best, d, less)
			VMINPS(best, d, best)
			VPBLENDVB(less, m, which, which)
			VPADDD(one, m, m)
			ADDQ(Imm(16), p)
			SUBQ(Imm(1), count)
			JNZ(LabelRef(name))
			VMOVUPS(best, dist.Offset(32*i))
			VPSHUFB(pack, which, which)
			high := XMM()
			VEXTRACTI128(Imm(1), which, high)
			VMOVD(which.AsX(), Mem{Base: member, Disp: 16 * i})
			VMOVD(high, Mem{Base: member, Disp: 16*i + 4})
		}
		next := make([]VecVirtual, 8)
		for s := range next {
			u, low, high := s&1, s>>1, s>>1|4
			a, b, less := YMM(), YMM(), YMM()
			VMOVUPS(Mem{Base: cost, Disp: 64 * low}, a)
			VMOVUPS(Mem{Base: cost, Disp: 64 * high}, b)
			VADDPS(dist.Offset(32*subset(low, u)), a, a)
			VADDPS(dist.Offset(32*subset(high, u)), b, b)
			VCMPPS(Imm(0x11), a, b, less)
			next[s] = YMM()
			VMINPS(a, b, next[s])
			bits := GP32()
			VMOVMSKPS(less, bits)
			MOVB(bits.As8(), Mem{Base: from, Disp: 2 * s})
		}
		for s := range next {
			VMOVUPS(next[s], Mem{Base: cost, Disp: 64 * s})
		}
		ADDQ(Imm(64), x)
		ADDQ(Imm(16), from)
		ADDQ(Imm(64), member)
		SUBQ(Imm(1), n)
		JNZ(LabelRef("component" + half))
	})
	VZEROUPPER()
	RET()
}
