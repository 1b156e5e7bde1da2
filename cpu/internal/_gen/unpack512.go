// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// exactRows is a format whose values are converted one by one.
type exactRows struct {
	name string
	size int
	// full converts 16 values at src; tail converts those of them that k has, zero elsewhere.
	full func(src Mem, z VecVirtual)
	tail func(src Mem, k Register, z VecVirtual)
}

var (
	f16Rows = exactRows{"F16", 2,
		func(src Mem, z VecVirtual) { VCVTPH2PS(src, z) },
		func(src Mem, k Register, z VecVirtual) {
			y := YMM()
			VMOVDQU16_Z(src, k, y)
			VCVTPH2PS(y, z)
		}}
	bf16Rows = exactRows{"BF16", 2,
		func(src Mem, z VecVirtual) { VPMOVZXWD(src, z); VPSLLD(Imm(16), z, z) },
		func(src Mem, k Register, z VecVirtual) {
			y := YMM()
			VMOVDQU16_Z(src, k, y)
			VPMOVZXWD(y, z)
			VPSLLD(Imm(16), z, z)
		}}
	f32Rows = exactRows{"F32", 4,
		func(src Mem, z VecVirtual) { VMOVUPS(src, z) },
		func(src Mem, k Register, z VecVirtual) { VMOVUPS_Z(src, k, z) }}
)

// unpackExact512 converts rows to float32, padded with zeros.
func unpackExact512(f exactRows) {
	function("unpack"+f.name+"AVX512",
		"func(dst *float32, src *byte, rows, full int, tail uint32, zeros int)",
		fmt.Sprintf("unpack%sAVX512 converts rows: full times 16 values, the values of one more "+
			"16 that have a bit in tail, then zeros times 16 zeros.", f.name))
	dst, src, rows := load("dst"), load("src"), load("rows")
	full, zeros := load("full"), load("zeros")
	tail := Load(Param("tail"), GP32())
	k := K()
	KMOVW(tail, k)
	bytes := GP64() // of the tail
	POPCNTL(tail, bytes.As32())
	IMUL3Q(Imm(uint64(f.size)), bytes, bytes)
	zero := ZMM()
	VPXORD(zero, zero, zero)
	Label("row")
	n := GP64()
	MOVQ(full, n)
	TESTQ(n, n)
	JZ(LabelRef("tail"))
	Label("loop")
	z := ZMM()
	f.full(Mem{Base: src}, z)
	VMOVUPS(z, Mem{Base: dst})
	ADDQ(Imm(uint64(16*f.size)), src)
	ADDQ(Imm(64), dst)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	Label("tail")
	TESTL(tail, tail)
	JZ(LabelRef("pad"))
	t := ZMM()
	f.tail(Mem{Base: src}, k, t)
	VMOVUPS(t, Mem{Base: dst})
	ADDQ(bytes, src)
	ADDQ(Imm(64), dst)
	Label("pad")
	MOVQ(zeros, n)
	TESTQ(n, n)
	JZ(LabelRef("next"))
	Label("fill")
	VMOVUPS(zero, Mem{Base: dst})
	ADDQ(Imm(64), dst)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("fill"))
	Label("next")
	SUBQ(Imm(1), rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// unpackU8Rows512 writes code-128 in lane order: value 4l+j of a block of 64 in lane l of vector
// j.
func unpackU8Rows512() {
	pick := make([]byte, 4*64)
	for j := range 4 {
		for l := range 16 {
			pick[64*j+4*l] = byte(4*(l%4) + j)
			for i := 1; i < 4; i++ {
				pick[64*j+4*l+i] = 0x80
			}
		}
	}
	table := bytesConstant("pickByte", pick)
	function("unpackU8AVX512",
		"func(dst *float32, src *byte, rows, full int, tail uint64)",
		"unpackU8AVX512 writes code-128 of rows in lane order: full times 64 values, then one "+
			"more 64 where tail is not 0, of which those with a bit in tail are read.")
	dst, src, rows, full := load("dst"), load("src"), load("rows"), load("full")
	tail := load("tail")
	k := K()
	KMOVQ(tail, k)
	bytes := GP64()
	POPCNTQ(tail, bytes)
	picks := zmms(4)
	for j, p := range picks {
		VMOVDQU64(at(table, 64*j), p)
	}
	bias := broadcastFloat(128)
	block := func(x VecVirtual) {
		for j, p := range picks {
			z := ZMM()
			VPSHUFB(p, x, z)
			VCVTDQ2PS(z, z)
			VSUBPS(bias, z, z)
			VMOVUPS(z, Mem{Base: dst, Disp: 64 * j})
		}
		ADDQ(U32(256), dst)
	}
	Label("row")
	n := GP64()
	MOVQ(full, n)
	TESTQ(n, n)
	JZ(LabelRef("tail"))
	Label("loop")
	x := ZMM()
	VMOVDQU64(Mem{Base: src}, x)
	block(x)
	ADDQ(Imm(64), src)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	Label("tail")
	TESTQ(tail, tail)
	JZ(LabelRef("next"))
	y := ZMM()
	VMOVDQU8_Z(Mem{Base: src}, k, y)
	block(y)
	ADDQ(bytes, src)
	Label("next")
	SUBQ(Imm(1), rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// planeControl places plane bytes so that one bit transposition of 8 x 8 makes 128 codes of 4
// bits. Sources are [plane 2h][row 0..3], [plane 2h+1][row 0..3] of 8 bytes each, for half h.
// The transposition takes output bit i from byte 7-i. It returns the control per half, and which
// bytes the half has a say in.
func planeControl(bits int, quads bool, vector int) (control [2][64]byte, owns [2]uint64) {
	for k := range 8 {
		for p := range bits {
			for nibble := range 2 {
				row, b := 2*vector+nibble, k
				if quads {
					row, b = k/2, 4*vector+2*(k%2)+nibble
				}
				place := 8*k + 7 - (4*nibble + bits - 1 - p)
				control[p/2][place] = byte(8*(4*(p%2)+row) + b)
				owns[p/2] |= 1 << place
			}
		}
	}
	return control, owns
}

// loadPlanes loads 8 bytes of four rows of planes 2h and 2h+1.
func loadPlanes(planes []Register, row, row3 Register, contiguous bool) VecVirtual {
	z := ZMM()
	four := func(p Register) VecVirtual {
		y := YMM()
		if contiguous {
			VMOVDQU64(Mem{Base: p}, y)
			return y
		}
		lo, hi := XMM(), XMM()
		VMOVQ(Mem{Base: p}, lo)
		VMOVHPS(Mem{Base: p, Index: row, Scale: 1}, lo, lo)
		VMOVQ(Mem{Base: p, Index: row, Scale: 2}, hi)
		VMOVHPS(Mem{Base: p, Index: row3, Scale: 1}, hi, hi)
		VINSERTI32X4(Imm(1), hi, lo.AsY(), y)
		return y
	}
	y := four(planes[0])
	if len(planes) == 1 {
		return y.AsZ().(VecVirtual)
	}
	if contiguous {
		VINSERTI64X4(Imm(1), Mem{Base: planes[1]}, y.AsZ(), z)
	} else {
		VINSERTI64X4(Imm(1), four(planes[1]), y.AsZ(), z)
	}
	return z
}

func planesName(bits int, quads, contiguous bool) string {
	name := fmt.Sprintf("unpackLM%d", bits)
	if quads {
		name += "Quads"
	} else {
		name += "Rows"
	}
	if contiguous {
		name += "64"
	}
	return name + "AVX512"
}

// planeLoop is what the loops of unpackPlanes512 work with.
type planeLoop struct {
	bits                   int
	quads                  bool
	dst, groups, row, row3 Register
	blocks, stride         Register // stride: of rows of dst, not for quads
	planes                 []Register
	table, bit             VecVirtual
	control                [2][2]VecVirtual // vector, half
	second                 Register         // bytes that come from planes 2 and 3
}

// planesDoc returns the comment of a routine of unpackPlanes512.
func planesDoc(name string, quads, contiguous bool) string {
	doc := name + " expands groups of four rows of codes to floats: table[code]. "
	if quads {
		doc += "A block of 64 values of four rows gives 16 vectors in quad order. "
	} else {
		doc += "A block of 64 values of a row gives 4 vectors in lane order; stride, the distance " +
			"of rows of dst, is in bytes. "
	}
	if contiguous {
		return doc + "Rows have 64 values."
	}
	return doc + "row is the distance of rows in a plane. Rows have blocks times 64 values; up to " +
		"7 bytes after a row are read."
}

// unpackPlanes512 expands codes in bit planes to the entries of a table of 16 floats. Every entry
// for the codes' bits must be repeated up to 16.
func unpackPlanes512(bits int, quads, contiguous bool) {
	var controls [2][2]Mem // vector, half
	var owns uint64
	for v := range 2 {
		c, o := planeControl(bits, quads, v)
		for h := range 2 {
			if 2*h < bits {
				controls[v][h] = bytesConstant(fmt.Sprintf("plane%d%t%d%d", bits, quads, v, h),
					c[h][:])
			}
		}
		owns = o[1]
	}
	unit := constant("unitBits", 0x8040201008040201)
	name := planesName(bits, quads, contiguous)
	sig := "func(dst *float32, src *byte, plane int, table *float32, groups int"
	if !contiguous {
		sig += ", row, blocks int"
		if !quads {
			sig += ", stride int"
		}
	}
	function(name, sig+")", planesDoc(name, quads, contiguous))
	l := planeLoop{bits: bits, quads: quads}
	l.dst = load("dst")
	src, plane, tablePtr := load("src"), load("plane"), load("table")
	l.groups = load("groups")
	l.planes = []Register{src}
	for p := 1; p < bits; p++ {
		s := GP64()
		MOVQ(l.planes[p-1], s)
		ADDQ(plane, s)
		l.planes = append(l.planes, s)
	}
	if !contiguous {
		l.row, l.blocks = load("row"), load("blocks")
		l.row3 = GP64()
		LEAQ(Mem{Base: l.row, Index: l.row, Scale: 2}, l.row3)
		if !quads {
			l.stride = load("stride")
		}
	}
	l.table, l.bit = ZMM(), ZMM()
	VMOVUPS(Mem{Base: tablePtr}, l.table)
	VPBROADCASTQ(unit, l.bit)
	for v := range 2 {
		for h := range 2 {
			if 2*h < bits {
				l.control[v][h] = ZMM()
				VMOVDQU64(controls[v][h], l.control[v][h])
			}
		}
	}
	if bits > 2 {
		l.second = K()
		m := GP64()
		MOVQ(U64(owns), m)
		KMOVQ(m, l.second)
	}
	if contiguous {
		l.contiguous()
	} else {
		l.strided()
	}
	VZEROUPPER()
	RET()
}

// body expands 64 values of four rows, in two vectors of 128 codes.
func (l *planeLoop) body(store func(vector, s int, z VecVirtual)) {
	a := loadPlanes(l.planes[:min(2, l.bits)], l.row, l.row3, l.row == nil)
	var b VecVirtual
	if l.bits > 2 {
		b = loadPlanes(l.planes[2:], l.row, l.row3, l.row == nil)
	}
	for v := range 2 {
		n := ZMM()
		VPERMB(a, l.control[v][0], n)
		if l.bits > 2 {
			VPERMB(b, l.control[v][1], l.second, n)
		}
		VGF2P8AFFINEQB(Imm(0), n, l.bit, n)
		for s := range 8 {
			i, z := n, ZMM()
			if s > 0 {
				i = ZMM()
				VPSRLD(Imm(uint64(4*s)), n, i)
			}
			VPERMPS(l.table, i, z)
			store(v, s, z)
		}
	}
}

// contiguous loops over rows of 64 values.
func (l *planeLoop) contiguous() {
	times("group", l.groups, func() {
		l.body(func(v, s int, z VecVirtual) {
			disp := 512*v + 64*s
			if !l.quads {
				disp = 512*v + 256*(s%2) + 64*(s/2)
			}
			VMOVUPS(z, Mem{Base: l.dst, Disp: disp})
		})
		ADDQ(U32(1024), l.dst)
		for _, p := range l.planes {
			ADDQ(Imm(32), p)
		}
	})
}

// strided loops over longer rows.
func (l *planeLoop) strided() {
	skip := GP64() // from behind a row to the row after next but two
	LEAQ(Mem{Base: l.row, Index: l.row3, Scale: 1}, skip)
	t := GP64()
	MOVQ(l.blocks, t)
	SHLQ(Imm(3), t)
	SUBQ(t, skip)
	var dstSkip Register
	if !l.quads {
		dstSkip = GP64()
		MOVQ(l.blocks, t)
		SHLQ(Imm(8), t)
		MOVQ(l.stride, dstSkip)
		SHLQ(Imm(2), dstSkip)
		SUBQ(t, dstSkip)
	}
	times("group", l.groups, func() {
		n := GP64()
		MOVQ(l.blocks, n)
		times("block", n, func() {
			if l.quads {
				l.body(func(v, s int, z VecVirtual) {
					VMOVUPS(z, Mem{Base: l.dst, Disp: 512*v + 64*s})
				})
				ADDQ(U32(1024), l.dst)
			} else {
				l.rows()
				ADDQ(U32(256), l.dst)
			}
			for _, p := range l.planes {
				ADDQ(Imm(8), p)
			}
		})
		if dstSkip != nil {
			ADDQ(dstSkip, l.dst)
		}
		for _, p := range l.planes {
			ADDQ(skip, p)
		}
	})
}

// rows stores a block of four rows that lie stride bytes apart.
func (l *planeLoop) rows() {
	d1 := GP64()
	LEAQ(Mem{Base: l.dst, Index: l.stride, Scale: 2}, d1)
	l.body(func(v, s int, z VecVirtual) {
		m := Mem{Base: l.dst, Disp: 64 * (s / 2)}
		if v == 1 {
			m.Base = d1
		}
		if s%2 == 1 {
			m.Index, m.Scale = l.stride, 1
		}
		VMOVUPS(z, m)
	})
}

// rowMask512 leaves in two mask registers the low n bits of 32, n in 0..32.
func rowMask512(n Register) (lo, hi, all Register) {
	one := GP64()
	MOVQ(U32(1), one)
	cx := RCX
	MOVQ(n, cx)
	SHLQ(CL, one)
	SUBQ(Imm(1), one)
	lo, hi, all = K(), K(), K()
	KMOVD(one.As32(), all)
	KMOVW(one.As32(), lo)
	SHRQ(Imm(16), one)
	KMOVW(one.As32(), hi)
	return lo, hi, all
}

func scalesF16512() {
	function("scalesF16AVX512", "func(dst *float32, src *byte, n int, factor float32)",
		"scalesF16AVX512 writes n binary16 scales times factor, and zeros up to 32.")
	dst, src, n := load("dst"), load("src"), load("n")
	lo, hi, _ := rowMask512(n)
	f := ZMM()
	VBROADCASTSS(param("factor"), f)
	for i, k := range []Register{lo, hi} {
		y, z := YMM(), ZMM()
		VMOVDQU16_Z(Mem{Base: src, Disp: 32 * i}, k, y)
		VCVTPH2PS(y, z)
		VMULPS(f, z, z)
		VMOVUPS(z, Mem{Base: dst, Disp: 64 * i})
	}
	VZEROUPPER()
	RET()
}

func scalesLog8512() {
	function("scalesLog8AVX512",
		"func(dst *float32, base float32, src *byte, n int, frac *float32, factor float32)",
		"scalesLog8AVX512 writes n scales base*frac[k%16]*2^-(k/16) times factor, 0 for k of 255, "+
			"and zeros up to 32.")
	dst, src, n, frac := load("dst"), load("src"), load("n"), load("frac")
	lo, hi, _ := rowMask512(n)
	f, base, table := ZMM(), ZMM(), ZMM()
	VBROADCASTSS(param("factor"), f)
	VBROADCASTSS(param("base"), base)
	VMOVUPS(Mem{Base: frac}, table)
	VMULPS(base, table, table)
	g := GP32()
	one, none := ZMM(), ZMM()
	MOVL(U32(127), g)
	VPBROADCASTD(g, one)
	MOVL(U32(255), g)
	VPBROADCASTD(g, none)
	for i, k := range []Register{lo, hi} {
		x, z, e := XMM(), ZMM(), ZMM()
		VMOVDQU8_Z(Mem{Base: src, Disp: 16 * i}, k, x)
		VPMOVZXBD(x, z)
		v := ZMM()
		VPERMPS(table, z, v) // the low four bits count
		VPSRLD(Imm(4), z, e)
		VPSUBD(e, one, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, v, v)
		VMULPS(f, v, v)
		not := K()
		VPCMPUD(Imm(4), none, z, k, not)
		VMOVAPS_Z(v, not, v)
		VMOVUPS(v, Mem{Base: dst, Disp: 64 * i})
	}
	VZEROUPPER()
	RET()
}

// broadcastFloat returns a vector of one constant.
func broadcastFloat(x float32) VecVirtual {
	z := ZMM()
	m := floatsConstant(fmt.Sprintf("float%x", floatBits(x)), []float32{x, x})
	VBROADCASTSS(m, z)
	return z
}
