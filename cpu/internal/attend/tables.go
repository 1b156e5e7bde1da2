// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// Inner products from tables, for plain Go. Without vector instructions, a product for every value
// of every head costs more than looking up the sum of eight values.
//
// Let sigma be +1 for a set bit of a code and -1 for a clear one. A centroid is a sum of products
// of the code's sigmas times factors, its Walsh transform. The centroids of a code and of its
// complement are opposite, so only products of an odd number of sigmas occur: one for lm1, two for
// lm2, four for lm3, eight for lm4. A product of sigmas is an exclusive or of planes, for 64 values
// at once. It remains to sum a query with the signs given by a word's bits; a byte has only 256
// ways to sign eight values.

// walshTerms is the number of products of lm4.
const walshTerms = 8

// walshPlanes are the planes of the products: those of one plane, then those of three, of which lm3
// has only the first.
var walshPlanes = [walshTerms][]int{{0}, {1}, {2}, {3}, {0, 1, 2}, {0, 1, 3}, {0, 2, 3}, {1, 2, 3}}

// walsh holds the factors of the products for lm1..lm4.
var walsh = func() (t [quant.LM4 + 1][walshTerms]float32) {
	for f := quant.LM1; f <= quant.LM4; f++ {
		book, bits := layout.Nested(f.Bits()), f.Bits()
		for i, planes := range walshPlanes {
			if planes[len(planes)-1] >= bits {
				continue
			}
			for code, c := range book {
				product := float32(c) / float32(len(book))
				for _, p := range planes {
					product *= float32(2*(code>>(bits-1-p)&1) - 1)
				}
				t[f][i] += product
			}
		}
	}
	return t
}()

// Tables reports whether inner products with rows of a format come from tables.
func (k *Kernels) Tables(f quant.Format, dim int) bool {
	return k.tables && f >= quant.LM1 && f <= quant.LM4 && dim%64 == 0
}

// TableFloats is the size of a query's tables: 8 KiB for 64 values.
func TableFloats(dim int) int { return dim / 8 * 256 }

// FillTables writes the tables of a query: the sum of each eight values for each choice of signs.
// The lowest bit is the first value's sign; a set bit is +.
func FillTables(dst, q []float32) {
	for ; len(q) >= 8; q = q[8:] {
		low, high := signs(q[0], q[1], q[2], q[3]), signs(q[4], q[5], q[6], q[7])
		t := (*[256]float32)(dst)
		for i, y := range high {
			row := t[16*i : 16*i+16]
			for j, x := range low {
				row[j] = x + y
			}
		}
		dst = dst[256:]
	}
}

// signs returns the sums of four values for every choice of signs.
func signs(a, b, c, d float32) (t [16]float32) {
	low, high := [4]float32{-a - b, a - b, b - a, a + b}, [4]float32{-c - d, c - d, d - c, c + d}
	for i, y := range high {
		for j, x := range low {
			t[4*i+j] = x + y
		}
	}
	return t
}

// DotTables writes the inner products of heads queries with rows [r0, r0+n) of a packed side of a
// format with Tables, like Dots. tables are the queries' tables, one after the other.
func DotTables(dots, tables []float32, heads int, c quant.Coding, src []byte, rows, dim, r0, n int) {
	t := tableRows{bits: c.Format.Bits(), rowBytes: dim / 8, factors: walsh[c.Format]}
	if t.bits == 3 {
		t.factors[3] = t.factors[4] // of the only product of three
	}
	plane, size := layout.PlaneBytes(rows, dim), TableFloats(dim)
	for p := range t.planes {
		from := min(p, t.bits-1)*plane + r0*t.rowBytes
		t.planes[p] = src[from : from+n*t.rowBytes]
	}
	for h := 0; h < heads; {
		d, q := dots[h*TileRows:], tables[h*size:]
		k := 1
		if h+3 <= heads {
			k = 3
		}
		for i := range k {
			clear(d[i*TileRows:][:n])
		}
		for b := 0; b < t.rowBytes; b += 8 {
			if k == 3 {
				t.three((*[3 * TileRows]float32)(d), q[256*b:], size, b, n)
			} else {
				t.one((*[TileRows]float32)(d), (*[2048]float32)(q[256*b:]), b, n)
			}
		}
		h += k
	}
}

// tableRows are packed rows whose inner products come from tables.
type tableRows struct {
	planes         [4][]byte // missing ones repeat the last
	bits, rowBytes int
	factors        [walshTerms]float32
}

// words returns the signs of the products for 64 values, from byte at of the planes, and the number
// of products: those of walshPlanes that the format has, in order.
func (t *tableRows) words(w *[walshTerms]uint64, at int) int {
	a := binary.LittleEndian.Uint64(t.planes[0][at:])
	b := binary.LittleEndian.Uint64(t.planes[1][at:])
	w[0], w[1] = a, b
	if t.bits < 3 {
		return t.bits
	}
	c := binary.LittleEndian.Uint64(t.planes[2][at:])
	w[2], w[3] = c, a^b^c
	if t.bits == 3 {
		return 4
	}
	d := binary.LittleEndian.Uint64(t.planes[3][at:])
	w[3], w[4], w[5], w[6], w[7] = d, a^b^c, a^b^d, a^c^d, b^c^d
	return walshTerms
}

// one adds the products of 64 values of a query, from byte b of every row.
func (t *tableRows) one(dst *[TileRows]float32, q *[2048]float32, b, n int) {
	var w [walshTerms]uint64
	for r := range n {
		var dot float32
		terms := t.words(&w, r*t.rowBytes+b)
		for k, x := range w[:terms] {
			s := q[uint8(x)]
			s += q[256+int(uint8(x>>8))]
			s += q[512+int(uint8(x>>16))]
			s += q[768+int(uint8(x>>24))]
			s += q[1024+int(uint8(x>>32))]
			s += q[1280+int(uint8(x>>40))]
			s += q[1536+int(uint8(x>>48))]
			s += q[1792+int(uint8(x>>56))]
			dot += float32(t.factors[k] * s)
		}
		dst[r] += dot
	}
}

// three is one for three queries: it extracts the bytes once for all.
func (t *tableRows) three(dst *[3 * TileRows]float32, tables []float32, size, b, n int) {
	q0, q1 := (*[2048]float32)(tables), (*[2048]float32)(tables[size:])
	q2 := (*[2048]float32)(tables[2*size:])
	var w [walshTerms]uint64
	for r := range n {
		var d0, d1, d2 float32
		terms := t.words(&w, r*t.rowBytes+b)
		for k, x := range w[:terms] {
			i := int(uint8(x))
			s0, s1, s2 := q0[i], q1[i], q2[i]
			i = 256 + int(uint8(x>>8))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 512 + int(uint8(x>>16))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 768 + int(uint8(x>>24))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 1024 + int(uint8(x>>32))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 1280 + int(uint8(x>>40))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 1536 + int(uint8(x>>48))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			i = 1792 + int(uint8(x>>56))
			s0, s1, s2 = s0+q0[i], s1+q1[i], s2+q2[i]
			f := t.factors[k]
			d0 += float32(f * s0)
			d1 += float32(f * s1)
			d2 += float32(f * s2)
		}
		dst[r] += d0
		dst[TileRows+r] += d1
		dst[2*TileRows+r] += d2
	}
}
