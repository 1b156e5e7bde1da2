// SPDX-License-Identifier: Apache-2.0

package quant

import "github.com/kvist-project/kvist/quant/layout"

// TurboQuant-mse, a comparison format.
//
// Source: TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate (2025, arXiv
// 2504.19874), algorithm 1: rotate, quantize every coordinate of the unit vector with the
// Lloyd-Max quantizer of its distribution, keep the norm. Deviations: the rotation is the
// randomised Hadamard of this package instead of a dense random one, and the codebook is the
// Gaussian limit of the Beta distribution (they agree to a fraction of a percent from 64
// dimensions up).

// encodeTurboQuant writes the codes of one rotated row and returns its norm.
func encodeTurboQuant(codes []byte, f Format, rows, r int, y, tmp []float32) float32 {
	sumSq := energy(y, tmp)
	sigma := sqrt32(float32(sumSq / float32(len(y))))
	quantizeCells(
		codes,
		layout.LloydMaxThresholds(f.Bits()),
		f.Bits(),
		rows,
		r,
		y,
		sigma,
		func(int, uint8) {},
	)
	return sqrt32(sumSq)
}
