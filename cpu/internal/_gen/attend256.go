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
	scalesLog8256()
	for heads := 1; heads <= 3; heads++ {
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

// spread256 gathers 32 codes from 4 bytes of each plane: byte k of lane j has the code of value 8k+j
// in its low bits. If codes have a single bit, the bits above it may be any.
type spread256 struct {
	turn VecVirtual   // 0 to 7
	bit  []VecVirtual // the bit of each plane in every byte
}

func newSpread256(bits int) spread256 {
	s := spread256{turn: YMM()}
	VMOVDQU(dwordsConstant("laneShift", []uint32{0, 1, 2, 3, 4, 5, 6, 7}), s.turn)
	if bits > 1 {
		for p := range bits {
			s.bit = append(s.bit, broadcastBits256(0x01010101<<(bits-1-p)))
		}
	}
	return s
}

func (s spread256) gather(planes func(p int) Mem) VecVirtual {
	plane := func(p int) VecVirtual {
		y := YMM()
		VPBROADCASTD(planes(p), y)
		VPSRLVD(s.turn, y, y)
		return y
	}
	if s.bit == nil {
		return plane(0)
	}
	var sum VecVirtual
	for p, bit := range s.bit {
		y := plane(p)
		if n := len(s.bit) - 1 - p; n > 0 {
			VPSLLD(Imm(uint64(n)), y, y)
		}
		VPAND(bit, y, y)
		if sum == nil {
			sum = y
		} else {
			VPOR(y, sum, sum)
		}
	}
	return sum
}

// unpackPlanes256 expands codes in bit planes. Eight entries of a table fit a register, so that
// VPERMPS looks up codes of up to three bits; codes of four are looked up as bytes.
func unpackPlanes256(bits int) {
	name, entry := fmt.Sprintf("unpackLM%dAVX2", bits), "float32"
	if bits > 3 {
		entry = "int8"
	}
	function(name, "func(dst *float32, src *byte, plane int, table *"+entry+", rows, row, blocks int)",
		name+" expands codes of rows of blocks times 32 values to table[code], repeated up to 16 "+
			"entries, in order. row is the distance of rows in a plane; up to 3 bytes after a row are read.")
	dst, src, plane, tablePtr := load("dst"), load("src"), load("plane"), load("table")
	rows, row, blocks := load("rows"), load("row"), load("blocks")
	table := YMM()
	s := newSpread256(bits)
	look := func(y VecVirtual, i int) VecVirtual {
		v := y
		if i > 0 {
			v = YMM()
			VPSRLD(Imm(uint64(8*i)), y, v)
		}
		z := YMM()
		VPERMPS(table, v, z)
		return z
	}
	if bits > 3 {
		VBROADCASTI128(Mem{Base: tablePtr}, table)
		look = func(y VecVirtual, i int) VecVirtual { // byte i of a centroid, with its sign
			v := YMM()
			if i < 3 {
				VPSLLD(Imm(uint64(24-8*i)), y, v)
				VPSRAD(Imm(24), v, v)
			} else {
				VPSRAD(Imm(24), y, v)
			}
			VCVTDQ2PS(v, v)
			return v
		}
	} else {
		VMOVUPS(Mem{Base: tablePtr}, table)
	}
	expand := func(planes func(p int) Mem) {
		y := s.gather(planes)
		if bits > 3 {
			VPSHUFB(y, table, y)
		}
		for i := range 4 {
			VMOVUPS(look(y, i), Mem{Base: dst, Disp: 32 * i})
		}
	}
	plane3 := GP64()
	LEAQ(Mem{Base: plane, Index: plane, Scale: 2}, plane3)
	times("row", rows, func() {
		s, n := GP64(), GP64()
		MOVQ(src, s)
		MOVQ(blocks, n)
		times("block", n, func() {
			expand(planeAddress(s, plane, plane3))
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

func scalesLog8256() {
	function("scalesLog8AVX2",
		"func(dst *float32, base float32, src *byte, frac *float32, factor float32)",
		"scalesLog8AVX2 writes 32 scales base*frac[k%16]*2^-(k/16) times factor, 0 for k of 255.")
	dst, src, frac := load("dst"), load("src"), load("frac")
	f, base := YMM(), YMM()
	VBROADCASTSS(param("factor"), f)
	VBROADCASTSS(param("base"), base)
	table := ymms(2)
	for i, y := range table {
		VMULPS(Mem{Base: frac, Disp: 32 * i}, base, y)
	}
	one, none := broadcastBits256(127), broadcastBits256(255)
	for i := range 4 {
		k, low, high, e := YMM(), YMM(), YMM(), YMM()
		VPMOVZXBD(Mem{Base: src, Disp: 8 * i}, k)
		VPERMPS(table[0], k, low) // the low three bits count
		VPERMPS(table[1], k, high)
		VPSLLD(Imm(28), k, e)
		VBLENDVPS(e, high, low, low) // the fourth
		VPSRLD(Imm(4), k, e)
		VPSUBD(e, one, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, low, low)
		VMULPS(f, low, low)
		VPCMPEQD(none, k, k)
		VANDNPS(low, k, low)
		VMOVUPS(low, Mem{Base: dst, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}

func dotRows256(heads int) {
	rows := max(4, 8/heads)
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
