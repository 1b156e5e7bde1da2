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
}

// features returns what golang.org/x/sys/cpu does not know: F16C.
func features() {
	function("cpuidECX", "func() uint32",
		"cpuidECX returns ECX of CPUID leaf 1: bit 29 says whether F16C is there.")
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
			"order. row is the distance of rows in a plane; up to 3 bytes behind a row are read.")
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

// exp256 returns exp(x); keep is narrowed to the lanes where the result is a normal number or a
// NaN. x is used up. Constants are read from memory, for there are 16 registers only.
func exp256(x, keep VecVirtual) VecVirtual {
	c := func(v float32) Mem {
		s := make([]float32, 8)
		for i := range s {
			s[i] = v
		}
		return floatsConstant(fmt.Sprintf("eight%x", floatBits(v)), s)
	}
	k := YMM()
	VCMPPS(Imm(5), c(-87.33654), x, k) // not less than: NaN stays
	VANDPS(k, keep, keep)
	floor := YMM()
	VMOVUPS(c(-87.33654), floor)
	VMAXPS(x, floor, x) // NaN stays
	ceiling := YMM()
	VMOVUPS(c(89), ceiling)
	VMINPS(x, ceiling, x)
	n, p, r := YMM(), YMM(), YMM()
	VMULPS(c(1.44269504), x, n)
	VROUNDPS(Imm(8), n, n)
	VFNMADD231PS(c(0.693145751953125), n, x)
	VFNMADD231PS(c(1.42860677e-6), n, x)
	VMOVUPS(c(1.9875691500e-4), p)
	for _, v := range []float32{1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
		1.6666665459e-1, 5.0000001201e-1} {
		VFMADD213PS(c(v), x, p)
	}
	VMULPS(x, x, r)
	VADDPS(c(1), x, x)
	VFMADD231PS(r, p, x)
	// 2^n in two factors, for n = 128 is the exponent of infinity.
	half, i := YMM(), YMM()
	VCVTPS2DQ(n, n)
	VPSRAD(Imm(1), n, half)
	VPSUBD(half, n, i)
	for _, e := range []VecVirtual{half, i} {
		VPADDD(c(math.Float32frombits(127)), e, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, x, x)
	}
	return x
}

func reduce256(y VecVirtual, op func(a, b, dst Op)) VecVirtual {
	x, t := XMM(), XMM()
	VEXTRACTF128(Imm(1), y, x)
	op(x, y.AsX(), x)
	VPERMILPS(Imm(0x4e), x, t)
	op(t, x, x)
	VPERMILPS(Imm(0xb1), x, t)
	op(t, x, x)
	return x
}

// scores256 returns the scores of eight rows of a head, and which of them have one.
func scores256(i int, dots, mul, add, noise Register, energy, mask VecVirtual) (x, ok VecVirtual) {
	bits := make([]uint32, 32)
	for j := range bits {
		bits[j] = 1 << j
	}
	table := dwordsConstant("rowBits", bits)
	x, ok = YMM(), YMM()
	VMOVDQU(at(table, 32*i), ok)
	b := YMM()
	VPAND(ok, mask, b)
	VPCMPEQD(ok, b, ok)
	m := YMM()
	VMOVUPS(Mem{Base: dots, Disp: 32 * i}, x)
	VMOVUPS(Mem{Base: mul, Disp: 32 * i}, m)
	VFMADD213PS(Mem{Base: add, Disp: 32 * i}, m, x)
	VFNMADD231PS(Mem{Base: noise, Disp: 32 * i}, energy, x)
	k := YMM()
	VCMPPS(Imm(4), infinite256(), x, k) // not equal: NaN stays
	VANDPS(k, ok, ok)
	return x, ok
}

// infinite256 addresses eight times minus infinity.
func infinite256() Mem {
	s := make([]float32, 8)
	for i := range s {
		s[i] = float32(math.Inf(-1))
	}
	return floatsConstant("minusInf", s)
}

func softmax256() {
	function("softmaxAVX2", "func(w, sums, tops, dots, mul, add, noise, scale, "+
		"energy *float32, masks *uint32, heads int, tmp *float32)",
		"softmaxAVX2 is softmaxAVX512; tmp is scratch of 64 floats.")
	w, sums, tops, dots := load("w"), load("sums"), load("tops"), load("dots")
	scale, energy, masks := load("scale"), load("energy"), load("masks")
	mul, add, noise, tmp := load("mul"), load("add"), load("noise"), load("tmp")
	Label("head")
	e, mask, m := YMM(), YMM(), YMM()
	VBROADCASTSS(Mem{Base: energy}, e)
	VPBROADCASTD(Mem{Base: masks}, mask)
	VMOVUPS(infinite256(), m)
	for i := range 4 {
		x, ok := scores256(i, dots, mul, add, noise, e, mask)
		VMOVUPS(x, Mem{Base: tmp, Disp: 32 * i})
		VMOVUPS(ok, Mem{Base: tmp, Disp: 128 + 32*i})
		inf := YMM()
		VMOVUPS(infinite256(), inf)
		VBLENDVPS(ok, x, inf, x)
		VMAXPS(m, x, m) // NaN gives way
	}
	t := YMM()
	VBROADCASTSS(Mem{Base: tops}, t)
	VMAXPS(t, m, m)
	top := reduce256(m, func(a, b, d Op) { VMAXPS(a, b, d) })
	VMOVSS(top, Mem{Base: tops})
	VBROADCASTSS(top, t)
	sum := YMM()
	VXORPS(sum, sum, sum)
	live := GP32()
	XORL(live, live)
	for i := 3; i >= 0; i-- {
		x, ok := YMM(), YMM()
		VMOVUPS(Mem{Base: tmp, Disp: 32 * i}, x)
		VMOVUPS(Mem{Base: tmp, Disp: 128 + 32*i}, ok)
		VSUBPS(t, x, x)
		p := exp256(x, ok)
		VANDPS(ok, p, p)
		VADDPS(p, sum, sum)
		VMULPS(Mem{Base: scale, Disp: 32 * i}, p, p)
		VANDPS(ok, p, p)
		VMOVUPS(p, Mem{Base: w, Disp: 32 * i})
		bits := GP32()
		VMOVMSKPS(ok, bits)
		SHLL(Imm(8), live)
		ORL(bits, live)
	}
	MOVL(live, Mem{Base: masks})
	total := reduce256(sum, func(a, b, d Op) { VADDPS(a, b, d) })
	VMOVSS(total, Mem{Base: sums})
	ADDQ(U32(4*tileRows), w)
	ADDQ(U32(4*tileRows), dots)
	for _, r := range []Register{sums, tops, energy, masks} {
		ADDQ(Imm(4), r)
	}
	heads := load("heads")
	SUBQ(Imm(1), heads)
	Store(heads, Param("heads"))
	JNZ(LabelRef("head"))
	VZEROUPPER()
	RET()
}

func probs256() {
	function("probsAVX2", "func(acc *float64, dots, mul, add, noise, energy, "+
		"lse *float32, masks *uint32, heads, power int)", "probsAVX2 is probsAVX512.")
	acc, dots := load("acc"), load("dots")
	energy, lse, masks := load("energy"), load("lse"), load("masks")
	mul, add, noise := load("mul"), load("add"), load("noise")
	heads, power := load("heads"), load("power")
	times("head", heads, func() {
		e, mask, t := YMM(), YMM(), YMM()
		VBROADCASTSS(Mem{Base: energy}, e)
		VPBROADCASTD(Mem{Base: masks}, mask)
		VBROADCASTSS(Mem{Base: lse}, t)
		for i := range 4 {
			x, ok := scores256(i, dots, mul, add, noise, e, mask)
			VSUBPS(t, x, x)
			p := exp256(x, ok)
			VANDPS(ok, p, p)
			CMPQ(power, Imm(2))
			JNE(LabelRef(fmt.Sprintf("once%d", i)))
			VMULPS(p, p, p)
			Label(fmt.Sprintf("once%d", i))
			for half := range 2 {
				h, d := XMM(), YMM()
				VEXTRACTF128(Imm(uint64(half)), p, h)
				VCVTPS2PD(h, d)
				VADDPD(Mem{Base: acc, Disp: 64*i + 32*half}, d, d)
				VMOVUPD(d, Mem{Base: acc, Disp: 64*i + 32*half})
			}
		}
		ADDQ(U32(4*tileRows), dots)
		for _, r := range []Register{lse, energy, masks} {
			ADDQ(Imm(4), r)
		}
	})
	VZEROUPPER()
	RET()
}

func fold256() {
	function("foldAVX2", "func(sum *float64, acc *float32, n int)",
		"foldAVX2 adds n times 8 floats to doubles and clears them.")
	sum, acc, n := load("sum"), load("acc"), load("n")
	zero := YMM()
	VXORPS(zero, zero, zero)
	times("loop", n, func() {
		for i := range 2 {
			y := YMM()
			VCVTPS2PD(Mem{Base: acc, Disp: 16 * i}, y)
			VADDPD(Mem{Base: sum, Disp: 32 * i}, y, y)
			VMOVUPD(y, Mem{Base: sum, Disp: 32 * i})
		}
		VMOVUPS(zero, Mem{Base: acc})
		ADDQ(Imm(32), acc)
		ADDQ(Imm(64), sum)
	})
	VZEROUPPER()
	RET()
}

func square256() {
	function("squareAVX2", "func(dst, src *float32, factor float32)",
		"squareAVX2 writes factor*src^2, 32 values.")
	dst, src := load("dst"), load("src")
	f := YMM()
	VBROADCASTSS(param("factor"), f)
	for i := range 4 {
		y := YMM()
		VMOVUPS(Mem{Base: src, Disp: 32 * i}, y)
		VMULPS(y, y, y)
		VMULPS(f, y, y)
		VMOVUPS(y, Mem{Base: dst, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}
