// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"fmt"

	"github.com/kvist-project/kvist/quant/layout"
)

// Rotation is the randomised Hadamard transform of rows of one dim, for one seed: an orthogonal
// map that spreads every component of a row over all of them, so that any row looks Gaussian to
// the quantizer and massive channels do no harm.
//
// It works in windows: the powers of two of dim's binary expansion, largest first (80 = 64 + 16,
// 96 = 64 + 32, 64 = 64). Each window gets signs, then the Walsh-Hadamard butterflies, then a
// factor 1/sqrt(length). The package comment says why windows and nothing that mixes them.
//
// Source: QuIP# (2024, arXiv 2402.04396) for the sign-Hadamard transform.
//
// A Rotation is immutable and safe for concurrent use.
type Rotation struct {
	windows []layout.Window
}

// NewRotation returns the rotation of rows of dim values for a seed.
//
// Errors: ErrUnsupported unless dim is a multiple of 8 in [8, MaxDim].
func NewRotation(dim int, seed uint64) (*Rotation, error) {
	if dim <= 0 || dim%8 != 0 || dim > MaxDim {
		return nil, fmt.Errorf(
			"kvist/quant: rotation of rows of %d values (wants a multiple of 8 up to %d): %w",
			dim, MaxDim, ErrUnsupported)
	}
	return &Rotation{layout.Windows(dim, seed)}, nil
}

// Windows describes the transform to other implementations. Read only.
func (r *Rotation) Windows() []layout.Window { return r.windows }

// Forward rotates one row in place; len(x) is the dim of NewRotation.
func (r *Rotation) Forward(x []float32) {
	for _, w := range r.windows {
		v := x[w.Start : w.Start+w.Len]
		flip(v, w.Signs)
		butterflies(v)
		scaleBy(v, w.Norm)
	}
}

// Inverse undoes Forward, up to rounding.
func (r *Rotation) Inverse(x []float32) {
	for _, w := range r.windows {
		v := x[w.Start : w.Start+w.Len]
		butterflies(v)
		scaleBy(v, w.Norm)
		flip(v, w.Signs)
	}
}

func flip(x []float32, signs []uint64) {
	for i := range x {
		if signs[i/64]>>(i%64)&1 != 0 {
			x[i] = -x[i]
		}
	}
}

// butterflies is the unnormalised Walsh-Hadamard transform. The strides ascend: that order is
// part of the format, because float32 sums depend on it.
func butterflies(x []float32) {
	for h := 1; h < len(x); h *= 2 {
		for i := 0; i < len(x); i += 2 * h {
			for j := i; j < i+h; j++ {
				a, b := x[j], x[j+h]
				x[j], x[j+h] = a+b, a-b
			}
		}
	}
}

func scaleBy(x []float32, f float32) {
	for i := range x {
		x[i] = float32(x[i] * f)
	}
}

// treeSum adds x in the fixed order of the formats, destroying x: with P the power of two from
// len(x) up, x[i] += x[i+h] for h = P/2, P/4, ... 1, where i+h exists. A vector unit of any
// width computes the same sum.
func treeSum(x []float32) float32 {
	if len(x) == 0 {
		return 0
	}
	h := 1
	for h < len(x) {
		h *= 2
	}
	for h /= 2; h > 0; h /= 2 {
		for i := 0; i < h && i+h < len(x); i++ {
			x[i] += x[i+h]
		}
	}
	return x[0]
}
