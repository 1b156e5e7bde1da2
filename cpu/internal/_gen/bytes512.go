// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Tiles of bytes: codes become centroids of eight bits, and VPDPBUSD multiplies them with numbers
// in fixed point that are cut into digits of eight bits. Package attend has the layouts.

// digits is how many bytes a query's value or a weight is cut into.
const digits = 3

// recordHead is what stands before a query's digits: the halves of three sums, the unit, the three
// sums and 4 bytes more, of 4 bytes each.
const (
	recordHead = 32
	wholeSums  = 4 * (digits + 1)
)

// rowOrder is the row that stands in each 64-bit word of a vector of eight rows.
var rowOrder = [8]int{0, 4, 1, 5, 2, 6, 3, 7}

// plan is how eight rows of 64 codes are read from bit planes.
type plan int

const (
	together plan = iota // rows of 64 codes, which follow each other
	pairs                // rows of 128 codes, likewise
	apart                // rows of any multiple of 64
)

func (p plan) suffix() string { return [...]string{"64", "128", ""}[p] }

// word is the 64-bit word of a loaded vector that holds a row.
func (p plan) word(row int) int {
	if p == together {
		return row
	}
	for w, r := range rowOrder {
		if r == row {
			return w
		}
	}
	panic("no such row")
}

// byteControl places the bytes of one plane for the bit transposition of 8 x 8 that makes codes of
// four bits: two a byte, those of the low halves in the first slot. k[8*w+7-(4*half+i)] is the
// byte of bit i of the codes in word w.
func byteControl(p plan, values bool, vector int) []byte {
	k := make([]byte, 64)
	for w := range 8 {
		for half := range 2 {
			row, b := rowOrder[w], 2*vector+half
			if values {
				row, b = w%4+4*half, 2*vector+w/4
			}
			for i := range 4 {
				k[8*w+7-(4*half+i)] = byte(8*p.word(row) + b)
			}
		}
	}
	return k
}

// planeMask returns the mask of the bytes that plane p has in the order of byteControl, for a format of bits planes.
func planeMask(bits, p int) uint64 {
	var m uint64
	for w := range 8 {
		for half := range 2 {
			m |= 1 << (8*w + 7 - (4*half + bits - 1 - p))
		}
	}
	return m
}

// byteLoop is what the loops of unpackBytes512 work with.
type byteLoop struct {
	bits             int
	values           bool
	plan             plan
	dst              Register
	planes           []Register
	masks            []Register
	control          []VecVirtual
	table, bit, turn VecVirtual
}

func bytesName(bits int, values bool, p plan) string {
	side := "Keys"
	if values {
		side = "Values"
	}
	return fmt.Sprintf("unpackLM%d%s%sAVX512", bits, side, p.suffix())
}

// unpackBytes512 expands codes in bit planes to bytes of a table.
func unpackBytes512(bits int, values bool, p plan) {
	name := bytesName(bits, values, p)
	sig := "func(dst, src *byte, plane int, table *byte, groups int"
	doc := name + " expands groups of eight rows of codes to bytes, table[code], for "
	if values {
		doc += "weighted sums."
	} else {
		doc += "inner products."
	}
	if p == apart {
		sig += ", blocks int"
		doc += " Rows have blocks times 64 values."
	} else {
		doc += " Rows have " + p.suffix() + " values."
	}
	unit := constant("unitBits", 0x8040201008040201)
	function(name, sig+")", doc)
	l := byteLoop{bits: bits, values: values, plan: p, dst: load("dst")}
	src, plane, table, groups := load("src"), load("plane"), load("table"), load("groups")
	l.planes = []Register{src}
	for i := 1; i < bits; i++ {
		s := GP64()
		MOVQ(l.planes[i-1], s)
		ADDQ(plane, s)
		l.planes = append(l.planes, s)
	}
	for i := 1; i < bits; i++ {
		k, m := K(), GP64()
		MOVQ(U64(planeMask(bits, i)), m)
		KMOVQ(m, k)
		l.masks = append(l.masks, k)
	}
	l.table, l.bit = ZMM(), ZMM()
	VMOVDQU64(Mem{Base: table}, l.table)
	VPBROADCASTQ(unit, l.bit)
	l.control = zmms(4)
	for m, z := range l.control {
		VMOVDQU64(bytesConstant(fmt.Sprintf("bytes%d%t%d", min(p, pairs), values, m),
			byteControl(p, values, m)), z)
	}
	if values {
		l.turn = ZMM()
		VMOVDQU64(turnDims(), l.turn)
	}
	switch p {
	case together:
		l.rows64(groups)
	case pairs:
		l.rows128(groups)
	default:
		l.rowsApart(groups)
	}
	VZEROUPPER()
	RET()
}

// turnDims makes four rows of one value of the rows' values: byte 4l+i is value l of row i, from
// words of eight values, row i in words i and 4+i.
func turnDims() Mem {
	k := make([]byte, 64)
	for l := range 16 {
		for i := range 4 {
			k[4*l+i] = byte(8*(i+4*(l/8)) + l%8)
		}
	}
	return bytesConstant("turnDims", k)
}

// body expands 64 values of eight rows: for keys to eight vectors, one for every eight values; for
// values to two times four vectors, one for 16 values of four rows.
func (l *byteLoop) body(x []VecVirtual, store func(m, half int, z VecVirtual)) {
	for m, c := range l.control {
		n, z := ZMM(), ZMM()
		VPERMB(x[0], c, n)
		for i, k := range l.masks {
			VPERMB(x[i+1], c, k, n)
		}
		VGF2P8AFFINEQB(Imm(0), n, l.bit, n)
		if l.values {
			VPERMB(n, l.turn, n)
		}
		VPERMB(l.table, n, z)
		store(m, 0, z)
		z = ZMM()
		VPSRLW(Imm(4), n, n)
		VPERMB(l.table, n, z)
		store(m, 1, z)
	}
}

// place is where vector m of a half lies, block blocks of the rows' own behind dst.
func (l *byteLoop) place(m, half, block, blocks int) Mem {
	if l.values {
		return Mem{Base: l.dst, Disp: 256*blocks*half + 256*block + 64*m}
	}
	return Mem{Base: l.dst, Disp: 512*block + 128*m + 64*half}
}

func (l *byteLoop) rows64(groups Register) {
	times("group", groups, func() {
		x := zmms(l.bits)
		for i, p := range l.planes {
			VMOVDQU64(Mem{Base: p}, x[i])
			ADDQ(Imm(64), p)
		}
		l.body(x, func(m, half int, z VecVirtual) { VMOVDQU64(z, l.place(m, half, 0, 1)) })
		ADDQ(U32(512), l.dst)
	})
}

func (l *byteLoop) rows128(groups Register) {
	times("group", groups, func() {
		var x [2][]VecVirtual
		x[0], x[1] = zmms(l.bits), zmms(l.bits)
		for i, p := range l.planes {
			a, b := ZMM(), ZMM()
			VMOVDQU64(Mem{Base: p}, a)
			VMOVDQU64(Mem{Base: p, Disp: 64}, b)
			ADDQ(U32(128), p)
			VPUNPCKLQDQ(b, a, x[0][i])
			VPUNPCKHQDQ(b, a, x[1][i])
		}
		for block := range x {
			l.body(x[block], func(m, half int, z VecVirtual) {
				VMOVDQU64(z, l.place(m, half, block, 2))
			})
		}
		ADDQ(U32(1024), l.dst)
	})
}

func (l *byteLoop) rowsApart(groups Register) {
	blocks := load("blocks")
	row, row3, skip, quad := GP64(), GP64(), GP64(), GP64()
	MOVQ(blocks, row)
	SHLQ(Imm(3), row)
	LEAQ(Mem{Base: row, Index: row, Scale: 2}, row3)
	MOVQ(row, skip) // from behind a row to the row after next but six
	SHLQ(Imm(3), skip)
	SUBQ(row, skip)
	MOVQ(blocks, quad) // bytes of four rows of the tile
	SHLQ(Imm(8), quad)
	times("group", groups, func() {
		n := GP64()
		MOVQ(blocks, n)
		times("block", n, func() {
			x := zmms(l.bits)
			for i, p := range l.planes {
				loadApart(p, row, row3, x[i])
				ADDQ(Imm(8), p)
			}
			l.body(x, func(m, half int, z VecVirtual) {
				to := l.place(m, half, 0, 0)
				if l.values && half == 1 {
					to.Index, to.Scale = quad, 1
				}
				VMOVDQU64(z, to)
			})
			if l.values {
				ADDQ(U32(256), l.dst)
			} else {
				ADDQ(U32(512), l.dst)
			}
		})
		if l.values {
			ADDQ(quad, l.dst)
		}
		for _, p := range l.planes {
			ADDQ(skip, p)
		}
	})
}

// loadApart loads 8 bytes of each of eight rows, in rowOrder.
func loadApart(p, row, row3 Register, z VecVirtual) {
	upper := GP64()
	LEAQ(Mem{Base: p, Index: row, Scale: 4}, upper)
	at := func(base Register, i int) Mem {
		m := Mem{Base: base}
		switch i {
		case 1, 2:
			m.Index, m.Scale = row, uint8(i)
		case 3:
			m.Index, m.Scale = row3, 1
		}
		return m
	}
	var x [4]VecVirtual
	for i := range x {
		x[i] = XMM()
		VMOVQ(at(p, i), x[i])
		VMOVHPS(at(upper, i), x[i], x[i])
	}
	y := YMM()
	VINSERTI32X4(Imm(1), x[1], x[0].AsY(), y)
	VINSERTI32X4(Imm(1), x[3], x[2].AsY(), x[2].AsY())
	VINSERTI64X4(Imm(1), x[2].AsY(), y.AsZ(), z)
}

// lanes turns four vectors of four lanes: lane i of y[m] is lane m of x[i].
func lanes(x []VecVirtual) []VecVirtual {
	t, y := zmms(4), zmms(4)
	for i := range 2 {
		VSHUFI64X2(Imm(0x44), x[2*i+1], x[2*i], t[i])
		VSHUFI64X2(Imm(0xee), x[2*i+1], x[2*i], t[2+i])
	}
	for i := range 2 {
		VSHUFI64X2(Imm(0x88), t[2*i+1], t[2*i], y[2*i])
		VSHUFI64X2(Imm(0xdd), t[2*i+1], t[2*i], y[2*i+1])
	}
	return y
}

// unpackU8Bytes512 puts 8-bit codes in the order of tiles of bytes.
func unpackU8Bytes512(values bool) {
	name := "unpackU8KeysAVX512"
	doc := name + " arranges groups of eight rows of blocks times 64 codes for inner products."
	rows := 8
	if values {
		name, rows = "unpackU8ValuesAVX512", 4
		doc = name + " arranges groups of four rows of blocks times 64 codes, less 128, for " +
			"weighted sums."
	}
	function(name, "func(dst, src *byte, blocks, groups int)", doc)
	dst, src, blocks, groups := load("dst"), load("src"), load("blocks"), load("groups")
	row, skip := GP64(), GP64()
	MOVQ(blocks, row)
	SHLQ(Imm(6), row)
	MOVQ(row, skip)
	if values {
		LEAQ(Mem{Base: skip, Index: skip, Scale: 2}, skip)
	} else {
		SHLQ(Imm(3), skip)
		SUBQ(row, skip)
	}
	var turn, sign VecVirtual
	if values {
		k := make([]byte, 64)
		for i := range k {
			k[i] = byte(16*(i%4) + i/4)
		}
		turn, sign = ZMM(), ZMM()
		VMOVDQU64(bytesConstant("turnLanes", k), turn)
		VPBROADCASTQ(constant("signBits", 0x8080808080808080), sign)
	}
	at := headPointers(src, row, 4)
	times("group", groups, func() {
		n := GP64()
		MOVQ(blocks, n)
		times("block", n, func() {
			var y [2][]VecVirtual
			upper := GP64()
			if !values {
				LEAQ(Mem{Base: src, Index: row, Scale: 4}, upper)
			}
			for half := range rows / 4 {
				x := zmms(4)
				for i := range x {
					m := at(i, 0)
					if half == 1 {
						m.Base = upper
					}
					VMOVDQU64(m, x[i])
				}
				y[half] = lanes(x)
			}
			for m := range 4 {
				if values {
					z := y[0][m]
					VPERMB(z, turn, z)
					VPXORD(sign, z, z)
					VMOVDQU64(z, Mem{Base: dst, Disp: 64 * m})
					continue
				}
				lo, hi := ZMM(), ZMM()
				VPUNPCKLQDQ(y[1][m], y[0][m], lo)
				VPUNPCKHQDQ(y[1][m], y[0][m], hi)
				VMOVDQU64(lo, Mem{Base: dst, Disp: 128 * m})
				VMOVDQU64(hi, Mem{Base: dst, Disp: 128*m + 64})
			}
			ADDQ(Imm(64), src)
			ADDQ(U32(uint32(64*rows)), dst)
		})
		ADDQ(skip, src)
	})
	VZEROUPPER()
	RET()
}

// digitsToFloat returns (d2*256 + d1)*256 + d0 of sums of products of digits.
func digitsToFloat(d []VecVirtual, base VecVirtual) VecVirtual {
	for _, z := range d {
		VCVTDQ2PS(z, z)
	}
	VFMADD213PS(d[1], base, d[2])
	VFMADD213PS(d[0], base, d[2])
	return d[2]
}

// storeDots512 adds up the digits' sums of heads, [head][digit][set], and stores inner products.
func storeDots512(acc [][digits][]VecVirtual, dots Register, query func(head, disp int) Mem) {
	turn := make([]uint32, 16)
	for i := range turn {
		turn[i] = uint32(4*(i%4) + i/4)
	}
	base, t := ZMM(), ZMM()
	VBROADCASTSS(floatsConstant("float256", []float32{256, 256}), base)
	VMOVDQU32(dwordsConstant("transpose4", turn), t)
	for h := range acc {
		for s := 0; s < len(acc[h][0]); s += 2 {
			var sum [digits]VecVirtual
			for d, x := range acc[h] {
				even, odd := ZMM(), ZMM()
				VSHUFPS(Imm(0x88), x[s+1], x[s], even)
				VSHUFPS(Imm(0xdd), x[s+1], x[s], odd)
				VPADDD(odd, even, even)
				sum[d] = even
			}
			x := digitsToFloat(sum[:], base)
			VPERMPS(x, t, x)
			VMULPS_BCST(query(h, 4*digits), x, x)
			VMOVUPS(x, Mem{Base: dots, Disp: 4*tileRows*h + 32*s})
		}
	}
}

// startDots512 returns sums that begin as the queries' records say, [head][digit][set].
func startDots512(heads, sets int, query func(head, disp int) Mem) [][digits][]VecVirtual {
	acc := make([][digits][]VecVirtual, heads)
	for h := range acc {
		for d := range acc[h] {
			acc[h][d] = zmms(sets)
			for _, z := range acc[h][d] {
				VPBROADCASTD(query(h, 4*d), z)
			}
		}
	}
	return acc
}

// multiplyBytes512 adds the products of eight values of the queries, at disp of their records, with
// those of the rows in k.
func multiplyBytes512(acc [][digits][]VecVirtual, k []VecVirtual, disp int,
	query func(head, disp int) Mem) {
	for h := range acc {
		for d := range digits {
			x := ZMM()
			VPBROADCASTQ(query(h, disp+8*d), x)
			for s := range k {
				VPDPBUSD(x, k[s], acc[h][d][s])
			}
		}
	}
}

// dotBytes512 multiplies heads queries in digits with rows of bytes.
func dotBytes512(heads int) {
	sets := 2 // vectors of eight rows that are worked on together
	if heads < 3 {
		sets = 4
	}
	name := fmt.Sprintf("dotBytes%dAVX512", heads)
	function(name, "func(dots *float32, q, tile *byte, blocks, groups int)",
		fmt.Sprintf("%s writes the inner products of %d queries in digits with groups times %d "+
			"rows of blocks times 64 bytes.", name, heads, 8*sets))
	dots, q, tile := load("dots"), load("q"), load("tile")
	blocks, groups := load("blocks"), load("groups")
	stride, group, rest := GP64(), GP64(), GP64()
	IMUL3Q(U32(64*digits), blocks, stride)
	ADDQ(Imm(recordHead), stride)
	MOVQ(blocks, group)
	SHLQ(Imm(9), group)
	IMUL3Q(Imm(uint64(sets-1)), group, rest)
	query, rows := headPointers(q, stride, heads), headPointers(tile, group, sets)
	Label("group")
	acc := startDots512(heads, sets, query)
	ADDQ(Imm(recordHead), q)
	n := GP64()
	MOVQ(blocks, n)
	times("block", n, func() {
		for b := range 8 {
			k := zmms(sets)
			for s, z := range k {
				VMOVDQU64(rows(s, 64*b), z)
			}
			multiplyBytes512(acc, k, 8*digits*b, query)
		}
		ADDQ(U32(64*digits), q)
		ADDQ(U32(512), tile)
	})
	SUBQ(stride, q)
	ADDQ(rest, tile)
	storeDots512(acc, dots, query)
	ADDQ(U32(uint32(32*sets)), dots)
	SUBQ(Imm(1), groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// digitBytes is the size of a head's weights in digits: 16 bytes for each four rows, the lowest
// digits of the rows first.
const digitBytes = 4 * tileRows

// cutWeights512 cuts the weights of heads, two vectors each, into digits at dst, and stores what one
// is worth. w is used up.
func cutWeights512(w []VecVirtual, dst, units Mem) {
	heads := len(w) / 2
	e := zmms(heads)
	for h, z := range e {
		VPMAXUD(w[2*h+1], w[2*h], z) // as integers: of the same order, and NaN is the largest
	}
	unit := reduceLanes512(e, func(a, b, d Op) { VPMAXUD(a, b, d) })
	VPMAXUD_BCST(floatPair(0x1p-126), unit, unit)
	VGETEXPPS(unit, unit)
	VSUBPS_BCST(floatPair(23), unit, unit)
	up := ZMM()
	VPXORD_BCST(floatPair(float32(math.Copysign(0, -1))), unit, up)
	for h := range heads {
		e := spreadLane512(up, h)
		for _, z := range w[2*h : 2*h+2] {
			VSCALEFPS(e, z, z)
		}
	}
	VSCALEFPS(unit, broadcastFloat(1), unit)
	storeLanes512(unit, units, heads)
	for _, z := range w {
		VCVTPS2DQ(z, z)
	}
	var order [64]byte
	for i := range order {
		order[i] = byte(4*(i%4) + i/4%4)
	}
	k := ZMM()
	VMOVDQU64(bytesConstant("digitOrder", order[:]), k)
	for i, z := range w {
		VPSHUFB(k, z, z)
		VMOVDQU64(z, at(dst, digitBytes*(i/2)+64*(i%2)))
	}
}

// floatPair is two equal floats in memory, for instructions that take one of them.
func floatPair(x float32) Mem {
	return floatsConstant(fmt.Sprintf("float%x", floatBits(x)), []float32{x, x})
}

// storeSums512 adds up the digits' sums of heads, [head][digit][vector], times the heads' units, and
// adds them to what is at place.
func storeSums512(a [][digits][]VecVirtual, units Register, base VecVirtual,
	place func(head, vector int) Mem) {
	for h := range a {
		unit := ZMM()
		VBROADCASTSS(Mem{Base: units, Disp: 4 * h}, unit)
		for i := range a[h][0] {
			x := digitsToFloat([]VecVirtual{a[h][0][i], a[h][1][i], a[h][2][i]}, base)
			to := place(h, i)
			VFMADD213PS(to, unit, x)
			VMOVUPS(x, to)
		}
	}
}

// sums512 returns sums, also as [head][digit][vector].
func sums512(heads, vectors int) (all []VecVirtual, a [][digits][]VecVirtual) {
	all = zmms(heads * digits * vectors)
	a = make([][digits][]VecVirtual, heads)
	for h := range a {
		for d := range a[h] {
			at := (h*digits + d) * vectors
			a[h][d] = all[at : at+vectors]
		}
	}
	return all, a
}

// weighBytes512 adds rows v times the weights at disp behind w.
func weighBytes512(a [][digits][]VecVirtual, v []VecVirtual, w Register, disp int) {
	for h := range a {
		for d := range digits {
			x := ZMM()
			VPBROADCASTD(Mem{Base: w, Disp: disp + digitBytes*h + 4*d}, x)
			for i := range v {
				VPDPBUSD(v[i], x, a[h][d][i])
			}
		}
	}
}

// addBytes512 adds rows of bytes, weighted by digits, to the sums of heads queries.
func addBytes512(heads int) {
	vectors := 2 // of 16 values that are worked on together
	if heads < 3 {
		vectors = 4
	}
	name := fmt.Sprintf("addBytes%dAVX512", heads)
	function(name, "func(acc *float32, weights *byte, units *float32, tile *byte, blocks, quads int)",
		fmt.Sprintf("%s adds quads times four rows of blocks times 64 bytes, weighted by digits, to "+
			"%d sums.", name, heads))
	acc, weights, units := load("acc"), load("weights"), load("units")
	tile, blocks, quads := load("tile"), load("blocks"), load("quads")
	stride := GP64() // of sums, and of groups of four rows
	MOVQ(blocks, stride)
	SHLQ(Imm(8), stride)
	sum := headPointers(acc, stride, heads)
	base := ZMM()
	VBROADCASTSS(floatsConstant("float256", []float32{256, 256}), base)
	all, a := sums512(heads, vectors)
	times("block", blocks, func() {
		for part := range 4 / vectors {
			for _, z := range all {
				VPXORD(z, z, z)
			}
			p, w, n := GP64(), GP64(), GP64()
			MOVQ(tile, p)
			MOVQ(weights, w)
			MOVQ(quads, n)
			times(fmt.Sprintf("quad%d", part), n, func() {
				v := zmms(vectors)
				for i, z := range v {
					VMOVDQU64(Mem{Base: p, Disp: 64 * (vectors*part + i)}, z)
				}
				weighBytes512(a, v, w, 0)
				ADDQ(stride, p)
				ADDQ(Imm(16), w)
			})
			storeSums512(a, units, base, func(h, i int) Mem { return sum(h, 64*(vectors*part+i)) })
		}
		ADDQ(U32(256), acc)
		ADDQ(U32(256), tile)
	})
	VZEROUPPER()
	RET()
}

// largest512 finds the largest value of a query.
func largest512() {
	function("largestAVX512", "func(q *float32, n int) uint32",
		"largestAVX512 returns the bits of the largest absolute value of n times 16 floats. NaN counts "+
			"as the largest.")
	q, n := load("q"), load("n")
	m, abs := ZMM(), ZMM()
	VPXORD(m, m, m)
	VPBROADCASTD(dwordsConstant("absBits", []uint32{0x7fffffff, 0x7fffffff}), abs)
	times("loop", n, func() {
		z := ZMM()
		VPANDD(Mem{Base: q}, abs, z)
		VPMAXUD(z, m, m)
		ADDQ(Imm(64), q)
	})
	r := GP32()
	VMOVD(reduce512(m, func(a, b, d Op) { VPMAXUD(a, b, d) }), r)
	Store(r, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// cutQuery512 cuts a query into digits.
func cutQuery512() {
	function("cutQueryAVX512", "func(dst *byte, sums *int32, q *float32, n int, factor float64)",
		"cutQueryAVX512 rounds n times 16 values times factor to integers and stores their digits: of "+
			"each eight values the lowest, then the next, then the highest. It writes the sums of the "+
			"digits of a kind.")
	dst, sums, q, n := load("dst"), load("sums"), load("q"), load("n")
	f, bias, k := ZMM(), ZMM(), ZMM()
	VBROADCASTSD(param("factor"), f)
	VPBROADCASTD(dwordsConstant("digitBias", []uint32{0x808080, 0x808080}), bias)
	var order [64]byte
	for i := range 16 {
		for d := range digits {
			order[8*digits*(i/8)+8*d+i%8] = byte(4*i + d)
		}
	}
	VMOVDQU64(bytesConstant("queryOrder", order[:]), k)
	total, one := zmms(digits), zmms(digits)
	for d := range digits {
		VPXORD(total[d], total[d], total[d])
		w := uint32(1) << (8 * d)
		VPBROADCASTD(dwordsConstant(fmt.Sprintf("digitOne%d", d), []uint32{w, w}), one[d])
	}
	times("loop", n, func() {
		x := zmms(2)
		for i, z := range x {
			VCVTPS2PD(Mem{Base: q, Disp: 32 * i}, z)
			VMULPD(f, z, z)
			VCVTPD2DQ(z, z.AsY()) // half to even
		}
		VINSERTI64X4(Imm(1), x[1].AsY(), x[0], x[0])
		// With 128 added to each, digits have no signs and carry nothing.
		VPADDD(bias, x[0], x[0])
		VPXORD(bias, x[0], x[0])
		for d, z := range total {
			VPDPBUSD(x[0], one[d], z)
		}
		VPERMB(x[0], k, x[0])
		VMOVDQU(x[0].AsY(), Mem{Base: dst})
		VEXTRACTI32X4(Imm(2), x[0], Mem{Base: dst, Disp: 32})
		ADDQ(Imm(64), q)
		ADDQ(Imm(16*digits), dst)
	})
	for d, z := range total {
		VMOVD(reduce512(z, func(a, b, d Op) { VPADDD(a, b, d) }), Mem{Base: sums, Disp: 4 * d})
	}
	VZEROUPPER()
	RET()
}

// bytes512 writes the kernels for tiles of bytes.
func bytes512() {
	largest512()
	cutQuery512()
	for bits := 1; bits <= 4; bits++ {
		for _, values := range []bool{false, true} {
			for _, p := range []plan{together, pairs, apart} {
				unpackBytes512(bits, values, p)
			}
		}
	}
	for bits := 1; bits <= 4; bits++ {
		for heads := 1; heads <= 3; heads++ {
			dotPlanes512(bits, heads)
			addPlanes512(bits, heads)
		}
	}
	unpackU8Bytes512(false)
	unpackU8Bytes512(true)
	for heads := 1; heads <= 4; heads++ {
		dotBytes512(heads)
		addBytes512(heads)
	}
}
