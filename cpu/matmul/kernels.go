// SPDX-License-Identifier: Apache-2.0

package matmul

// kernels is the table of routines of one instruction set. The routines do not check arguments:
// slices must have at least the lengths in the comments.
type kernels struct {
	isa string

	// tiles are the row counts of f32, in descending order; the last is 1. cols is its number of
	// panels of 16 outputs.
	tiles []int
	cols  int
	// f32 computes c[rows][16*cols] = a[rows][k] . b, or adds to c. b is cols panels [k][16], one
	// after another. ldc and lda are the distances of rows, in elements.
	f32 func(rows int, c []float32, ldc int, a []float32, lda int, b []float32, k int, add bool)

	// f32One is f32 for one panel, with its row counts.
	f32One   func(rows int, c []float32, ldc int, a []float32, lda int, b []float32, k int, add bool)
	oneTiles []int

	// pack writes 1 to 16 rows of src as a panel [k][16], padded with zeros.
	pack func(dst, src []float32, ld, rows, k int)
	// expand8 and expand4 write one panel of weights as float32 [32*groups][16].
	expand8 func(dst []float32, codes []uint8, scales []float32, groups int)
	expand4 func(dst []float32, codes []uint8, scales, mins []float32, groups int)

	// row8 and row4 compute c[64] = a . w for one row of activations [32*groups] and rowPanels
	// consecutive panels. They are nil if expanding is as fast.
	row8 func(c []float32, codes []uint8, scales, a []float32, groups int)
	row4 func(c []float32, codes []uint8, scales, mins, a []float32, groups int)

	// itiles are the row counts of q8 and q4, in descending order; the last is 1.
	itiles []int
	// quantize writes one row of activations [32*groups] to row row of a tile.
	quantize func(t tile, row int, src []float32)
	// q8 and q4 compute c[t.rows][16] for one panel.
	q8 func(c []float32, ldc int, codes []uint8, scales []float32, t tile)
	q4 func(c []float32, ldc int, codes []uint8, scales, mins []float32, t tile)

	// unpack writes codes of 2 to 6 bits as those of 8, [groups][512]; scales writes n vectors of 16
	// scales: base[i/per] * steps[i], or the bases where steps is nil.
	unpack func(dst, codes []uint8, bits int, consts *[16]uint8, groups int)
	scales func(dst []float32, base []uint16, steps []int8, n, per int)
	// expand is expand8 for a panel of a Matrix, multiply is q8 for one; halves completes a row of a
	// tile for panels with steps of 16.
	expand   func(dst []float32, p panel)
	multiply func(c []float32, ldc int, p panel, t tile)
	halves   func(t tile, row int)
	// row is multiply for one row and a panel as it is stored, and reports whether it knows its form;
	// nil if it never does.
	row func(c []float32, p storedPanel, t tile) bool

	dot  func(a, b []float32) float32
	axpy func(dst []float32, x float32, src []float32)

	// expSum and largest are ExpSum and Largest for slices of one length.
	expSum  func(dst, x []float32, top float32) float32
	largest func(x []float32, top float32) float32
}

// rowPanels is the number of panels that row8 and row4 take.
const rowPanels = 4

// tile is a few rows of quantized activations in the order that the integer kernels read.
type tile struct {
	rows, groups int
	codes        []int8    // [groups][rows][32]
	scale        []float32 // [groups][rows]: value = scale * code
	sum          []float32 // [groups][rows]: scale * sum of codes
	bias         []int32   // [groups][rows]: -128 * sum of codes
	halfSum      []float32 // [groups][2][rows]: as sum, of 16 inputs
	halfBias     []int32   // [groups][2][rows]: as bias
}

// The bounds of the activation quantizer, as bits of float32.
const (
	tinyBits = (127 - 100) << 23 // 2^-100: below it 127/largest could overflow
	infBits  = 0x7f800000
)

// tileRows returns the largest of sizes that is at most left.
func tileRows(sizes []int, left int) int {
	for _, s := range sizes {
		if s <= left {
			return s
		}
	}
	return 1
}
