// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"math/bits"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// demotion holds the terms of the sums of quant.Demote, by magnitude of the finer code.
type demotion struct {
	xx, xc, cc [8]int64
	// words are the same for count: per sum, weights 1 and 2, 3 and 4, and so on, in 16 bits each,
	// and finally the weight of all values.
	words [3][4]uint32
}

// weights turns a function f of the magnitudes 0..7 into weights g of counts: sum f[m] over the
// values is the sum over sets of bits s of g[s] * (number of values whose magnitude has all bits of
// s).
func weights(f [8]int64) (g [8]int64) {
	g = f
	for b := 1; b < 8; b *= 2 {
		for s := range g {
			if s&b != 0 {
				g[s] -= g[s^b]
			}
		}
	}
	return g
}

// demotions are the demotions [from bits][to bits] of the nested family.
var demotions = func() (t [5][5]demotion) {
	for from := 2; from <= 4; from++ {
		for to := 1; to < from; to++ {
			fine, coarse := nested[from-1].centroids, nested[to-1].centroids
			var d demotion
			for m, a := range fine {
				b := int64(coarse[m>>(from-to)])
				d.xx[m], d.xc[m], d.cc[m] = int64(a)*int64(a), int64(a)*b, b*b
			}
			d.xx, d.xc, d.cc = weights(d.xx), weights(d.xc), weights(d.cc)
			for i, g := range [3][8]int64{d.xx, d.xc, d.cc} {
				for p := range 1 << (from - 2) {
					last := g[(2*p+2)%(1<<(from-1))] // [0] is that of all
					d.words[i][p] = uint32(uint16(g[2*p+1])) | uint32(uint16(last))<<16
				}
			}
			t[from][to] = d
		}
	}
	return t
}()

// Demote recodes rows like quant.Demote; to has fewer bits than from. It counts, word by word of
// the planes, the values by the bits of their magnitude; the sums need nothing else. It reports
// false if quant.Demote would refuse.
func (w *Worker) Demote(dst []byte, to quant.Coding, src []byte, from quant.Coding, rows,
	dim int) bool {
	if rows == 0 {
		return true
	}
	w.scales = GrowScales(w.scales, rows)
	getScales(w.scales, from, src[len(src)-from.ScaleBytes(rows):])
	plane, rowBytes := layout.PlaneBytes(rows, dim), layout.RowPlaneBytes(dim)
	d, bits := &demotions[from.Format.Bits()][to.Format.Bits()], from.Format.Bits()
	for r0 := 0; r0 < rows; r0 += tileRows {
		n, done := min(tileRows, rows-r0), 0
		if w.k.count != nil && dim%64 == 0 {
			done = w.k.count(&w.rows, src[r0*rowBytes:], plane, n, dim, d, bits)
		}
		countRows(&w.rows, src[r0*rowBytes:], plane, done, n, dim, d, bits)
		w.k.ratios(w.scales[r0:r0+n], &w.rows, to.Rule)
	}
	if to.Scale == quant.ScaleF16 {
		for r, s := range w.scales {
			w.scales[r] = min(s, 65504)
		}
	}
	// Scales come first: if they are refused, nothing of an in-place source has changed. They are
	// stored after the planes that stay.
	end := to.Format.Bits() * plane
	if !w.k.putScales(dst[end:], to, w.scales) {
		return false
	}
	copy(dst[:end], src[:end]) // the same memory, or no overlap
	return true
}

// countRows computes the sums of rows [first, rows) of a tile.
func countRows(s *rowSums, src []byte, plane, first, rows, dim int, d *demotion, bits int) {
	rowBytes := layout.RowPlaneBytes(dim)
	for r := first; r < rows; r++ {
		n := countBits(src, plane, r*rowBytes, rowBytes, bits-1)
		n[0] = int64(dim)
		var xx, xc, cc int64
		for set, c := range n[:1<<(bits-1)] {
			xx, xc, cc = xx+c*d.xx[set], xc+c*d.xc[set], cc+c*d.cc[set]
		}
		s.xx[r], s.xc[r], s.cc[r] = int32(xx), int32(xc), int32(cc)
	}
}

// countBits counts the values of a row by the bits of their magnitude: n[s] of them have all bits
// of s. The planes store the magnitude of a negative value complemented.
func countBits(src []byte, plane, at, rowBytes, low int) (n [8]int64) {
	if rowBytes%8 == 0 {
		for end := at + rowBytes; at < end; at += 8 {
			flip := ^binary.LittleEndian.Uint64(src[at:])
			x := binary.LittleEndian.Uint64(src[low*plane+at:]) ^ flip
			n[1] += int64(bits.OnesCount64(x))
			if low == 1 {
				continue
			}
			y := binary.LittleEndian.Uint64(src[(low-1)*plane+at:]) ^ flip
			n[2] += int64(bits.OnesCount64(y))
			n[3] += int64(bits.OnesCount64(x & y))
			if low == 2 {
				continue
			}
			z := binary.LittleEndian.Uint64(src[plane+at:]) ^ flip
			n[4] += int64(bits.OnesCount64(z))
			n[5] += int64(bits.OnesCount64(x & z))
			n[6] += int64(bits.OnesCount64(y & z))
			n[7] += int64(bits.OnesCount64(x & y & z))
		}
		return n
	}
	for end := at + rowBytes; at < end; at += 8 {
		size := min(8, end-at)
		sign := word(src[at : at+size])
		valid := ^uint64(0) >> (64 - 8*size)
		var m [3]uint64 // the lowest bit first
		for b := range low {
			p := (low - b) * plane
			m[b] = (word(src[p+at:p+at+size]) ^ ^sign) & valid
		}
		switch low {
		case 3:
			xy, xz, yz := m[0]&m[1], m[0]&m[2], m[1]&m[2]
			n[4] += int64(bits.OnesCount64(m[2]))
			n[5] += int64(bits.OnesCount64(xz))
			n[6] += int64(bits.OnesCount64(yz))
			n[7] += int64(bits.OnesCount64(xy & m[2]))
			fallthrough
		case 2:
			n[2] += int64(bits.OnesCount64(m[1]))
			n[3] += int64(bits.OnesCount64(m[0] & m[1]))
			fallthrough
		default:
			n[1] += int64(bits.OnesCount64(m[0]))
		}
	}
	return n
}
