// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// attend256 writes the kernels of attention for AVX2 with FMA and F16C.
func attend256() {
	features()
	unpackExact256()
	for bits := 1; bits <= 4; bits++ {
		unpackPlanes256(bits)
	}
	scalesF16256()
	for heads := 1; heads <= 2; heads++ {
		dotRows256(heads)
		accumulate256(heads)
	}
	softmax256()
	probs256()
	fold256()
	square256()
	mix("AVX2", ymms(4), YMM, 32)
}

// features returns what golang.org/x/sys/cpu does not know: F16C.
func features() {
	function("cpuidECX", "func() uint32",
		"cpuidECX returns ECX of CPUID leaf 1: bit 29 is set on processors with F16C.")
	MOVL(U32(1), EAX)
	XORL(ECX, ECX)
	CPUID()
	Store(ECX, ReturnIndex(0))
	RET()
}

func ymms(n int) []VecVirtual {
	v := make([]VecVirtual, n)
	for i := range v {
		v[i] = YMM()
	}
	return v
}

// broadcastFloat256 returns a vector of one constant.
func broadcastFloat256(x float32) VecVirtual {
	y := YMM()
	VBROADCASTSS(floatsConstant(fmt.Sprintf("float%x", floatBits(x)), []float32{x, x}), y)
	return y
}

func broadcastBits256(x uint32) VecVirtual {
	return broadcastFloat256(math.Float32frombits(x))
}

// unpackExact256 converts values eight at a time.
func unpackExact256() {
	for _, f := range []struct {
		name, doc string
		size      int
		convert   func(src Mem, y VecVirtual)
	}{
		{"F16", "binary16", 2, func(m Mem, y VecVirtual) { VCVTPH2PS(m, y) }},
		{"BF16", "bfloat16", 2, func(m Mem, y VecVirtual) { VPMOVZXWD(m, y); VPSLLD(Imm(16), y, y) }},
		{"U8", "code-128", 1, nil},
	} {
		name := "unpack" + f.name + "AVX2"
		function(name, "func(dst *float32, src *byte, n int)",
			fmt.Sprintf("%s converts n times 8 values (%s) to float32.", name, f.doc))
		dst, src, n := load("dst"), load("src"), load("n")
		if f.convert == nil {
			bias := broadcastBits256(128)
			f.convert = func(m Mem, y VecVirtual) {
				VPMOVZXBD(m, y)
				VPSUBD(bias, y, y)
				VCVTDQ2PS(y, y)
			}
		}
		times("loop", n, func() {
			y := YMM()
			f.convert(Mem{Base: src}, y)
			VMOVUPS(y, Mem{Base: dst})
			ADDQ(Imm(uint64(8*f.size)), src)
			ADDQ(Imm(32), dst)
		})
		VZEROUPPER()
		RET()
	}
}

// codes256 gathers 32 codes from 4 bytes of each plane, one a byte, in order.
type codes256 struct {
	spread, bit VecVirtual
	weight      []VecVirtual
}

func newCodes256(bits int) codes256 {
	spread, bit := make([]byte, 32), make([]byte, 32)
	for i := range spread {
		spread[i], bit[i] = byte(i/8), 1<<(i%8)
	}
	c := codes256{spread: YMM(), bit: YMM()}
	VMOVDQU(bytesConstant("spread32", spread), c.spread)
	VMOVDQU(bytesConstant("bit32", bit), c.bit)
	for p := range bits {
		w := uint32(1) << (bits - 1 - p)
		c.weight = append(c.weight, broadcastBits256(w*0x01010101))
	}
	return c
}

func (c codes256) gather(planes func(p int) Mem) VecVirtual {
	var sum VecVirtual
	for p, w := range c.weight {
		y := YMM()
		VPBROADCASTD(planes(p), y)
		VPSHUFB(c.spread, y, y)
		VPAND(c.bit, y, y)
		VPCMPEQB(c.bit, y, y)
		VPAND(w, y, y)
		if sum == nil {
			sum = y
		} else {
			VPOR(y, sum, sum)
		}
	}
	return sum
}

// widen256 hands out the 32 bytes of y, sign-extended, eight at a time.
func widen256(y VecVirtual, each func(i int, v VecVirtual)) {
	for i := range 4 {
		x, v := XMM(), YMM()
		VEXTRACTI128(Imm(uint64(i/2)), y, x)
		if i%2 == 1 {
			VPSRLDQ(Imm(8), x, x)
		}
		VPMOVSXBD(x, v)
		each(i, v)
	}
}

func unpackPlanes256(bits int) {
	name := fmt.Sprintf("unpackLM%dAVX2", bits)
	function(name, "func(dst *float32, src *byte, plane int, table *int8, rows, row, blocks int)",
		name+" expands codes of rows of blocks times 32 values to table[code], 16 entries, in "+
			"order. row is the distance of rows in a plane; up to 3 bytes after a row are read.")
	dst, src, plane, tablePtr := load("dst"), load("src"), load("plane"), load("table")
	rows, row, blocks := load("rows"), load("row"), load("blocks")
	c := newCodes256(bits)
	table := YMM()
	VBROADCASTI128(Mem{Base: tablePtr}, table)
	plane3 := GP64()
	LEAQ(Mem{Base: plane, Index: plane, Scale: 2}, plane3)
	times("row", rows, func() {
		s, n := GP64(), GP64()
		MOVQ(src, s)
		MOVQ(blocks, n)
		times("block", n, func() {
			y := c.gather(planeAddress(s, plane, plane3))
			VPSHUFB(y, table, y)
			widen256(y, func(i int, v VecVirtual) {
				VCVTDQ2PS(v, v)
				VMOVUPS(v, Mem{Base: dst, Disp: 32 * i})
			})
			ADDQ(Imm(4), s)
			ADDQ(U32(128), dst)
		})
		ADDQ(row, src)
	})
	VZEROUPPER()
	RET()
}

// planeAddress addresses the same place in every plane.
func planeAddress(s, plane, plane3 Register) func(p int) Mem {
	return func(p int) Mem {
		m := Mem{Base: s}
		switch p {
		case 1, 2:
			m.Index, m.Scale = plane, uint8(p)
		case 3:
			m.Index, m.Scale = plane3, 1
		}
		return m
	}
}

func scalesF16256() {
	function("scalesF16AVX2", "func(dst *float32, src *byte, factor float32)",
		"scalesF16AVX2 writes 32 binary16 scales times factor.")
	dst, src := load("dst"), load("src")
	f := YMM()
	VBROADCASTSS(param("factor"), f)
	for i := range 4 {
		y := YMM()
		VCVTPH2PS(Mem{Base: src, Disp: 16 * i}, y)
		VMULPS(f, y, y)
		VMOVUPS(y, Mem{Base: dst, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}

func dotRows256(heads int) {
	rows := 8 / heads
	name := fmt.Sprintf("dotRows%dAVX2", heads)
	function(name, "func(dots, q, tile *float32, stride, blocks, groups int)",
		fmt.Sprintf("%s writes the inner products of %d queries, stride bytes apart, with groups "+
			"times %d rows of blocks times 32 values, stride bytes apart.", name, heads, rows))
	dots, q, tile := load("dots"), load("q"), load("tile")
	stride, blocks, groups := load("stride"), load("blocks"), load("groups")
	query := headPointers(q, stride, heads)
	stride3 := GP64()
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	Label("group")
	acc := make([][]VecVirtual, heads)
	for h := range acc {
		acc[h] = ymms(rows)
		for _, a := range acc[h] {
			VXORPS(a, a, a)
		}
	}
	upper := GP64()
	LEAQ(Mem{Base: tile, Index: stride, Scale: 4}, upper)
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
		qs := ymms(heads)
		for h, y := range qs {
			VMOVUPS(query(h, 32*c), y)
		}
		for r := range rows {
			if heads == 1 {
				VFMADD231PS(row(r, 32*c), qs[0], acc[0][r])
				continue
			}
			v := YMM()
			VMOVUPS(row(r, 32*c), v)
			for h := range heads {
				VFMADD231PS(v, qs[h], acc[h][r])
			}
		}
	}
	ADDQ(U32(128), q)
	ADDQ(U32(128), tile)
	ADDQ(U32(128), upper)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("block"))
	for h := range heads {
		for r := 0; r < rows; r += 4 {
			a, x := acc[h][r:r+4], XMM()
			VHADDPS(a[1], a[0], a[0])
			VHADDPS(a[3], a[2], a[2])
			VHADDPS(a[2], a[0], a[0])
			VEXTRACTF128(Imm(1), a[0], x)
			VADDPS(x, a[0].AsX(), x)
			VMOVUPS(x, Mem{Base: dots, Disp: 4*tileRows*h + 4*r})
		}
	}
	back := GP64()
	MOVQ(blocks, back)
	SHLQ(Imm(7), back)
	SUBQ(back, q)
	SUBQ(back, tile)
	for range rows / 4 {
		LEAQ(Mem{Base: tile, Index: stride, Scale: 4}, tile)
	}
	ADDQ(U32(uint32(4*rows)), dots)
	SUBQ(Imm(1), groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

func accumulate256(heads int) {
	name := fmt.Sprintf("accumulate%dAVX2", heads)
	function(name, "func(acc, w, tile *float32, stride, blocks, rows int)",
		fmt.Sprintf("%s adds w[head][row]*row to %d sums of blocks times 32 values; sums and rows "+
			"lie stride bytes apart.", name, heads))
	acc, w, tile := load("acc"), load("w"), load("tile")
	stride, blocks, rows := load("stride"), load("blocks"), load("rows")
	sum := headPointers(acc, stride, heads)
	Label("block")
	a := make([][]VecVirtual, heads)
	for h := range a {
		a[h] = ymms(4)
		for c, y := range a[h] {
			VMOVUPS(sum(h, 32*c), y)
		}
	}
	p, weights, n := GP64(), GP64(), GP64()
	MOVQ(tile, p)
	MOVQ(w, weights)
	MOVQ(rows, n)
	times("row", n, func() {
		x := ymms(heads)
		for h, y := range x {
			VBROADCASTSS(Mem{Base: weights, Disp: 4 * tileRows * h}, y)
		}
		for c := range 4 {
			if heads == 1 {
				VFMADD231PS(Mem{Base: p, Disp: 32 * c}, x[0], a[0][c])
				continue
			}
			v := YMM()
			VMOVUPS(Mem{Base: p, Disp: 32 * c}, v)
			for h := range heads {
				VFMADD231PS(v, x[h], a[h][c])
			}
		}
		ADDQ(stride, p)
		ADDQ(Imm(4), weights)
	})
	for h := range heads {
		for c, y := range a[h] {
			VMOVUPS(y, sum(h, 32*c))
		}
	}
	ADDQ(U32(128), acc)
	ADDQ(U32(128), tile)
	SUBQ(Imm(1), blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}
