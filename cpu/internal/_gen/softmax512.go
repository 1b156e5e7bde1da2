// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
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

// reduceLanes512 folds the lanes of one to three vectors with op, in the order of reduce512. Every
// element of 128-bit lane i of the result is that of vector i.
func reduceLanes512(z []VecVirtual, op func(a, b, dst Op)) VecVirtual {
	fold := func(lo, hi uint64, a, b VecVirtual) VecVirtual {
		x, y := ZMM(), ZMM()
		VSHUFF64X2(Imm(lo), b, a, x)
		VSHUFF64X2(Imm(hi), b, a, y)
		op(y, x, x)
		return x
	}
	first := fold(0x44, 0xee, z[0], z[min(1, len(z)-1)])
	second := first
	if len(z) == 3 {
		second = fold(0x44, 0xee, z[2], z[2])
	}
	x := fold(0x88, 0xdd, first, second)
	for _, order := range []uint64{0x4e, 0xb1} {
		t := ZMM()
		VPERMILPS(Imm(order), x, t)
		op(t, x, x)
	}
	return x
}

// spreadLane512 returns lane i of z in every lane.
func spreadLane512(z VecVirtual, i int) VecVirtual {
	x := ZMM()
	VSHUFF64X2(Imm(uint64(i*0x55)), z, z, x)
	return x
}

// storeLanes512 stores the first float of the first n lanes.
func storeLanes512(z VecVirtual, to Mem, n int) {
	VMOVSS(z.AsX(), to)
	for i := 1; i < n; i++ {
		x := XMM()
		VEXTRACTF32X4(Imm(uint64(i)), z, x)
		VMOVSS(x, at(to, 4*i))
	}
}

// exp2Poly are p of 2^f = 1 + f*p(f) for |f| <= 1/2, from the highest power down: within 2^-26.
var exp2Poly = []float32{1.5453089145e-4, 1.3390863314e-3, 9.6180830151e-3, 5.5503569543e-2,
	2.4022650719e-1, 6.9314718246e-1, 1}

// expAll512 makes exp(x) of several vectors, step by step together: one would wait for itself most of
// the time. It narrows keep to the lanes where the result is a normal number or a NaN, and leaves
// zero elsewhere. Constants come from memory.
func expAll512(x []VecVirtual, keep []Register, all bool) {
	n, p := zmms(len(x)), zmms(len(x))
	low, log2e := broadcastFloat(-87.33654), broadcastFloat(1.44269504)
	for i, z := range x {
		if all {
			VCMPPS(Imm(5), low, z, keep[i]) // not less than: NaN stays
		} else {
			VCMPPS(Imm(5), low, z, keep[i], keep[i])
		}
		VMULPS(log2e, z, n[i])
	}
	for _, z := range n {
		VRNDSCALEPS(Imm(8), z, z)
	}
	f := zmms(len(x))
	for i, z := range x {
		VMOVAPS(z, f[i])
		VFMSUB213PS(n[i], log2e, f[i])
	}
	for i, z := range x {
		VFMADD231PS_BCST(floatPair(1.9259630e-8), z, f[i]) // the rest of log2(e)
		VBROADCASTSS(floatPair(exp2Poly[0]), p[i])
	}
	for _, c := range exp2Poly[1:] {
		for i, z := range p {
			VFMADD213PS_BCST(floatPair(c), f[i], z)
		}
	}
	for i, z := range x {
		VSCALEFPS_Z(n[i], p[i], keep[i], z)
	}
}

// softmax512 makes weights of the inner products of some heads; cut, it cuts them into digits too.
func softmax512(heads int, cut bool) {
	name, sig := "softmax", "func(w, sums, tops, dots, mul, add, noise, scale, "+
		"energy *float32, masks *uint32"
	doc := " makes weights of the inner products of a tile: per head " +
		"s = dots*mul + add - energy*noise, tops = max(s) if that is above tops + 8, p = exp(s - tops), " +
		"sums = sum of p, w = p*scale. Rows without a bit in masks have w = 0; bits of rows " +
		"whose p is 0 are cleared."
	if cut {
		name = "softmaxCut"
		sig += ", digits *byte, units *float32) (bad uint32"
		doc += " It also writes weights as integers of 24 bits, of each four rows the lowest bytes " +
			"first, and what one is worth, and returns bits of scales that are not finite and positive or +0."
	}
	name = fmt.Sprintf("%s%dAVX512", name, heads)
	function(name, sig+")", name+doc)
	w, sums, tops, dots := load("w"), load("sums"), load("tops"), load("dots")
	add, noise, scale := load("add"), load("noise"), load("scale")
	masks := load("masks")
	var t []VecVirtual
	x, ok := make([]VecVirtual, 2*heads), make([]Register, 2*heads)
	{
		mul, energy := load("mul"), load("energy")
		inf := broadcastFloat(float32(math.Inf(-1)))
		ms := zmms(2)
		for i, z := range ms {
			VMOVUPS(Mem{Base: mul, Disp: 64 * i}, z)
		}
		for i := range x {
			x[i], ok[i] = ZMM(), K()
			KMOVW(Mem{Base: masks, Disp: 2 * i}, ok[i])
			VMOVUPS(Mem{Base: dots, Disp: 64 * i}, x[i])
			VFMADD213PS(Mem{Base: add, Disp: 64 * (i % 2)}, ms[i%2], x[i])
		}
		for i, z := range x {
			e := ZMM()
			VBROADCASTSS(Mem{Base: energy, Disp: 4 * (i / 2)}, e)
			VFNMADD231PS(Mem{Base: noise, Disp: 64 * (i % 2)}, e, z)
		}
		t = newTops512(x, ok, Mem{Base: tops}, inf, nil)
	}
	for i, z := range x {
		VSUBPS(t[i/2], z, z)
	}
	expAll512(x, ok, false)
	v := zmms(2 * heads)
	for i, z := range x {
		VMULPS_Z(Mem{Base: scale, Disp: 64 * (i % 2)}, z, ok[i], v[i])
		VMOVUPS(v[i], Mem{Base: w, Disp: 64 * i})
		KMOVW(ok[i], Mem{Base: masks, Disp: 2 * i})
	}
	for h := range heads {
		VADDPS(x[2*h+1], x[2*h], x[2*h])
		x[h] = x[2*h]
	}
	storeLanes512(reduceLanes512(x[:heads], func(a, b, d Op) { VADDPS(a, b, d) }), Mem{Base: sums}, heads)
	if cut {
		cutWeights512(v, Mem{Base: load("digits")}, Mem{Base: load("units")})
		inf, z, r := broadcastFloat(float32(math.Inf(1))), zmms(2), GP32()
		k := []Register{K(), K()}
		for i := range z {
			VMOVDQU32(Mem{Base: scale, Disp: 64 * i}, z[i])
			VPCMPUD(Imm(5), inf, z[i], k[i]) // not below, as integers
		}
		KORW(k[1], k[0], k[0])
		KMOVW(k[0], r)
		Store(r, ReturnIndex(0))
	}
	VZEROUPPER()
	RET()
}

// Fields of tile and TileForm of package attend.
const (
	tileKBase, tileVBase    = 16, 32 // then the scales
	tileForm                = 48
	formKPlane, formVPlane  = 0, 8
	formKBits, formVBits    = 16, 24
	formKUnit, formVUnit    = 32, 36
	formNoise, formOfScales = 40, 44
)

// Fields of runMemory of package attend.
const (
	memoryDigits = 768
	memoryScales = memoryDigits + 3*digitBytes
	memoryFrac   = memoryScales + 4*tileRows
	memoryUnits  = memoryFrac + 64
	memorySums   = memoryUnits + 16
	memoryTops   = memorySums + 16
	memoryEnergy = memoryTops + 16
	memoryScale  = memoryEnergy + 16
)

// rowScales512 returns the row scales of a side of a tile times f: what scalesLog8AVX512 writes if bit of
// the form is set, else what scalesF16AVX512 does.
func rowScales512(side string, memory, tile, form Register, place int, bit uint32, f VecVirtual) []VecVirtual {
	base, codes, forms := GP64(), GP64(), GP32()
	MOVQ(Mem{Base: tile, Disp: place}, base)
	MOVQ(Mem{Base: tile, Disp: place + 8}, codes)
	MOVL(Mem{Base: form, Disp: formOfScales}, forms)
	v := zmms(2)
	TESTL(U32(bit), forms)
	JZ(LabelRef(side + "F16"))
	table, one, none := ZMM(), ZMM(), ZMM()
	VMOVUPS(Mem{Base: memory, Disp: memoryFrac}, table)
	VMULPS_BCST(Mem{Base: base}, table, table)
	VPBROADCASTD(dwordsConstant("dwords127", []uint32{127, 127}), one)
	VPBROADCASTD(dwordsConstant("dwords255", []uint32{255, 255}), none)
	for i, z := range v {
		x, e, some := ZMM(), ZMM(), K()
		VPMOVZXBD(Mem{Base: codes, Disp: 16 * i}, x)
		VPERMPS(table, x, z) // the low four bits count
		VPSRLD(Imm(4), x, e)
		VPSUBD(e, one, e)
		VPSLLD(Imm(23), e, e)
		VMULPS(e, z, z)
		VPCMPUD(Imm(4), none, x, some)
		VMULPS_Z(f, z, some, z)
	}
	JMP(LabelRef(side + "Scaled"))
	Label(side + "F16")
	for i, z := range v {
		VCVTPH2PS(Mem{Base: codes, Disp: 32 * i}, z)
		VMULPS(f, z, z)
	}
	Label(side + "Scaled")
	return v
}

// softmaxTile512 is softmaxCut of rows that all count, with the scales of the rows in one.
func softmaxTile512(heads int) {
	name := fmt.Sprintf("softmaxTile%dAVX512", heads)
	function(name, "func(memory, t, next *byte, dots *float32) (flags uint32)",
		name+" makes weights of the inner products of a tile of 32 rows: per head s = dots*mul - "+
			"energy*noise*mul^2, tops = max(s) if that is above tops + 8, p = exp(s - tops), sums = sum of p. "+
			"It writes p*rowscale as integers of 24 bits, of each four rows the lowest bytes first, and what one "+
			"is worth. mul is the row scale of K times its unit and scale, rowscale that of V times its unit. "+
			"Bit 0 of flags: those of V are not all finite and positive or +0. Bit 1: a top rose. It "+
			"prefetches the rows of tile next, which may be nil.")
	prefetchTile512()
	memory, tile, form, dots := load("memory"), load("t"), GP64(), load("dots")
	MOVQ(Mem{Base: tile, Disp: tileForm}, form)
	unit := ZMM()
	VBROADCASTSS(Mem{Base: form, Disp: formVUnit}, unit)
	flags := GP32()
	XORL(flags, flags)
	v := rowScales512("v", memory, tile, form, tileVBase, 2, unit)
	{
		inf, k, r := broadcastFloat(float32(math.Inf(1))), K(), GP32()
		for i, z := range v {
			VMOVUPS(z, Mem{Base: memory, Disp: memoryScales + 64*i})
			VPCMPUD(Imm(5), inf, z, k) // not below, as integers
			KMOVW(k, r)
			ORL(r, flags)
		}
		NEGL(flags)
		SBBL(flags, flags)
		ANDL(Imm(1), flags)
	}
	x, ok := zmms(2*heads), make([]Register, 2*heads)
	var t []VecVirtual
	{
		unit := ZMM()
		VBROADCASTSS(Mem{Base: form, Disp: formKUnit}, unit)
		VMULPS_BCST(Mem{Base: memory, Disp: memoryScale}, unit, unit)
		ms := rowScales512("k", memory, tile, form, tileKBase, 1, unit)
		inf := broadcastFloat(float32(math.Inf(-1)))
		for i := range x {
			ok[i] = K()
			VMULPS(Mem{Base: dots, Disp: 64 * i}, ms[i%2], x[i])
		}
		noise := GP32()
		MOVL(Mem{Base: form, Disp: formNoise}, noise)
		ADDL(noise, noise) // without its sign
		JZ(LabelRef("quiet"))
		f, e := ZMM(), ZMM()
		VBROADCASTSS(Mem{Base: form, Disp: formNoise}, f)
		for _, z := range ms {
			VMULPS(z, z, z)
			VMULPS(f, z, z)
		}
		for i, z := range x {
			VBROADCASTSS(Mem{Base: memory, Disp: memoryEnergy + 4*(i/2)}, e)
			VFNMADD231PS(ms[i%2], e, z)
		}
		Label("quiet")
		t = newTops512(x, nil, Mem{Base: memory, Disp: memoryTops}, inf, flags)
	}
	for i, z := range x {
		VSUBPS(t[i/2], z, z)
	}
	expAll512(x, ok, true)
	w := zmms(2 * heads)
	for i, z := range x {
		VMULPS_Z(Mem{Base: memory, Disp: memoryScales + 64*(i%2)}, z, ok[i], w[i])
	}
	for h := range heads {
		VADDPS(x[2*h+1], x[2*h], x[2*h])
		x[h] = x[2*h]
	}
	storeLanes512(reduceLanes512(x[:heads], func(a, b, d Op) { VADDPS(a, b, d) }),
		Mem{Base: memory, Disp: memorySums}, heads)
	cutWeights512(w, Mem{Base: memory, Disp: memoryDigits}, Mem{Base: memory, Disp: memoryUnits})
	Store(flags, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// prefetchTile512 prefetches the rows of the parameter next, a tile, and the first of their scales.
func prefetchTile512() {
	tile := load("next")
	TESTQ(tile, tile)
	JZ(LabelRef("prefetched"))
	form := GP64()
	MOVQ(Mem{Base: tile, Disp: tileForm}, form)
	for _, side := range []struct{ rows, scales, plane, bits int }{
		{0, tileKBase + 8, formKPlane, formKBits}, {8, tileVBase + 8, formVPlane, formVBits}} {
		p, n, scales := GP64(), GP64(), GP64()
		MOVQ(Mem{Base: tile, Disp: side.rows}, p)
		MOVQ(Mem{Base: form, Disp: side.bits}, n)
		times(fmt.Sprintf("plane%d", side.bits), n, func() {
			for i := range 4 {
				PREFETCHT1(Mem{Base: p, Disp: 64 * i})
			}
			ADDQ(Mem{Base: form, Disp: side.plane}, p)
		})
		MOVQ(Mem{Base: tile, Disp: side.scales}, scales)
		PREFETCHT1(Mem{Base: scales})
	}
	Label("prefetched")
}

// topSlack is TopSlack of package attend.
const topSlack = 8

// newTops512 makes the largest of scores x, of those in ok unless that is nil, the new top of a head where it
// is more than topSlack above the top, and sets bit 1 of flags, if there are any, where one rose. It returns
// the tops, by head, but no -Inf.
func newTops512(x []VecVirtual, ok []Register, tops Mem, inf VecVirtual, flags Register) []VecVirtual {
	heads := len(x) / 2
	m, t, high := zmms(heads), zmms(heads), zmms(heads)
	higher, any := K(), GP32()
	XORL(any, any)
	for h := range heads {
		VBROADCASTSS(at(tops, 4*h), t[h])
		if ok == nil {
			VMAXPS(inf, x[2*h], m[h]) // NaN gives way
			VMAXPS(m[h], x[2*h+1], m[h])
		} else {
			VMOVAPS(inf, m[h])
			VMAXPS(m[h], x[2*h], ok[2*h], m[h])
			VMAXPS(m[h], x[2*h+1], ok[2*h+1], m[h])
		}
		VADDPS_BCST(floatPair(topSlack), t[h], high[h])
	}
	for h := range heads {
		r := GP32()
		VCMPPS(Imm(14), high[h], m[h], higher)
		KMOVW(higher, r)
		ORL(r, any)
	}
	TESTL(any, any)
	JZ(LabelRef("same")) // in most tiles no row is that far above those before
	if flags != nil {
		ORL(Imm(2), flags)
	}
	top := reduceLanes512(m, func(a, b, d Op) { VMAXPS(a, b, d) })
	for h := range heads {
		most := spreadLane512(top, h)
		VCMPPS(Imm(14), high[h], most, higher)
		VMOVAPS(most, higher, t[h])
		VMOVSS(t[h].AsX(), at(tops, 4*h))
	}
	Label("same")
	for _, z := range t {
		VMAXPS_BCST(floatPair(-math.MaxFloat32), z, z) // -Inf less it is -Inf, not NaN
	}
	return t
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
	function("prefetchLines", "func(p *byte, quads int)",
		"prefetchLines prefetches quads times four lines of 64 bytes. The addresses may lie outside of "+
			"allocated memory.")
	p, n := load("p"), load("quads")
	times("quad", n, func() {
		for i := range 4 {
			PREFETCHT1(Mem{Base: p, Disp: 64 * i})
		}
		ADDQ(U32(256), p)
	})
	RET()
	function("prefetchRuns", "func(p *byte, runs, stride, quads int, also *byte)",
		"prefetchRuns prefetches runs runs of quads times 256 bytes, which start stride bytes apart "+
			"from p on, and the line of also. runs and quads are at least 1. The addresses may lie "+
			"outside of allocated memory. The lines go to the second-level cache, which is near "+
			"enough and leaves the first level to the current tile.")
	p, runs, stride, quads := load("p"), load("runs"), load("stride"), load("quads")
	PREFETCHT1(Mem{Base: load("also")})
	times("run", runs, func() {
		q, n := GP64(), GP64()
		MOVQ(p, q)
		MOVQ(quads, n)
		times("quad", n, func() {
			for i := range 4 {
				PREFETCHT1(Mem{Base: q, Disp: 64 * i})
			}
			ADDQ(U32(256), q)
		})
		ADDQ(stride, p)
	})
	RET()
}
