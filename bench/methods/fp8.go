// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// FP8 stores values as 8-bit floats e4m3 (no infinities, largest 448) under one f16 scale per
// layer, KV head and side: scale = max|x|/448.
//
// Bytes of a side of a head: 1 a value and 2 for the scale.
//
// Source: FP8 Formats for Deep Learning (2022, arXiv 2209.05433); the fp8 caches of vLLM and
// FlashInfer. Deviation: those take one scale per layer, often 1.
type FP8 struct{}

const (
	fp8Max      = 448
	fp8Mantissa = 3  // bits
	fp8MinExp   = -6 // of the smallest normal number, 2^-6
)

// Name returns "fp8".
func (FP8) Name() string { return "fp8" }

// Source names the paper.
func (FP8) Source() string {
	return "fp8 e4m3, arXiv 2209.05433; one f16 scale per layer, KV head and side"
}

// Compress implements Method.
//
// Errors: quant.ErrShape, quant.ErrRange.
func (m FP8) Compress(ctx context.Context, c *Context) (*Cache, error) {
	return eachHead(ctx, m, c, 0, 0, fp8Coder, fp8Coder)
}

func fp8Coder(dst, src quant.Rows) (int64, error) {
	var peak float32
	for i, x := range src.Data {
		if x-x != 0 {
			return 0, fmt.Errorf("row %d: value %g: %w", i/src.Dim, x, quant.ErrRange)
		}
		peak = max(peak, x, -x)
	}
	scale, err := halfOf(peak / fp8Max)
	if err != nil {
		return 0, err
	}
	for i, x := range src.Data {
		if scale > 0 {
			dst.Data[i] = scale * roundFP8(x/scale)
		}
	}
	return int64(len(src.Data)) + 2, nil
}

// roundFP8 rounds x to the nearest e4m3 number, halves to even. Magnitudes above 448 become 448.
func roundFP8(x float32) float32 {
	if x == 0 {
		return 0
	}
	_, exp := math.Frexp(float64(x)) // |x| in [2^(exp-1), 2^exp)
	step := math.Ldexp(1, max(exp-1, fp8MinExp)-fp8Mantissa)
	y := math.RoundToEven(float64(x)/step) * step
	return float32(min(max(y, -fp8Max), fp8Max))
}
