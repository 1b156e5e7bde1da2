// SPDX-License-Identifier: Apache-2.0

package attend

//go:generate sh ../generate.sh attend

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// TileRows is the number of rows in a tile. 32 rows of 128 float32 are 16 KiB, so that a tile of K,
// one of V and the queries fit in the caches nearest to a core. It is also the distance of heads in
// arrays with one element per head and row.
const TileRows = 32

// Layout is an order of the values in a tile. Queries and sums have the same order.
type Layout uint8

// The layouts. A row takes PadDim values. Values after its dim are finite and meaningless if the
// row's format is rotated, and zero otherwise.
const (
	// Natural: rows in order, values in order.
	Natural Layout = iota
	// Lanes: rows in order; of each 64 values, value 4l+j is at 16j+l.
	Lanes
	// Quads: four rows together; each 64 values of them form 16 vectors of four lanes of four
	// values. Lane l is row l; quadValue gives the values of vector t in order.
	Quads
	numLayouts
)

// quadValue returns the value (of 64) at position e of each lane of vector t.
func quadValue(t, e int) int {
	m, s := t/8, t%8
	return 8*(4*m+2*(e/2)+s%2) + 4*(e%2) + s/2
}

// place returns the position of value i in a row, query or sum.
func (l Layout) place(i int) int {
	b, i := i&^63, i&63
	switch l {
	case Lanes:
		return b + 16*(i%4) + i/4
	case Quads:
		return b + int(quadPlaces[i])
	}
	return b + i
}

var quadPlaces = func() (p [64]uint8) {
	for t := range 16 {
		for e := range 4 {
			p[quadValue(t, e)] = uint8(4*t + e)
		}
	}
	return p
}()

// Kernels are the routines of one instruction set. Every method checks the lengths of its
// arguments.
type Kernels struct {
	isa  string
	pad  int  // rows are padded to a multiple of it
	lane bool // rotated rows are in lane order, K in planes in quad order
	wide bool // planes are read up to 8 bytes at a time

	exact  func(dst []float32, f quant.Format, src []byte, rows, dim, padDim int)
	u8     func(dst []float32, src []byte, rows, dim, padDim int)
	planes func(dst []float32, p *planes, quads bool)
	dots   func(dots, q []float32, heads int, l Layout, tile []float32, padDim, rows int)
	add    func(acc, w []float32, heads int, tile []float32, padDim, rows int)
	fold   func(sum []float64, acc []float32)
	square func(dst, src *[TileRows]float32, factor float32)
	mix    func(dst *[TileRows]float32, w, rows []float32, power int)
	// softmax and probs do not check arguments; Softmax and Probs do.
	softmax func(h *Heads, a, b int, t *Terms, scale *[TileRows]float32)
	probs   func(acc *[TileRows]float64, h *Heads, a, b int, t *Terms, lse []float32, power int)
	f16     func(dst *[TileRows]float32, src []byte, factor float32)
	log8    func(dst *[TileRows]float32, base float32, src []byte, factor float32)
	// prefetch, if not nil, prefetches p. prefetchPlanes prefetches the first bytes bytes of each of
	// bits planes, which start plane bytes apart in p, and the byte at scale.
	prefetch       func(p []byte)
	prefetchPlanes func(p []byte, bits, plane, bytes, scale int)
	bytes          *byteKernels // nil if there are none
	tables         bool         // inner products with few bits come from tables
}

// ISA returns the name of the instruction set.
func (k *Kernels) ISA() string { return k.isa }

// PadDim returns the number of values that a row of dim values takes in a tile, a query or a sum.
func (k *Kernels) PadDim(dim int) int { return (dim + k.pad - 1) / k.pad * k.pad }

// LayoutV returns the layout of rows for weighted sums. All rotated formats share one, and so do
// all others.
func (k *Kernels) LayoutV(f quant.Format) Layout {
	if k.lane && f.Rotated() {
		return Lanes
	}
	return Natural
}

// LayoutK returns the layout of rows for inner products with queries.
func (k *Kernels) LayoutK(f quant.Format) Layout {
	if k.lane && f.Rotated() && f != quant.U8 {
		return Quads
	}
	return k.LayoutV(f)
}

// Arrange writes the query src in the order of a layout, padded with zeros. len(dst) is
// PadDim(len(src)).
func Arrange(dst, src []float32, l Layout) {
	if l == Natural {
		clear(dst[copy(dst, src):])
		return
	}
	clear(dst)
	for i, x := range src {
		dst[l.place(i)] = x
	}
}

// Restore is the inverse of Arrange for sums.
func Restore(dst, src []float64, l Layout) {
	for i := range dst {
		dst[i] = src[l.place(i)]
	}
}

// planes is a range of rows of a packed side in bit planes.
type planes struct {
	src      []byte // from the first byte of the first row in plane 0 to the end of the side
	bits     int
	plane    int // bytes per plane
	rowBytes int
	rows     int
	padDim   int
	table    *[16]float32     // entries repeated up to 16
	pairs    *[256][2]float32 // entries of two codes
}

// Unpack writes rows [r0, r0+n) of a packed side of rows rows to dst, without their row scale (see
// Unit and Scales): values for the exact formats and ggml's, code-128 for u8, centroids for the
// rest. n is 1 to TileRows; len(dst) is at least TileRows*PadDim(dim). tmp is scratch memory of the
// caller.
func (k *Kernels) Unpack(dst []float32, l Layout, c quant.Coding, src []byte, rows, dim, r0, n int,
	tmp *Scratch) {
	padDim := k.PadDim(dim)
	dst = dst[:TileRows*padDim]
	switch f := c.Format; {
	case f.Exact():
		rowBytes := dim * f.Bits() / 8
		k.exact(dst, f, src[r0*rowBytes:(r0+n)*rowBytes], n, dim, padDim)
	case f == quant.GGMLQ8_0 || f == quant.GGMLQ4_0:
		at := c.PackedBytes(r0, dim)
		rowBytes := c.PackedBytes(1, dim)
		for i := range n {
			row := dst[i*padDim : (i+1)*padDim]
			unpackGGML(row[:dim], f, src[at+i*rowBytes:])
			clear(row[dim:])
		}
	case f == quant.U8:
		k.u8(dst, src[r0*dim:(r0+n)*dim], n, dim, padDim)
	default:
		rowBytes := layout.RowPlaneBytes(dim)
		p := &tmp.planes
		p.src = src[r0*rowBytes:]
		p.bits, p.plane = f.Bits(), layout.PlaneBytes(rows, dim)
		p.rowBytes, p.rows, p.padDim = rowBytes, n, padDim
		p.table, p.pairs = &codebooks[f], &pairBooks[f]
		if !k.wide || n%4 == 0 && p.end(n) <= len(p.src) {
			k.planes(dst, p, l == Quads)
		} else {
			k.unpackEdge(dst, p, l == Quads, tmp)
		}
	}
}

// Scratch is the scratch memory of Unpack.
type Scratch struct {
	planes, edge planes
	bytes        []byte
}

// Prefetch prefetches rows [r0, r0+n) of a side whose rows are stored one after the other; n may be
// 0. For sides in planes use PrefetchPlanes.
func (k *Kernels) Prefetch(c quant.Coding, src []byte, dim, r0, n int) {
	f := c.Format
	if k.prefetch == nil || n <= 0 || !(f.Exact() || f == quant.U8) {
		return
	}
	bytes := dim * f.Bits() / 8
	k.prefetch(src[r0*bytes : (r0+n)*bytes])
}

// PrefetchPlanes prefetches rows [r0, r0+n) of a side of rows rows in planes, and their scales.
// Each plane has too few bytes for the processor to predict the next ones. n is at least 1.
func (k *Kernels) PrefetchPlanes(c quant.Coding, src []byte, rows, dim, r0, n int) {
	if k.prefetchPlanes == nil {
		return
	}
	if rows <= TileRows {
		k.prefetch(src) // all of it
		return
	}
	rowBytes, bits := layout.RowPlaneBytes(dim), c.Format.Bits()
	plane := layout.PlaneBytes(rows, dim)
	scale := bits*plane + 2*r0
	if c.Scale == quant.ScaleLog8 {
		scale = bits*plane + 4 + r0
	}
	k.prefetchPlanes(src[r0*rowBytes:], bits, plane, n*rowBytes, scale-r0*rowBytes)
}

// Exact converts consecutive rows of an exact format and pads them with zeros to padDim, a multiple
// of 16 or dim itself.
func (k *Kernels) Exact(dst []float32, f quant.Format, src []byte, rows, dim, padDim int) {
	switch {
	case rows == 0:
	case padDim%16 != 0: // the assembly stores 16 values at a time
		exactGeneric(dst[:rows*padDim], f, src[:rows*dim*f.Bits()/8], rows, dim, padDim)
	default:
		k.exact(dst[:rows*padDim], f, src[:rows*dim*f.Bits()/8], rows, dim, padDim)
	}
}

// end returns the end of the bytes read for the first rows rows, 8 bytes at a time.
func (p *planes) end(rows int) int {
	return (p.bits-1)*p.plane + (rows-1)*p.rowBytes + p.padDim/8
}

// unpackEdge unpacks with kernels that take groups of four rows and read up to 8 bytes at a time.
// It first copies rows whose reads would pass the end of the side.
func (k *Kernels) unpackEdge(dst []float32, p *planes, quads bool, tmp *Scratch) {
	whole := p.rows &^ 3
	for whole > 0 && p.end(whole) > len(p.src) {
		whole -= 4
	}
	rest := p.rows - whole
	if whole > 0 {
		p.rows = whole
		k.planes(dst, p, quads)
	}
	q := &tmp.edge
	*q = *p
	q.rows = (rest + 3) &^ 3
	q.plane = q.rows * p.rowBytes
	need := p.bits*q.plane + 8
	if cap(tmp.bytes) < need {
		tmp.bytes = make([]byte, need)
	}
	q.src = tmp.bytes[:need]
	clear(q.src)
	for i := range p.bits {
		at := i*p.plane + whole*p.rowBytes
		copy(q.src[i*q.plane:], p.src[at:at+rest*p.rowBytes])
	}
	k.planes(dst[whole*p.padDim:], q, quads)
}

// Unit returns the factor of unpacked values: value = scale * Unit * unpacked value. Formats
// without a row scale have scale 1.
func Unit(f quant.Format, dim int) float32 {
	switch {
	case f == quant.U8 || f.Nested():
		return layout.CentroidUnit
	case f >= quant.TQMSE1 && f <= quant.TQMSE4:
		return float32(1 / math.Sqrt(float64(dim))) // the norm is stored
	}
	return 1
}

// Scales writes the stored scales of rows [r0, r0+n) times factor. stored are the scales of a packed side;
// of formats without scales it is empty, and factor is written. n is at most TileRows.
func (k *Kernels) Scales(dst *[TileRows]float32, form quant.ScaleForm, stored []byte, r0, n int,
	factor float32) {
	switch {
	case len(stored) == 0:
		for i := range dst {
			dst[i] = factor
		}
	case form == quant.ScaleLog8:
		base := math.Float32frombits(binary.LittleEndian.Uint32(stored))
		k.log8(dst, base, stored[4+r0:4+r0+n], factor)
	default:
		k.f16(dst, stored[2*r0:2*(r0+n)], factor)
	}
}

// Dots writes the inner products of heads queries with the rows of a tile to dots[TileRows*h+r]. q
// holds the queries one after the other, arranged for the layout. Elements after the rows of the
// tile are undefined.
func (k *Kernels) Dots(dots, q []float32, heads int, l Layout, tile []float32, padDim, rows int) {
	if heads == 0 {
		return
	}
	k.dots(dots[:heads*TileRows], q[:heads*padDim], heads, l, tile[:TileRows*padDim], padDim, rows)
}

// Accumulate adds w[TileRows*h+r] * row r to the sums of every head, which follow each other in
// acc: float32, in ascending order of rows (or even and odd rows separately).
func (k *Kernels) Accumulate(acc, w []float32, heads int, tile []float32, padDim, rows int) {
	if heads == 0 || rows == 0 {
		return
	}
	k.add(acc[:heads*padDim], w[:heads*TileRows], heads, tile[:TileRows*padDim], padDim, rows)
}

// Fold adds acc to sum and clears it.
func (k *Kernels) Fold(sum []float64, acc []float32) { k.fold(sum[:len(acc)], acc) }

// Terms hold the parts of the scores of a tile's rows, other than the inner products: score =
// dot*Mul + Add - energy*Noise.
type Terms struct {
	Mul, Add, Noise [TileRows]float32
}

// Square writes factor*src^2.
func (k *Kernels) Square(dst, src *[TileRows]float32, factor float32) { k.square(dst, src, factor) }

// Mix writes the weighted sum of rows, [len(w), TileRows], or with power 2 of their squares. A
// value that is not finite makes the sum not finite, whatever its weight.
func (k *Kernels) Mix(dst *[TileRows]float32, w, rows []float32, power int) {
	if len(w) == 0 {
		*dst = [TileRows]float32{}
		return
	}
	k.mix(dst, w, rows[:len(w)*TileRows], power)
}

// Heads are arrays with an element, or TileRows elements, per current head.
type Heads struct {
	Dots, Weights []float32 // [heads, TileRows]
	Energy        []float32 // [heads]
	// Tops are what exponentials are relative to: within TopSlack of the largest score so far.
	Tops, Sums []float32 // [heads]
	// Masks has bit r set if row r counts. Softmax clears the bits of rows whose weight is 0.
	Masks []uint32
}

// TopSlack is how far a score may be above Tops. Where Tops follows the largest score, earlier sums have
// to be multiplied each time, in a third of the tiles of a short list. Exponentials up to exp(8) keep
// the relative precision of those up to 1.
const TopSlack = 8

// Softmax computes weights from the inner products of heads [a, b). For each head:
//
//	s = Dots*Mul + Add - Energy*Noise
//	if max(s) > Tops+TopSlack { Tops = max(s) }
//	p = exp(s - Tops);  Sums = sum of p;  Weights = p * scale
//
// over the rows with a bit in Masks. p below the smallest normal float32 counts as 0. The weight of
// a row is 0 if it has no bit, s = -Inf or p = 0.
func (k *Kernels) Softmax(h *Heads, a, b int, t *Terms, scale *[TileRows]float32) {
	if a >= b {
		return
	}
	h.check(b)
	k.softmax(h, a, b, t, scale)
}

// check panics if an array is too short for n heads.
func (h *Heads) check(n int) {
	_, _ = h.Dots[n*TileRows-1], h.Weights[n*TileRows-1]
	_, _, _, _ = h.Energy[n-1], h.Tops[n-1], h.Sums[n-1], h.Masks[n-1]
}

// Probs adds exp(s - lse)^power of heads [a, b) to acc, with scores s as in Softmax.
func (k *Kernels) Probs(acc *[TileRows]float64, h *Heads, a, b int, t *Terms, lse []float32,
	power int) {
	if a >= b {
		return
	}
	_, _, _, _ = h.Dots[b*TileRows-1], h.Energy[b-1], h.Masks[b-1], lse[b-1]
	k.probs(acc, h, a, b, t, lse, power)
}
