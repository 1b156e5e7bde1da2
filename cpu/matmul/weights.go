// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// panelWidth is the number of outputs that are interleaved.
const panelWidth = 16

// Bytes of codes per panel and group.
const (
	panelBytes8 = groupSize * panelWidth
	panelBytes4 = panelBytes8 / 2
)

// Q8Matrix is a weight matrix [n, k] of int8 codes with one float32 scale per group of 32
// along k: weight = scale * code. It does not change after NewQ8.
type Q8Matrix struct {
	n, k   int
	codes  []uint8   // [panels][groups][512], see the package comment
	scales []float32 // [panels][groups][16]
}

// Q4Matrix is a weight matrix [n, k] of 4-bit codes with a float32 scale and a float32 minimum
// per group of 32 along k: weight = float32(scale * code) + min. It does not change after
// NewQ4.
type Q4Matrix struct {
	n, k         int
	codes        []uint8   // [panels][groups][256]
	scales, mins []float32 // [panels][groups][16]
}

// NewQ8 packs a matrix. codes: [n, k]; scales: [n, k/32]. The slices are copied.
//
// Errors: quant.ErrShape.
func NewQ8(n, k int, codes []int8, scales []float32) (*Q8Matrix, error) {
	groups, err := checkWeights("NewQ8", n, k, len(codes), len(scales))
	if err != nil {
		return nil, err
	}
	if groups == 0 {
		return &Q8Matrix{n: n, k: k}, nil
	}
	w := &Q8Matrix{n: n, k: k, codes: make([]uint8, panels(n)*groups*panelBytes8),
		scales: interleave(n, groups, scales)}
	for i := range n {
		row := codes[i*k : (i+1)*k]
		p := w.codes[(i/panelWidth)*groups*panelBytes8:]
		lane := 4 * (i % panelWidth)
		for j, c := range row {
			// group, vector of 4 inputs, byte
			p[j/4*64+lane+j%4] = uint8(c)
		}
	}
	return w, nil
}

// NewQ4 packs a matrix. codes: [n, k], one code 0..15 per byte; scales and mins: [n, k/32].
// The slices are copied. ggml's Q4_1 is this form; Q4_0 is it with min = -8*scale.
//
// Errors: quant.ErrShape; quant.ErrRange for a code above 15.
func NewQ4(n, k int, codes []uint8, scales, mins []float32) (*Q4Matrix, error) {
	groups, err := checkWeights("NewQ4", n, k, len(codes), len(scales))
	if err != nil {
		return nil, err
	}
	if len(mins) != len(scales) {
		return nil, fmt.Errorf("kvist/matmul: NewQ4: %d mins, want %d as scales: %w",
			len(mins), len(scales), quant.ErrShape)
	}
	if groups == 0 {
		return &Q4Matrix{n: n, k: k}, nil
	}
	w := &Q4Matrix{n: n, k: k, codes: make([]uint8, panels(n)*groups*panelBytes4),
		scales: interleave(n, groups, scales), mins: interleave(n, groups, mins)}
	for i := range n {
		row := codes[i*k : (i+1)*k]
		p := w.codes[(i/panelWidth)*groups*panelBytes4:]
		lane := 4 * (i % panelWidth)
		for j, c := range row {
			if c > 15 {
				return nil, fmt.Errorf("kvist/matmul: NewQ4: code %d at row %d, column %d, "+
					"want 0..15: %w", c, i, j, quant.ErrRange)
			}
			in := j % groupSize
			at := j/groupSize*panelBytes4 + in%16/4*64 + lane + in%4
			p[at] |= c << (in / 16 * 4)
		}
	}
	return w, nil
}

// checkWeights checks the sizes of a matrix and returns its groups per row.
func checkWeights(op string, n, k, codes, scales int) (int, error) {
	if n < 0 || k < 0 || k%groupSize != 0 {
		return 0, fmt.Errorf("kvist/matmul: %s: n %d, k %d, want both >= 0 and k a multiple "+
			"of %d: %w", op, n, k, groupSize, quant.ErrShape)
	}
	if need, ok := mul(n, k); !ok || codes != need {
		return 0, shapeError(op, "codes", codes, n, k)
	}
	groups := k / groupSize
	if scales != n*groups {
		return 0, shapeError(op, "scales", scales, n, groups)
	}
	if codes == 0 { // do not loop or allocate for an empty matrix of any n
		return 0, nil
	}
	return groups, nil
}

// panels returns the number of panels for n outputs.
func panels(n int) int { return (n + panelWidth - 1) / panelWidth }

// interleave turns [n][groups] into [panels][groups][16], padded with zeros.
func interleave(n, groups int, v []float32) []float32 {
	out := make([]float32, panels(n)*groups*panelWidth)
	for i := range n {
		for g := range groups {
			out[(i/panelWidth*groups+g)*panelWidth+i%panelWidth] = v[i*groups+g]
		}
	}
	return out
}

// N returns the number of outputs, the rows of the matrix.
func (w *Q8Matrix) N() int { return w.n }

// K returns the number of inputs, the columns of the matrix.
func (w *Q8Matrix) K() int { return w.k }

// SizeBytes returns the number of bytes that a product reads from the matrix, including padding.
func (w *Q8Matrix) SizeBytes() int { return len(w.codes) + 4*len(w.scales) }

// N returns the number of outputs, the rows of the matrix.
func (w *Q4Matrix) N() int { return w.n }

// K returns the number of inputs, the columns of the matrix.
func (w *Q4Matrix) K() int { return w.k }

// SizeBytes returns the number of bytes that a product reads from the matrix, including padding.
func (w *Q4Matrix) SizeBytes() int { return len(w.codes) + 4*len(w.scales) + 4*len(w.mins) }

// Row writes row i as float32 to dst, at most k values: scale*code each. A row out of [0, n)
// writes nothing.
func (w *Q8Matrix) Row(i int, dst []float32) {
	if i < 0 || i >= w.n {
		return
	}
	groups := w.k / groupSize
	codes := w.codes[i/panelWidth*groups*panelBytes8:]
	scales := w.scales[i/panelWidth*groups*panelWidth+i%panelWidth:]
	lane := 4 * (i % panelWidth)
	for j := range dst[:min(len(dst), w.k)] {
		dst[j] = scales[j/groupSize*panelWidth] * float32(int8(codes[j/4*64+lane+j%4]))
	}
}

// Row writes row i as float32 to dst, at most k values: float32(scale*code) + min each. A row
// out of [0, n) writes nothing.
func (w *Q4Matrix) Row(i int, dst []float32) {
	if i < 0 || i >= w.n {
		return
	}
	groups := w.k / groupSize
	codes := w.codes[i/panelWidth*groups*panelBytes4:]
	first := i/panelWidth*groups*panelWidth + i%panelWidth
	lane := 4 * (i % panelWidth)
	for j := range dst[:min(len(dst), w.k)] {
		in, at := j%groupSize, first+j/groupSize*panelWidth
		b := codes[j/groupSize*panelBytes4+in%16/4*64+lane+in%4]
		dst[j] = float32(w.scales[at]*float32(b>>(in/16*4)&15)) + w.mins[at]
	}
}
