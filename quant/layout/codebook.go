// SPDX-License-Identifier: Apache-2.0

package layout

import "slices"

// maxBits is the width of the widest codes in planes.
const maxBits = 4

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

// Nested returns the centroids of lm<bits> by code: value = scale * centroid * CentroidUnit. Codes
// ascend with the value; the highest bit is set for values >= 0. It is nil unless bits is 1 to 4.
func Nested(bits int) []int8 {
	if bits < 1 || bits > maxBits {
		return nil
	}
	return mirrored(nestedCentroids[bits])
}

// NestedThresholds returns the positive thresholds of lm<bits> in units of the row's root mean
// square, ascending from 0. It is nil unless bits is 1 to 4.
func NestedThresholds(bits int) []float32 {
	if bits < 1 || bits > maxBits {
		return nil
	}
	t := make([]float32, 1<<(bits-1))
	for i := range t {
		t[i] = nestedThresholds[i*8/len(t)]
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

// LloydMax returns the centroids of tqmse<bits> by code, in units of the row's root mean square. It
// is nil unless bits is 1 to 4.
func LloydMax(bits int) []float32 {
	if bits < 1 || bits > maxBits {
		return nil
	}
	return mirrored(lloydCentroids[bits])
}

// LloydMaxThresholds returns the positive thresholds of tqmse<bits> in units of the row's root mean
// square, ascending from 0. It is nil unless bits is 1 to 4.
func LloydMaxThresholds(bits int) []float32 {
	if bits < 1 || bits > maxBits {
		return nil
	}
	return slices.Clone(lloydThresholds[bits])
}

// mirrored returns a codebook from its positive half.
func mirrored[T int8 | float32](half []T) []T {
	t := make([]T, 2*len(half))
	for i, c := range half {
		t[len(half)+i] = c
		t[len(half)-1-i] = -c
	}
	return t
}
