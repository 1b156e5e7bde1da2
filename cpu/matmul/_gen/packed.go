// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// The kernels of a Matrix work on panels that are taken apart: codes of 8 bits, scales and minima as
// float32, each for 32 or 16 inputs.

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

// A plane holds width bits of every code, from bit base on, in vectors from first on.
type plane struct{ width, base, first int }

func planes(bits int) []plane {
	switch bits {
	case 2:
		return []plane{{2, 0, 0}}
	case 3:
		return []plane{{2, 0, 0}, {1, 2, 2}}
	case 5:
		return []plane{{4, 0, 0}, {1, 4, 4}}
	case 6:
		return []plane{{4, 0, 0}, {2, 4, 4}}
	}
	return []plane{{bits, 0, 0}}
}

// vectors are the instructions of one width that the two instruction sets spell differently.
type vectors struct {
	isa  string
	size int // bytes
	reg  func() VecVirtual
}

var (
	wide   = vectors{"AVX512", 64, func() VecVirtual { return ZMM() }}
	narrow = vectors{"AVX2", 32, func() VecVirtual { return YMM() }}
)

func (v vectors) is512() bool { return v.size == 64 }

func (v vectors) regs(n int) []VecVirtual {
	r := make([]VecVirtual, n)
	for i := range r {
		r[i] = v.reg()
	}
	return r
}

// bytes fills a register with one byte.
func (v vectors) bytes(b uint32) VecVirtual {
	r := v.reg()
	if v.is512() {
		m := GP32()
		MOVL(U32(b*0x01010101), m)
		VPBROADCASTD(m, r)
	} else {
		word32(b*0x01010101, r)
	}
	return r
}

func (v vectors) and(mask, x, dst VecVirtual) {
	if v.is512() {
		VPANDD(mask, x, dst)
	} else {
		VPAND(mask, x, dst)
	}
}

// orAnd computes dst |= x & mask and may change x.
func (v vectors) orAnd(mask, x, dst VecVirtual) {
	if v.is512() {
		VPTERNLOGD(Imm(0xf8), mask, x, dst)
	} else {
		VPAND(mask, x, x)
		VPOR(x, dst, dst)
	}
}

// shift moves x right by n bits, left if n is negative; bytes run into each other.
func (v vectors) shift(n int, x, dst VecVirtual) VecVirtual {
	switch {
	case n == 0:
		return x
	case n > 0:
		VPSRLD(Imm(uint64(n)), x, dst)
	default:
		VPSLLD(Imm(uint64(-n)), x, dst)
	}
	return dst
}

// decoder holds the constants that codes of some bits are decoded with.
type decoder struct {
	v     vectors
	bits  int
	table VecVirtual
	masks []VecVirtual
	raw   bool // codes are left as they are
}

// newDecoder loads the constants. With flip, the integers come out with their upper bit turned, as
// VPDPBUSD takes them.
func newDecoder(v vectors, bits int, consts Register, flip bool) *decoder {
	d := &decoder{v: v, bits: bits, table: v.reg()}
	if v.is512() {
		VBROADCASTI32X4(Mem{Base: consts}, d.table)
	} else {
		VBROADCASTI128(Mem{Base: consts}, d.table)
	}
	if flip {
		VPXORD(v.bytes(0x80), d.table, d.table)
	}
	for _, p := range planes(bits) {
		d.masks = append(d.masks, v.bytes((1<<p.width-1)<<p.base))
	}
	return d
}

// group decodes a group: register q holds inputs 4q to 4q+3 of each output.
func (d *decoder) group(codes Register, half int) []VecVirtual {
	v, w := d.v, d.v.regs(8)
	for i, p := range planes(d.bits) {
		for x := 0; x < p.width; x++ {
			src := v.reg()
			move(v.is512(), Mem{Base: codes, Disp: 64*(p.first+x) + half}, src)
			for f := 0; f < 8/p.width; f++ {
				q := x + p.width*f
				t := v.shift(p.width*f-p.base, src, v.reg())
				if i == 0 {
					v.and(d.masks[i], t, w[q])
					continue
				}
				if t == src && !v.is512() { // orAnd changes it
					t = v.reg()
					VMOVDQA(src, t)
				}
				v.orAnd(d.masks[i], t, w[q])
			}
		}
	}
	if d.raw {
		return w
	}
	for _, r := range w {
		if d.bits <= 4 {
			VPSHUFB(r, d.table, r)
		} else {
			VPSUBB(d.table, r, r)
		}
	}
	return w
}

// unpack writes codes of some bits as int8, [groups][512].
func unpack(v vectors, bits int) {
	function(fmt.Sprintf("unpack%d%s", bits, v.isa),
		"func(dst, codes, consts *byte, groups int)",
		fmt.Sprintf("unpack%d%s writes codes of %d bits as int8, [groups][512].", bits, v.isa, bits))
	dst, codes, consts, n := load("dst"), load("codes"), load("consts"), load("groups")
	d := newDecoder(v, bits, consts, false)
	Label("loop")
	for half := 0; half < 64; half += v.size {
		for q, r := range d.group(codes, half) {
			move(v.is512(), r, Mem{Base: dst, Disp: 64*q + half})
		}
	}
	ADDQ(U32(512), dst)
	ADDQ(U32(64*uint32(bits)), codes)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// ahead is how many bytes of codes a row kernel asks for before it needs them. The processor's own
// prefetching stops at the end of a page.
const ahead = 4096

// A source says how a row kernel gets its scales: as float32, as binary16, or as binary16 times
// integers of 8 bits.
type source string

const (
	floats source = ""
	half   source = "Half"
	steps  source = "Steps"
)

// rowKernel is packedTile for one row of activations, with codes and scales as a Matrix stores them.
type rowKernel struct {
	v    vectors
	bits int
	kind kind
	src  source

	codes, scales, steps, mins, minSteps, aq, sa, as, ai Register
	base, minBase, ones, acc                             VecVirtual
}

// raw reports whether codes are multiplied as they are: those with minima have no offset.
func (r *rowKernel) raw() bool { return r.kind.mins }

// sums reports whether the kernel takes 128 times the activations off, as unsigned factors need.
func (r *rowKernel) sums() bool { return r.v.is512() && !r.raw() }

func row(v vectors, bits int, k kind, src source) {
	r := &rowKernel{v: v, bits: bits, kind: k, src: src}
	name := fmt.Sprintf("row%dOf%s%s%s", bits, k, src, v.isa)
	function(name, "func(c *float32, codes, consts, scales *byte, steps *int8, mins *byte, minSteps *int8, "+
		"aq *int8, sa, as *float32, ai *int32, spans, per int)",
		fmt.Sprintf("%s computes c[%d] from codes of %d bits; a scale is of %d inputs, spans of per groups share "+
			"a base.", name, v.size/4, bits, k.step))
	r.codes, r.scales, r.aq, r.sa = load("codes"), load("scales"), load("aq"), load("sa")
	if src == steps {
		r.steps = load("steps")
	}
	if k.mins {
		r.mins, r.as = load("mins"), load("as")
		if src == steps {
			r.minSteps = load("minSteps")
		}
	}
	if r.sums() {
		r.ai = load("ai")
	}
	spans := load("spans")
	var d *decoder
	if bits < 8 {
		d = newDecoder(v, bits, load("consts"), v.is512())
		d.raw = r.raw()
	}
	if !v.is512() {
		r.ones = v.reg()
		word32(0x00010001, r.ones)
	}
	r.acc = v.reg()
	VXORPS(r.acc, r.acc, r.acc)
	Label("span")
	left := load("per")
	if src == steps {
		r.base, r.minBase = v.reg(), v.reg()
		VCVTPH2PS(Mem{Base: r.scales}, r.base)
		ADDQ(Imm(32), r.scales)
		if k.mins {
			VCVTPH2PS(Mem{Base: r.mins}, r.minBase)
			ADDQ(Imm(32), r.mins)
		}
	}
	Label("loop")
	r.group(d)
	SUBQ(Imm(1), left)
	JNZ(LabelRef("loop"))
	SUBQ(Imm(1), spans)
	JNZ(LabelRef("span"))
	c := load("c")
	VMOVUPS(r.acc, Mem{Base: c})
	VZEROUPPER()
	RET()
}

// group adds one group.
func (r *rowKernel) group(d *decoder) {
	v, k := r.v, r.kind
	for line := 0; line < r.bits; line++ {
		PREFETCHT0(Mem{Base: r.codes, Disp: ahead + 64*line})
	}
	var w []VecVirtual
	if d != nil {
		w = d.group(r.codes, 0)
	} else {
		w = r.eight()
	}
	per := 32 / k.step
	for s := 0; s < per; s++ {
		sum := r.sum(w[8/per*s:8/per*(s+1)], 8/per*s, s)
		f := v.reg()
		VCVTDQ2PS(sum, sum)
		VBROADCASTSS(Mem{Base: r.sa}, f)
		VMULPS(r.scale(r.scales, r.steps, r.base, s), f, f)
		VFMADD231PS(f, sum, r.acc)
		if k.mins {
			u := v.reg()
			VBROADCASTSS(Mem{Base: r.as, Disp: 4 * s}, u)
			VFMADD231PS(r.scale(r.mins, r.minSteps, r.minBase, s), u, r.acc)
		}
	}
	add := func(n int, regs ...Register) {
		for _, reg := range regs {
			if reg != nil {
				ADDQ(U32(uint32(n)), reg)
			}
		}
	}
	add(64*r.bits, r.codes)
	add(32, r.aq)
	add(4, r.sa)
	add(4*per, r.as, r.ai)
	add(16*per, r.steps, r.minSteps)
	switch r.src {
	case floats:
		add(64*per, r.scales, r.mins)
	case half:
		add(32*per, r.scales, r.mins)
	}
}

// eight loads codes of 8 bits.
func (r *rowKernel) eight() []VecVirtual {
	w := r.v.regs(8)
	flip := VecVirtual(nil)
	if r.v.is512() {
		flip = r.v.bytes(0x80)
	}
	for q, x := range w {
		if flip != nil {
			VPXORD(Mem{Base: r.codes, Disp: 64 * q}, flip, x)
		} else {
			VMOVDQU(Mem{Base: r.codes, Disp: 64 * q}, x)
		}
	}
	return w
}

// scale returns the scales of step s.
func (r *rowKernel) scale(base, step Register, shared VecVirtual, s int) Op {
	f := r.v.reg()
	switch r.src {
	case floats:
		return Mem{Base: base, Disp: 64 * s}
	case half:
		VCVTPH2PS(Mem{Base: base, Disp: 32 * s}, f)
	case steps:
		VPMOVSXBD(Mem{Base: step, Disp: 16 * s}, f)
		VCVTDQ2PS(f, f)
		VMULPS(shared, f, f)
	}
	return f
}

// sum multiplies the activations of step s, from vector q on, with w.
func (r *rowKernel) sum(w []VecVirtual, q, s int) VecVirtual {
	v, sum := r.v, r.v.reg()
	if v.is512() {
		if r.sums() {
			VPBROADCASTD(Mem{Base: r.ai, Disp: 4 * s}, sum)
		} else {
			VPXORD(sum, sum, sum)
		}
		for i, x := range w {
			VPDPBUSD_BCST(Mem{Base: r.aq, Disp: 4 * (q + i)}, x, sum)
		}
		return sum
	}
	// Products of two codes of up to 5 bits fit int16 as often as batch says, with 127 times 2.
	batch := map[int]int{2: 8, 4: 8, 5: 4}[r.bits]
	if !r.raw() {
		batch = 1
	}
	words := v.reg()
	for i, x := range w {
		a := v.reg()
		VPBROADCASTD(Mem{Base: r.aq, Disp: 4 * (q + i)}, a)
		if r.raw() {
			VPMADDUBSW(a, x, a)
		} else {
			m := v.reg()
			VPABSB(x, m)
			VPSIGNB(x, a, a)
			VPMADDUBSW(a, m, a)
		}
		if i%batch > 0 {
			VPADDW(a, words, words)
		} else {
			words = a
		}
		if i%batch < batch-1 && i < len(w)-1 {
			continue
		}
		if i < batch {
			VPMADDWD(r.ones, words, sum)
		} else {
			t := v.reg()
			VPMADDWD(r.ones, words, t)
			VPADDD(t, sum, sum)
		}
	}
	return sum
}

// scales writes vectors of 16 scales from binary16.
func scales(v vectors) {
	function("scales"+v.isa, "func(dst *float32, base *uint16, n int)",
		"scales"+v.isa+" writes n vectors of 16 numbers of binary16 as float32.")
	dst, base, n := load("dst"), load("base"), load("n")
	Label("loop")
	for half := 0; half < 64; half += v.size {
		r := v.reg()
		VCVTPH2PS(Mem{Base: base, Disp: half / 2}, r)
		VMOVUPS(r, Mem{Base: dst, Disp: half})
	}
	ADDQ(Imm(64), dst)
	ADDQ(Imm(32), base)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()

	function("steps"+v.isa, "func(dst *float32, base *uint16, steps *int8, spans, per int)",
		"steps"+v.isa+" writes spans*per vectors of 16 scales, base times steps; per vectors share a base.")
	dst, base = load("dst"), load("base")
	steps, spans, per := load("steps"), load("spans"), load("per")
	Label("span")
	b := v.regs(64 / v.size)
	for i, r := range b {
		VCVTPH2PS(Mem{Base: base, Disp: i * v.size / 2}, r)
	}
	left := GP64()
	MOVQ(per, left)
	Label("step")
	for i, r := range b {
		t := v.reg()
		VPMOVSXBD(Mem{Base: steps, Disp: i * v.size / 4}, t)
		VCVTDQ2PS(t, t)
		VMULPS(r, t, t)
		VMOVUPS(t, Mem{Base: dst, Disp: i * v.size})
	}
	ADDQ(Imm(64), dst)
	ADDQ(Imm(16), steps)
	SUBQ(Imm(1), left)
	JNZ(LabelRef("step"))
	ADDQ(Imm(32), base)
	SUBQ(Imm(1), spans)
	JNZ(LabelRef("span"))
	VZEROUPPER()
	RET()
}

// A kind of panel: the inputs that share a scale, and whether there are minima.
type kind struct {
	step int
	mins bool
}

func (k kind) String() string {
	if k.mins {
		return fmt.Sprintf("%dMin", k.step)
	}
	return fmt.Sprint(k.step)
}

// kinds are those that q8 and expand8 do not serve.
var kinds = []kind{{32, true}, {16, false}, {16, true}}

// rows are the codes, kinds and sources that have a kernel for one row: those of GGUF's types.
var rows = []struct {
	bits int
	kind kind
	src  source
}{
	{2, kind{16, true}, steps}, {3, kind{16, false}, steps}, {4, kind{32, false}, floats},
	{4, kind{32, false}, half}, {4, kind{32, false}, steps}, {4, kind{32, true}, half},
	{4, kind{32, true}, steps}, {5, kind{32, false}, half}, {5, kind{32, true}, half},
	{5, kind{32, true}, steps}, {6, kind{16, false}, steps}, {8, kind{32, false}, half},
}

// expandPanel writes a panel as float32 [32*groups][16].
func expandPanel(v vectors, k kind) {
	name := fmt.Sprintf("expand%s%s", k, v.isa)
	function(name, "func(dst *float32, codes *byte, scales, mins *float32, groups int)",
		fmt.Sprintf("%s writes one panel as float32 [32*groups][16]; a scale is of %d inputs.", name, k.step))
	dst, codes, sw, mn, n := load("dst"), load("codes"), load("scales"), Register(nil), Register(nil)
	if k.mins {
		mn = load("mins")
	}
	n = load("groups")
	Label("loop")
	for half := 0; half < 64; half += v.size {
		for s := 0; s < 32/k.step; s++ {
			scale, least := v.reg(), v.reg()
			VMOVUPS(Mem{Base: sw, Disp: 64*s + half}, scale)
			if k.mins {
				VMOVUPS(Mem{Base: mn, Disp: 64*s + half}, least)
			}
			for q := s * k.step / 4; q < (s+1)*k.step/4; q++ {
				w := v.reg()
				move(v.is512(), Mem{Base: codes, Disp: 64*q + half}, w)
				for b := 0; b < 4; b++ { // byte b of each output, its sign extended
					t := v.reg()
					if b < 3 {
						VPSLLD(Imm(uint64(24-8*b)), w, t)
						VPSRAD(Imm(24), t, t)
					} else {
						VPSRAD(Imm(24), w, t)
					}
					VCVTDQ2PS(t, t)
					VMULPS(scale, t, t)
					if k.mins {
						VADDPS(least, t, t)
					}
					VMOVUPS(t, Mem{Base: dst, Disp: 64*(4*q+b) + half})
				}
			}
		}
	}
	ADDQ(U32(2048), dst)
	ADDQ(U32(512), codes)
	for _, r := range []Register{sw, mn} {
		if r != nil {
			ADDQ(U32(uint32(64*32/k.step)), r)
		}
	}
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// packedTile multiplies rows of quantized activations with one panel, or half of one (AVX2).
func packedTile(v vectors, k kind, rows int) {
	name := fmt.Sprintf("tile%sRows%d%s", k, rows, v.isa)
	function(name, "func(c *float32, ldc int, codes *byte, scales, mins *float32, aq *int8, sa, as *float32, "+
		"ai *int32, groups int)",
		fmt.Sprintf("%s computes c[%d][%d]; a scale is of %d inputs, ldc is in bytes.", name, rows, v.size/4, k.step))
	c, ldc := load("c"), load("ldc")
	codes, scales := load("codes"), load("scales")
	var mins, as, ai Register
	if k.mins {
		mins = load("mins")
	}
	aq, sa := load("aq"), load("sa")
	if k.mins {
		as = load("as")
	}
	if v.is512() {
		ai = load("ai")
	}
	n := load("groups")
	acc := v.regs(rows)
	for _, r := range acc {
		VXORPS(r, r, r)
	}
	Label("loop")
	for s := 0; s < 32/k.step; s++ {
		t := packedStep{v: v, k: k, s: s, rows: rows, codes: codes, aq: aq, ai: ai, sa: sa, as: as,
			scales: scales, mins: mins, acc: acc}
		if v.is512() {
			t.products512()
		} else {
			t.products256()
		}
	}
	per := uint32(32 / k.step)
	ADDQ(U32(512), codes)
	ADDQ(U32(64*per), scales)
	ADDQ(U32(32*uint32(rows)), aq)
	ADDQ(U32(4*uint32(rows)), sa)
	if mins != nil {
		ADDQ(U32(64*per), mins)
		ADDQ(U32(4*uint32(rows)*per), as)
	}
	if ai != nil {
		ADDQ(U32(4*uint32(rows)*per), ai)
	}
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	for r, a := range acc {
		VMOVUPS(a, Mem{Base: c})
		if r < rows-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

// packedStep is the part of a group that shares a scale.
type packedStep struct {
	v                                   vectors
	k                                   kind
	s, rows                             int
	codes, aq, ai, sa, as, scales, mins Register
	acc                                 []VecVirtual
}

func (t packedStep) vectorsOfStep() int { return t.k.step / 4 }

// products512 follows products512 of the 8-bit tiles: sums start at -128 times the activations.
func (t packedStep) products512() {
	w := zmms(t.vectorsOfStep())
	flip, m := ZMM(), GP32()
	MOVL(U32(0x80808080), m)
	VPBROADCASTD(m, flip)
	for q := range w {
		VPXORD(Mem{Base: t.codes, Disp: 64 * (t.s*len(w) + q)}, flip, w[q])
	}
	sw, mn := ZMM(), ZMM()
	VMOVUPS(Mem{Base: t.scales, Disp: 64 * t.s}, sw)
	if t.k.mins {
		VMOVUPS(Mem{Base: t.mins, Disp: 64 * t.s}, mn)
	}
	for r0 := 0; r0 < t.rows; r0 += rowBatch {
		sums := zmms(min(rowBatch, t.rows-r0))
		for i, s := range sums {
			VPBROADCASTD(Mem{Base: t.ai, Disp: 4 * (t.s*t.rows + r0 + i)}, s)
		}
		for q := range w {
			for i, s := range sums {
				VPDPBUSD_BCST(Mem{Base: t.aq, Disp: 32*(r0+i) + 4*(t.s*len(w)+q)}, w[q], s)
			}
		}
		for i, s := range sums {
			f := ZMM()
			VCVTDQ2PS(s, s)
			VMULPS_BCST(Mem{Base: t.sa, Disp: 4 * (r0 + i)}, sw, f)
			VFMADD231PS(f, s, t.acc[r0+i])
			if t.k.mins {
				VFMADD231PS_BCST(Mem{Base: t.as, Disp: 4 * (t.s*t.rows + r0 + i)}, mn, t.acc[r0+i])
			}
		}
	}
}

// products256 follows q8Tile256.
func (t packedStep) products256() {
	sums := ymms(t.rows)
	ones := YMM()
	word32(0x00010001, ones.(VecVirtual))
	for i := 0; i < t.vectorsOfStep(); i++ {
		q := t.s*t.vectorsOfStep() + i
		w, m := YMM(), YMM()
		VMOVDQU(Mem{Base: t.codes, Disp: 64 * q}, w)
		VPABSB(w, m)
		for r, s := range sums {
			x := YMM()
			VPBROADCASTD(Mem{Base: t.aq, Disp: 32*r + 4*q}, x)
			VPSIGNB(w, x, x)
			VPMADDUBSW(x, m, x)
			if i == 0 {
				VPMADDWD(ones, x, s)
			} else {
				VPMADDWD(ones, x, x)
				VPADDD(x, s, s)
			}
		}
	}
	sw := YMM()
	VMOVUPS(Mem{Base: t.scales, Disp: 64 * t.s}, sw)
	for r, s := range sums {
		f := YMM()
		VCVTDQ2PS(s, s)
		VBROADCASTSS(Mem{Base: t.sa, Disp: 4 * r}, f)
		VMULPS(sw, f, f)
		VFMADD231PS(f, s, t.acc[r])
		if t.k.mins {
			u := YMM()
			VBROADCASTSS(Mem{Base: t.as, Disp: 4 * (t.s*t.rows + r)}, u)
			VFMADD231PS(Mem{Base: t.mins, Disp: 64 * t.s}, u, t.acc[r])
		}
	}
}

// halves writes the sums of 16 codes of one row of activations.
func halves() {
	function("halvesAVX2", "func(sums *float32, bias *int32, codes *int8, sa *float32, stride, groups int)",
		"halvesAVX2 writes, for halves h of groups g of one row of a tile, scale*sum to "+
			"sums[stride*(2*g+h)] and -128*sum to bias there; codes and sa have the layout of quantize.")
	sums, bias, codes := load("sums"), load("bias"), load("codes")
	sa, stride, n := load("sa"), load("stride"), load("groups")
	ones8, ones16 := YMM(), YMM()
	word32(0x01010101, ones8.(VecVirtual))
	word32(0x00010001, ones16.(VecVirtual))
	step := GP64()
	MOVQ(stride, step)
	SHLQ(Imm(5), step)
	Label("loop")
	y := YMM()
	VMOVDQU(Mem{Base: codes}, y)
	VPMADDUBSW(y, ones8, y)
	VPMADDWD(ones16, y, y)
	VPHADDD(y, y, y)
	VPHADDD(y, y, y)
	hi := XMM()
	VEXTRACTI128(Imm(1), y, hi)
	for _, x := range []VecVirtual{y.AsX().(VecVirtual), hi} {
		f, s := XMM(), GP32()
		VCVTDQ2PS(x, f)
		VMULSS(Mem{Base: sa}, f, f)
		VMOVSS(f, Mem{Base: sums})
		VMOVD(x, s)
		SHLL(Imm(7), s)
		NEGL(s)
		MOVL(s, Mem{Base: bias})
		LEAQ(Mem{Base: sums, Index: stride, Scale: 4}, sums)
		LEAQ(Mem{Base: bias, Index: stride, Scale: 4}, bias)
	}
	ADDQ(step, codes)
	LEAQ(Mem{Base: sa, Index: stride, Scale: 4}, sa)
	SUBQ(Imm(1), n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func packed() {
	features()
	for _, v := range []vectors{wide, narrow} {
		for _, bits := range []int{2, 3, 4, 5, 6} {
			unpack(v, bits)
		}
		scales(v)
		for _, k := range kinds {
			expandPanel(v, k)
		}
	}
	for _, k := range kinds {
		for _, rows := range []int{16, 4, 1} {
			packedTile(wide, k, rows)
		}
		for _, rows := range []int{4, 1} {
			packedTile(narrow, k, rows)
		}
	}
	halves()
	for _, v := range []vectors{wide, narrow} {
		for _, r := range rows {
			row(v, r.bits, r.kind, r.src)
		}
	}
}
