// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// The kernels of this file expand planes of a tile of 32 rows of 64 values in registers, beside the products, and
// store nothing between.
//
// A bit transposition of 8 x 8 (VGF2P8AFFINEQB) makes a byte of one bit of each of eight bytes. A
// byte has as many fields as codes fit: codes of one value, of several rows or from several bytes of
// a row. VPERMB looks at the low six bits of a byte. A table for every field below bit 6 makes a
// shift between look-ups unnecessary; the other fields are shifted by four.

// packing is how codes of some bits share a byte.
type packing struct {
	bits, width, fields int // width: from one field to the next
}

func packingOf(bits int) packing {
	switch bits {
	case 1:
		return packing{1, 1, 8}
	case 2:
		return packing{2, 2, 4}
	case 3:
		return packing{3, 3, 2} // no shift
	}
	return packing{4, 4, 2}
}

// tables is the number of fields with a table. They are in Go the first tables of a format.
func (p packing) tables() int { return [...]int{4, 2, 2, 1}[p.bits-1] }

// control places the bytes of a plane for the bit transposition: place(w, f) is the byte of the
// loaded vector that field f of word w has its bits from.
func (p packing) control(place func(word, field int) int) []byte {
	k := make([]byte, 64)
	for w := range 8 {
		for f := range p.fields {
			for c := range p.bits {
				k[8*w+7-(p.width*f+c)] = byte(place(w, f))
			}
		}
	}
	return k
}

// mask has the bytes that come from a plane.
func (p packing) mask(plane int) (m uint64) {
	for w := range 8 {
		for f := range p.fields {
			m |= 1 << (8*w + 7 - (p.width*f + p.bits - 1 - plane))
		}
	}
	return m
}

// planeReader expands planes of rows of 64 values in registers.
type planeReader struct {
	packing
	planes, masks []Register
	table         []VecVirtual
	shifted       Mem // the table of fields of three bits at bit 1
	bit           VecVirtual
}

// newPlaneReader loads the parameters src, plane and table.
func newPlaneReader(p packing) planeReader {
	r := planeReader{packing: p, planes: []Register{load("src")},
		table: zmms(p.tables()), bit: ZMM()}
	plane, table := load("plane"), load("table")
	r.shifted = Mem{Base: table, Disp: 128}
	for i := 1; i < p.bits; i++ {
		s, k, m := GP64(), K(), GP64()
		MOVQ(r.planes[i-1], s)
		ADDQ(plane, s)
		MOVQ(U64(p.mask(i)), m)
		KMOVQ(m, k)
		r.planes, r.masks = append(r.planes, s), append(r.masks, k)
	}
	for i, z := range r.table {
		VMOVDQU64(Mem{Base: table, Disp: 64 * i}, z)
	}
	VPBROADCASTQ(constant("unitBits", 0x8040201008040201), r.bit)
	return r
}

// codes returns the codes that a control picks of eight rows, those group groups on.
func (r planeReader) codes(group int, control Op) VecVirtual {
	n := ZMM()
	row := func(p int) Mem {
		return Mem{Base: r.planes[p], Disp: 64 * group}
	}
	VPERMB(row(0), control, n)
	for i, k := range r.masks {
		VPERMB(row(i+1), control, k, n)
	}
	VGF2P8AFFINEQB(Imm(0), n, r.bit, n)
	return n
}

// line prepares lined.
func (r *planeReader) line() {
	r.masks = nil
	for p := 1; p < r.bits; p++ {
		k, m, mask := K(), GP64(), uint64(0)
		for lane := p; lane < 64; lane += 8 / r.fields {
			mask |= 1 << lane
		}
		MOVQ(U64(mask), m)
		KMOVQ(m, k)
		r.masks = append(r.masks, k)
	}
	if r.bits == 3 {
		VMOVDQU64(r.shifted, r.table[0])
		r.table = r.table[:1]
	}
}

// lined returns the codes of eight rows at every eighth position of a row from v on, 8/fields apart: planes
// are loaded so that the bytes of a position lie side by side, which the bit transposition turns into fields.
// The fields of three bits are at bits 1 and 5.
func (r planeReader) lined(group, v int) VecVirtual {
	n := ZMM()
	VMOVDQU64(Mem{Base: r.planes[0], Disp: 64*group + v}, n)
	for i, k := range r.masks {
		VMOVDQU8(Mem{Base: r.planes[i+1], Disp: 64*group + v - (i + 1)}, k, n)
	}
	VGF2P8AFFINEQB(Imm(0), n, r.bit, n)
	return n
}

// position is the byte of a row that a field of lined comes from.
func (r planeReader) position(v, field int) int { return v + 8/r.fields*(r.fields-1-field) }

// field returns the bytes of a field. Fields are asked for in ascending order, and codes change. last
// says that codes are not needed any more.
func (r planeReader) field(codes VecVirtual, f int, last bool) VecVirtual {
	if f > 0 && f%len(r.table) == 0 {
		VPSRLW(Imm(4), codes, codes)
	}
	z := codes
	if !last {
		z = ZMM()
	}
	VPERMB(r.table[f%len(r.table)], codes, z)
	return z
}

// dotRowOrder is the row of a group of 16 whose inner product is in a lane of the sums.
func dotRowOrder(lane int) int { return 8*(lane%4/2) + 2*(lane/4) + lane%2 }

// dotPlanes512 is unpackBytes512 and dotBytes512 in one, for rows of 64 values and a few queries. A
// lane of 32 bits is a row, so that the queries come from memory, four values at a time, and no sums
// of lanes remain.
func dotPlanes512(bits, heads int) {
	name := fmt.Sprintf("dotLM%dHeads%dAVX512", bits, heads)
	function(name, "func(dots *float32, q, src *byte, plane int, table *byte)",
		fmt.Sprintf("%s writes the inner products of %d queries in digits with %d rows of 64 codes.",
			name, heads, tileRows))
	dots, q := load("dots"), load("q")
	r := newPlaneReader(packingOf(bits))
	r.line()
	controls := 8 / r.fields
	query := func(h, disp int) Mem {
		return Mem{Base: q, Disp: (recordHead+64*digits)*h + disp}
	}
	halves := func(group, v int) (x [2]VecVirtual) { // the first and the last four of each eight values
		n := [2]VecVirtual{r.lined(2*group, v), r.lined(2*group+1, v)}
		x = [2]VecVirtual{ZMM(), n[0]}
		VSHUFPS(Imm(0x88), n[1], n[0], x[0])
		VSHUFPS(Imm(0xdd), n[1], n[0], x[1])
		return x
	}
	sets := 1 // of sums: with few of them, each would wait for itself
	if heads < 3 {
		sets = 2
	}
	// The codes of what comes next are made beside the products of what is at hand.
	after := halves(0, 0)
	for group := range tileRows / 16 {
		acc := startPlaneDots(heads, sets, query)
		for v := range controls {
			x := after
			for f := range r.fields {
				last := f == r.fields-1
				k := [2]VecVirtual{r.field(x[0], f, last), r.field(x[1], f, last)}
				at := recordHead + 8*digits*r.position(v, f)
				if f == r.fields/2 {
					if v+1 < controls {
						after = halves(group, v+1)
					} else if group+1 < tileRows/16 {
						after = halves(group+1, 0)
					}
				}
				for i := range k {
					for h := range heads {
						for d := range digits {
							VPDPBUSD_BCST(query(h, at+8*d+4*i), k[i], acc[i%sets][h][d])
						}
					}
				}
			}
		}
		storePlaneDots(acc, query, func(h int) Mem { return Mem{Base: dots, Disp: 4*tileRows*h + 64*group} })
	}
	VZEROUPPER()
	RET()
}

// startPlaneDots returns sums, [set][head][digit], that begin as the queries' records say.
func startPlaneDots(heads, sets int, query func(head, disp int) Mem) [][][digits]VecVirtual {
	acc := make([][][digits]VecVirtual, sets)
	for s := range acc {
		acc[s] = make([][digits]VecVirtual, heads)
		for h := range acc[s] {
			for d := range digits {
				z := ZMM()
				if s == 0 {
					VPBROADCASTD(query(h, wholeSums+4*d), z)
				} else {
					VPXORD(z, z, z)
				}
				acc[s][h][d] = z
			}
		}
	}
	return acc
}

// storePlaneDots adds up the digits' sums and stores inner products.
func storePlaneDots(acc [][][digits]VecVirtual, query func(head, disp int) Mem, place func(head int) Mem) {
	order := make([]uint32, 16)
	for lane := range order {
		order[dotRowOrder(lane)] = uint32(lane)
	}
	base, t := ZMM(), ZMM()
	VBROADCASTSS(floatsConstant("float256", []float32{256, 256}), base)
	VMOVDQU32(dwordsConstant("dotRows", order), t)
	for h, d := range acc[0] {
		for _, other := range acc[1:] {
			for i := range d {
				VPADDD(other[h][i], d[i], d[i])
			}
		}
		x := digitsToFloat(d[:], base)
		VPERMPS(x, t, x)
		VMULPS_BCST(query(h, 4*digits), x, x)
		VMOVUPS(x, place(h))
	}
}

// addPlanes512 is unpackBytes512 and addBytes512 in one, likewise. A lane of 32 bits is a value of
// four rows.
func addPlanes512(bits, heads int) {
	vectors := 2
	if heads == 1 {
		vectors = 4
	}
	name := fmt.Sprintf("addLM%dHeads%dAVX512", bits, heads)
	function(name, "func(acc *float32, weights *byte, units *float32, src *byte, plane int, "+
		"table *byte)", fmt.Sprintf("%s adds %d rows of 64 codes, weighted by digits, to %d sums.",
		name, tileRows, heads))
	acc, weights, units := load("acc"), load("weights"), load("units")
	p := packingOf(bits)
	p.fields = min(p.fields, 4) // of two vectors, for rows 0-3 and rows 4-7
	r := newPlaneReader(p)
	turn, base := ZMM(), ZMM()
	VMOVDQU64(turnDims(), turn)
	all, a := sums512(heads, vectors)
	each := r.fields / 2 // vectors that share their codes
	for part := range 4 / vectors {
		for _, z := range all {
			VPXORD(z, z, z)
		}
		control := zmms(vectors / each)
		for i, z := range control {
			m := vectors*part + each*i
			VMOVDQU64(bytesConstant(fmt.Sprintf("addBytes%d_%d", bits, m),
				r.control(func(w, f int) int {
					return 8*(w%4+4*(f/each)) + 2*(m+f%each) + w/4
				})), z)
		}
		read := func(group, i int) VecVirtual {
			z := r.codes(group, control[i])
			VPERMB(z, turn, z)
			return z
		}
		codes := make([]VecVirtual, len(control))
		for i := range control {
			codes[i] = read(0, i)
		}
		for group := range tileRows / 8 {
			var rows [2][]VecVirtual // the first four and the last four
			var next []VecVirtual
			for quad := range rows {
				for i := range codes {
					for f := range each {
						rows[quad] = append(rows[quad], r.field(codes[i], each*quad+f, false))
					}
				}
				if quad == 0 {
					weighBytes512(a, rows[0], weights, 32*group)
				}
			}
			if group < tileRows/8-1 {
				for i := range control {
					next = append(next, read(group+1, i))
				}
			}
			weighBytes512(a, rows[1], weights, 32*group+16)
			codes = next
		}
		VBROADCASTSS(floatsConstant("float256", []float32{256, 256}), base)
		storeSums512(a, units, base, func(h, i int) Mem {
			return Mem{Base: acc, Disp: 256*h + 64*(vectors*part+i)}
		})
	}
	VZEROUPPER()
	RET()
}
