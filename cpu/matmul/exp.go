// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// The exponential splits x = n*ln2 + r with |r| <= ln2/2, so that e^x = 2^n * e^r. ln2 is the sum of
// two constants, the first of 9 bits so that its product with n is exact. The terms of e^r are those
// of Cephes' expf.
const (
	expMin = -87 // below it, about the least normal float32, the result is 0
	expMax = 88
	ln2Hi  = 0.693359375
	ln2Lo  = -2.12194440e-4
)

// expTerms are the coefficients of (e^r - 1 - r) / r^2, the highest power first.
var expTerms = [6]float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
	1.6666665459e-1, 5.0000001201e-1}

// exp returns e^x in float32 with a relative error below 3e-7; 0 below -87, e^88 above 88, NaN for
// NaN.
func exp(x float32) float32 {
	if x != x {
		return x
	}
	if x < expMin {
		return 0
	}
	x = min(x, expMax)
	n := float32(math.RoundToEven(float64(x * math.Log2E)))
	r := x - float32(n*ln2Hi)
	r -= float32(n * ln2Lo)
	p := expTerms[0]
	for _, t := range expTerms[1:] {
		p = float32(p*r) + t
	}
	p = float32(p*float32(r*r)) + r
	p++
	return math.Float32frombits(math.Float32bits(p) + uint32(int32(n))<<23)
}

func expSumGeneric(dst, x []float32, top float32) float32 {
	var s [32]float32
	for i, v := range x {
		dst[i] = exp(v - top)
		s[i%32] += dst[i]
	}
	for h := 16; h > 0; h /= 2 {
		for i := range h {
			s[i] += s[i+h]
		}
	}
	return s[0]
}

func largestGeneric(x []float32, top float32) float32 {
	for _, v := range x {
		if v > top {
			top = v
		}
	}
	return top
}

// ExpSum writes e^(x-top) to dst over the length of the shorter one and returns the sum of what it
// wrote: the step of a softmax. dst and x must be equal or must not overlap. An element has a
// relative error below 3e-7; it is 0 where x-top is below -87, e^88 where it is above 88, and NaN
// where x is.
func (e *Engine) ExpSum(dst, x []float32, top float32) float32 {
	n := min(len(dst), len(x))
	return e.kern.expSum(dst[:n], x[:n], top)
}

// Largest returns the largest of top and the elements of x, ignoring NaN among them.
func (e *Engine) Largest(x []float32, top float32) float32 { return e.kern.largest(x, top) }

// PanelWidth is the number of columns that lie side by side in a matrix for Panels.
const PanelWidth = panelWidth

// Panels computes c = a . b, or adds it to c, for a matrix b that is kept in panels of 16 columns:
// a [m, k] with rows lda apart, c [m, n] with rows ldc apart, all row-major; b [n/16][k][16], so that
// element (l, j) is b[(j/16*k+l)*16+j%16]. It runs on the calling goroutine. The sums are those of
// F32, started at c with add:
//
//	for l := range k { c[i*ldc+j] += a[i*lda+l] * b(l, j) }
//
// Errors: quant.ErrShape, as F32, and for n that is no multiple of 16.
func (e *Engine) Panels(c []float32, ldc int, a []float32, lda int, b []float32, m, n, k int, add bool) error {
	if err := checkPanels(len(c), ldc, len(a), lda, len(b), m, n, k); err != nil {
		return err
	}
	if m == 0 || n == 0 {
		return nil
	}
	if k == 0 {
		for i := 0; i < m && !add; i++ {
			clear(c[i*ldc : i*ldc+n])
		}
		return nil
	}
	kern := e.kern
	for at := 0; at < n; {
		f, cols, tiles := kern.f32, kern.cols, kern.tiles
		if n-at < cols*panelWidth {
			f, cols, tiles = kern.f32One, 1, kern.oneTiles
		}
		for i := 0; i < m; {
			rows := tileRows(tiles, m-i)
			f(rows, c[i*ldc+at:], ldc, a[i*lda:], lda, b[at*k:], k, add)
			i += rows
		}
		at += cols * panelWidth
	}
	return nil
}

// checkPanels checks the operands of Panels by their lengths.
func checkPanels(c, ldc, a, lda, b, m, n, k int) error {
	const op = "Panels"
	if m < 0 || n < 0 || k < 0 || n%panelWidth != 0 || ldc < n || lda < k {
		return fmt.Errorf("kvist/matmul: %s: m %d, n %d, k %d, rows of c %d and of a %d apart, want none "+
			"negative, n a multiple of %d and no rows that overlap: %w", op, m, n, k, ldc, lda, panelWidth, quant.ErrShape)
	}
	if m == 0 || n == 0 {
		return nil
	}
	if need, ok := mul(m-1, ldc); !ok || c-n < need {
		return shapeError(op, "c", c, m, ldc)
	}
	if need, ok := mul(m-1, lda); !ok || a-k < need {
		return shapeError(op, "a", a, m, lda)
	}
	if need, ok := mul(n, k); !ok || b < need {
		return shapeError(op, "b", b, n, k)
	}
	return nil
}
