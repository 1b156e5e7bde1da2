// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// Tiles of bytes. Centroids of lm1..lm4 and codes of u8 are integers of eight bits. A processor
// that multiplies bytes does not need them as floats. The other factor, a query's value or a row's
// weight, is rounded to an integer of 24 bits and split into three digits of eight bits. Sums of
// products are then exact. Only the rounding to 24 bits, and the joining of the digits' sums as
// floats, are not.
//
// A tile of keys holds code or centroid + 128, unsigned. Each eight rows of each 64 values are
// eight vectors of 64 bytes, one for every eight values; its 64-bit words are the rows of rowOrder.
// A tile of values holds centroids, signed: each four rows of each 64 values are four vectors, one
// for every 16 values; a 32-bit word is one value of the four rows.

// Digits is the number of bytes that a query's value, or a weight, is split into.
const Digits = 3

// DigitBytes is the size of a head's weights in digits. Each four rows take 16 bytes: the lowest
// digits of the rows, then the next, the highest, and 4 bytes of no meaning.
const DigitBytes = 4 * TileRows

const (
	byteBlock = 64
	byteRows  = 8 // number of rows unpacked together
	// recordHead is the size of the head of a query in digits. For each digit it holds half of the
	// start value of the sums, as int32; then the value of one unit of the last digit, as float32;
	// then the start values of the sums, and 4 bytes.
	recordHead = 2 * (4*Digits + 4)
	keyBias    = 128
	// queryMost is the largest integer of a query. It makes the highest digit at most 127.
	queryMost = 127 << 16
)

// rowOrder is the row in each word of a vector in a tile of keys.
var rowOrder = [byteRows]uint8{0, 4, 1, 5, 2, 6, 3, 7}

// byteTable holds the entries of a format for bytes of six bits that hold a code at their bit 0;
// then those for bytes with the code above it, and so on, as long as codes fit. That of lm3 has a third
// one, of keys with the code at bit 1.
type byteTable [4][64]byte

// byteTables are those of lm1..lm4 in tiles of keys and of values.
var byteTables = func() (t [quant.LM4 + 1][2]byteTable) {
	for f := quant.LM1; f <= quant.LM4; f++ {
		book := layout.Nested(f.Bits())
		for at := 0; at < len(t[f][0]) && (at+1)*f.Bits() <= 6; at++ {
			for i := range 64 {
				c := book[i>>(at*f.Bits())%len(book)]
				t[f][0][at][i], t[f][1][at][i] = byte(int(c)+keyBias), byte(c)
			}
		}
		if f == quant.LM3 {
			for i := range 64 {
				t[f][0][2][i] = byte(int(book[(i>>1)%8]) + keyBias)
			}
		}
	}
	return t
}()

// byteKernels are the routines for tiles of bytes; nil if an instruction set has none.
type byteKernels struct {
	// planes and u8 unpack complete groups of eight rows.
	planes func(dst []byte, p *planes, table *byteTable, values bool)
	u8     func(dst, src []byte, rows, dim int, values bool)
	// largest and cut are largestGeneric and cutGeneric, for queries of a multiple of 16 values.
	largest func(q []float32) uint32
	cut     func(dst []byte, q []float32, factor float64) (sums [Digits]int32)
	dots    func(dots []float32, q []byte, heads int, tile []byte, dim, rows int)
	// softmax does not check arguments; SoftmaxCut does. It returns 0 if SoftmaxCut is to return
	// true.
	softmax func(w *Weights, h *Heads, a, b int, t *Terms, scale *[TileRows]float32) uint32
	add     func(acc []float32, weights []byte, units []float32, heads int, tile []byte, dim, rows int)
	// dotPlanes and addPlanes combine planes with dots or add, for tiles that Direct accepts.
	// src begins with a tile's rows in the first of bits planes, which start plane bytes apart.
	dotPlanes func(dots []float32, q []byte, heads int, src []byte, bits, plane int, table *byteTable)
	addPlanes func(acc []float32, w *Weights, heads int, src []byte, bits, plane int, table *byteTable)
	// The steps of a Run, by bits and heads; they check nothing. softmaxTile is nil if there are none.
	dotTile     *[4][RunHeads]func(dots *float32, q, src *byte, plane int, table *byte)
	softmaxTile *[RunHeads]func(memory, t, next *byte, dots *float32) (flags uint32)
	addTile     *[4][RunHeads]func(acc *float32, weights *byte, units *float32, src *byte, plane int,
		table *byte)
}

// Bytes reports whether rows of a format can be unpacked to a tile of bytes.
func (k *Kernels) Bytes(f quant.Format, dim int) bool {
	return k.bytes != nil && (f == quant.U8 || f.Nested()) && dim%byteBlock == 0 && dim <= maxByteDim
}

// maxByteDim keeps the sums of a digit's products exact in float32.
const maxByteDim = 512

// UnpackBytes is Unpack for tiles of bytes, [TileRows*dim]: of values, or of keys.
func (k *Kernels) UnpackBytes(dst []byte, values bool, c quant.Coding, src []byte, rows, dim, r0,
	n int, tmp *Scratch) {
	dst = dst[:TileRows*dim]
	whole := n &^ (byteRows - 1)
	if c.Format == quant.U8 {
		src = src[r0*dim : (r0+n)*dim]
		if whole > 0 {
			k.bytes.u8(dst, src, whole, dim, values)
		}
		if whole < n {
			tmp.bytes = growBytes(tmp.bytes, byteRows*dim)
			clear(tmp.bytes[copy(tmp.bytes, src[whole*dim:]):])
			k.bytes.u8(dst[whole*dim:], tmp.bytes, byteRows, dim, values)
		}
		return
	}
	p := &tmp.planes
	p.src = src[r0*dim/8:]
	p.bits, p.plane = c.Format.Bits(), layout.PlaneBytes(rows, dim)
	p.rowBytes, p.rows, p.padDim = dim/8, whole, dim
	table := &byteTables[c.Format][0]
	if values {
		table = &byteTables[c.Format][1]
	}
	if whole > 0 {
		k.bytes.planes(dst, p, table, values)
	}
	if whole < n {
		k.bytes.planes(dst[whole*dim:], tmp.rest(whole, n-whole), table, values)
	}
}

func growBytes(p []byte, n int) []byte {
	if cap(p) < n {
		return make([]byte, n)
	}
	return p[:n]
}

// rest copies the rest rows after the first rows of t.planes to separate rows, padded to byteRows.
func (t *Scratch) rest(first, rest int) *planes {
	p, q := &t.planes, &t.edge
	*q = *p
	q.rows, q.plane = byteRows, byteRows*p.rowBytes
	t.bytes = growBytes(t.bytes, p.bits*q.plane)
	q.src = t.bytes
	clear(q.src)
	for i := range p.bits {
		at := i*p.plane + first*p.rowBytes
		copy(q.src[i*q.plane:], p.src[at:at+rest*p.rowBytes])
	}
	return q
}

// QueryBytes is the size of a query in digits.
func QueryBytes(dim int) int { return recordHead + Digits*dim }

// CutQuery splits a query of a multiple of 64 values into digits for DotBytes. A query with a value
// that is not finite gives inner products of NaN.
//
// The largest value becomes queryMost, so a value is off by at most 2^-24 of the largest.
func (k *Kernels) CutQuery(dst []byte, q []float32) {
	largest := math.Float32frombits(k.bytes.largest(q))
	factor := 0.0
	unit := float32(float64(largest) / queryMost)
	if largest > 0 && !math.IsInf(float64(largest), 0) {
		factor = queryMost / float64(largest)
	} else if largest != 0 {
		unit = float32(math.NaN())
	}
	sums := k.bytes.cut(dst[recordHead:QueryBytes(len(q))], q, factor)
	for d, s := range sums {
		// Where a row has two words, each starts with half of what keyBias adds.
		binary.LittleEndian.PutUint32(dst[4*d:], uint32(-keyBias/2*s))
		binary.LittleEndian.PutUint32(dst[4*(Digits+1+d):], uint32(-keyBias*s))
	}
	binary.LittleEndian.PutUint32(dst[4*Digits:], math.Float32bits(unit))
}

// largestGeneric returns the bits of the largest absolute value. NaN counts as the largest.
func largestGeneric(q []float32) (largest uint32) {
	for _, x := range q {
		largest = max(largest, math.Float32bits(x)&^(1<<31))
	}
	return largest
}

// cutGeneric multiplies the values of q by factor, splits each product into digits, and sums the digits of
// each place. A product beyond queryMost gives meaningless digits and sums, but no error.
func cutGeneric(dst []byte, q []float32, factor float64) (sums [Digits]int32) {
	for ; len(q) >= 8; q = q[8:] {
		var words [Digits]uint64
		for i, x := range q[:8] {
			// The low bits of the sum are the product, rounded half to even.
			n := int32(math.Float64bits(float64(float64(x)*factor) + 3<<51))
			for d := range Digits {
				digit := int8(n)
				n = (n - int32(digit)) >> 8
				sums[d] += int32(digit)
				words[d] |= uint64(uint8(digit)) << (8 * i)
			}
		}
		for d, w := range words {
			binary.LittleEndian.PutUint64(dst[8*d:], w)
		}
		dst = dst[8*Digits:]
	}
	return sums
}

// DotBytes is Dots for a tile of bytes and queries split by CutQuery.
func (k *Kernels) DotBytes(dots []float32, q []byte, heads int, tile []byte, dim, rows int) {
	if heads == 0 {
		return
	}
	k.bytes.dots(dots[:heads*TileRows], q[:heads*QueryBytes(dim)], heads, tile[:TileRows*dim], dim,
		rows)
}

// Weights are the weights of heads as SoftmaxCut splits them.
type Weights struct {
	Digits []byte    // [heads, DigitBytes]
	Units  []float32 // [heads]
}

// SoftmaxCut is Softmax that also splits the weights of heads [a, b) into digits for AddBytes, head
// a first. It reports false, and w is undefined, unless all scales are finite and positive or +0. A
// head with a NaN weight gives sums of NaN.
//
// The largest weight of a head keeps all of its 24 bits. Any other is off by at most 2^-24 of the
// largest.
func (k *Kernels) SoftmaxCut(w *Weights, h *Heads, a, b int, t *Terms,
	scale *[TileRows]float32) bool {
	if a >= b {
		return true
	}
	h.check(b)
	_, _ = w.Digits[(b-a)*DigitBytes-1], w.Units[b-a-1]
	return k.bytes.softmax(w, h, a, b, t, scale) == 0
}

// AddBytes is Accumulate for a tile of bytes and weights of SoftmaxCut.
func (k *Kernels) AddBytes(acc []float32, w *Weights, heads int, tile []byte, dim, rows int) {
	if heads == 0 || rows == 0 {
		return
	}
	k.bytes.add(acc[:heads*dim], w.Digits[:heads*DigitBytes], w.Units[:heads], heads,
		tile[:TileRows*dim], dim, rows)
}

// Direct reports whether DotPlanes and AddPlanes accept n rows of dim values, of a format with
// tiles of bytes, and heads query heads. With so few heads, storing a tile would not pay.
func (k *Kernels) Direct(f quant.Format, dim, n, heads int) bool {
	return f != quant.U8 && dim == byteBlock && n == TileRows && heads <= 3
}

// DotPlanes combines UnpackBytes and DotBytes, for a tile that Direct accepts, with the same bits.
func (k *Kernels) DotPlanes(dots []float32, q []byte, heads int, f quant.Format, src []byte, rows,
	r0 int) {
	if heads > 0 {
		k.bytes.dotPlanes(dots[:heads*TileRows], q[:heads*QueryBytes(byteBlock)], heads,
			src[r0*byteBlock/8:], f.Bits(), layout.PlaneBytes(rows, byteBlock), &byteTables[f][0])
	}
}

// AddPlanes combines UnpackBytes and AddBytes, for a tile that Direct accepts, with the same bits.
func (k *Kernels) AddPlanes(acc []float32, w *Weights, heads int, f quant.Format, src []byte, rows,
	r0 int) {
	if heads > 0 {
		k.bytes.addPlanes(acc[:heads*byteBlock], w, heads, src[r0*byteBlock/8:], f.Bits(),
			layout.PlaneBytes(rows, byteBlock), &byteTables[f][1])
	}
}
