// SPDX-License-Identifier: Apache-2.0

package quant

import "math"

// CentroidUnit is what one step of an integer centroid is worth in units of the row scale: a
// value decodes as scale * centroid / 64. The unit keeps the scales of rows of ordinary size in
// the middle of the range of binary16.
const CentroidUnit = 1.0 / 64

// nestedThresholds are the positive decision thresholds of lm4 in units of the row's root mean
// square. Every second one (index 0, 2, 4, 6) belongs to lm3 and is the optimal 3-bit Lloyd-Max
// quantizer of a Gaussian; every fourth to lm2; the first to lm1. The others halve the cells of
// lm3 optimally. So a code of fewer bits is the code of more bits without its low bits, which is
// what lets blocks be demoted without the original. The price against separate optima is 1.0 % of
// squared error at 4 bits, 0.8 % at 2 bits. codebook_test.go derives the numbers again.
//
// Source: Max, "Quantizing for minimum distortion" (1960); Lloyd (1982).
var nestedThresholds = [8]float32{
	0, 0.24765398, 0.50054973, 0.76546286, 1.0499573, 1.3703201, 1.7479275, 2.319689,
}

// nestedCentroids[b] are the magnitudes of the centroids of lm<b>, ascending: the conditional
// means of the cells, scaled and rounded to integers. Integers make every sum over centroids
// exact, in any order and on any machine, and let int8 dot products be used. The rounding costs
// 0.15 % of squared error at 4 bits and nothing measurable below.
var nestedCentroids = [5][]int8{
	1: {64},
	2: {37, 121},
	3: {10, 31, 55, 88},
	4: {5, 15, 26, 37, 49, 63, 81, 109},
}

// NestedCodebook returns the centroids of lm1..lm4 by code: value = scale * table[code] / 64.
// Codes ascend with the value; the highest bit is set for values >= 0.
func NestedCodebook(f Format) []int8 {
	if !f.Nested() {
		return nil
	}
	m := nestedCentroids[f.Bits()]
	t := make([]int8, 2*len(m))
	for i, c := range m {
		t[len(m)+i] = c
		t[len(m)-1-i] = -c
	}
	return t
}

// NestedThresholds returns the positive thresholds of lm1..lm4 in units of the row's root mean
// square, ascending, the first of them 0.
func NestedThresholds(f Format) []float32 {
	if !f.Nested() {
		return nil
	}
	n := len(nestedCentroids[f.Bits()])
	t := make([]float32, n)
	for i := range t {
		t[i] = nestedThresholds[i*8/n]
	}
	return t
}

// Gaussian Lloyd-Max quantizers at their own optimum, for tqmse1..tqmse4: positive thresholds
// and centroids in units of the row's root mean square.
var (
	lloydThresholds = [5][]float32{
		1: {0},
		2: {0, 0.9815988},
		3: {0, 0.50054973, 1.0499573, 1.7479275},
		4: {0, 0.25822166, 0.522404, 0.79954979, 1.0992858, 1.4371388, 1.8435318, 2.4008034},
	}
	lloydCentroids = [5][]float32{
		1: {0.79788456},
		2: {0.45278003, 1.5104176},
		3: {0.24509418, 0.75600528, 1.3439093, 2.1519457},
		4: {
			0.12839503,
			0.3880483,
			0.65675911,
			0.94234046,
			1.2562312,
			1.6180464,
			2.069017,
			2.7325896,
		},
	}
)

// LloydMaxCodebook returns the float centroids of tqmse1..tqmse4 by code, in units of the row's
// root mean square, and nil for other formats.
func LloydMaxCodebook(f Format) []float32 {
	if f < TQMSE1 || f > TQMSE4 {
		return nil
	}
	m := lloydCentroids[f.Bits()]
	t := make([]float32, 2*len(m))
	for i, c := range m {
		t[len(m)+i] = c
		t[len(m)-1-i] = -c
	}
	return t
}

// gaussDistortion[f] is the expected squared error of a Gaussian of unit variance under the
// format's cells with the least-squares centroids: 1 - E[x c]^2 / E[c^2].
func gaussDistortion(f Format) float64 {
	switch f {
	case LM1, TQMSE1:
		return 0.3633802
	case LM2:
		return 0.1184491
	case LM3:
		return 0.0345489
	case LM4:
		return 0.0096093
	case TQMSE2:
		return 0.1174818
	case TQMSE3:
		return 0.0345478
	case TQMSE4:
		return 0.0095010
	}
	return 0
}

// leastSquaresScale is the row scale over the root mean square of a long Gaussian row.
func leastSquaresScale(f Format) float64 {
	switch f {
	case LM1:
		return 0.7978846
	case LM2:
		return 64 * 0.0129366536
	case LM3:
		return 64 * 0.0244347838
	case LM4:
		return 64 * 0.0244316237
	}
	return 0
}

// RelativeError returns the expected squared error of a coded row over the row's energy, for a
// long row that the rotation has made Gaussian. u8 assumes a peak of 2.6 root mean squares (the
// expectation for 64 values). The exact formats and ggml's, whose error depends on the data,
// give 0 and an estimate for groups of 32 Gaussians.
func (c Coding) RelativeError() float64 {
	switch f := c.Format; {
	case f.Nested():
		d := gaussDistortion(f)
		switch c.Rule {
		case LengthKeeping:
			return 2 - 2*math.Sqrt(1-d)
		case InnerProduct:
			return d / (1 - d)
		}
		return d
	case f == U8:
		step := 2.6 / 127
		return step * step / 12
	case f >= TQMSE1 && f <= TQMSE4:
		return gaussDistortion(f)
	case f == GGMLQ8_0:
		step := 2.1 / 127 // E max|x| of 32 Gaussians is 2.1 (2.07) root mean squares
		return step * step / 12
	case f == GGMLQ4_0:
		step := 2.1 / 8
		return step * step / 12
	}
	return 0
}

// NoisePerScale2 returns the expected squared error of one value of a coded row in units of the
// squared row scale (RowScales): what a backend needs to know of a coding for the row bias. It
// is 0 for codings without a row scale, whose rows then have no bias.
func (c Coding) NoisePerScale2() float64 {
	switch f := c.Format; {
	case f.Nested():
		d, s := gaussDistortion(f), leastSquaresScale(f)
		switch c.Rule {
		case LengthKeeping:
			return (2 - 2*math.Sqrt(1-d)) / (s * s / (1 - d))
		case InnerProduct:
			return d / (1 - d) / (s * s / ((1 - d) * (1 - d)))
		}
		return d / (s * s)
	case f == U8:
		return CentroidUnit * CentroidUnit / 12
	case f >= TQMSE1 && f <= TQMSE4:
		return gaussDistortion(f)
	}
	return 0
}
