// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"github.com/kvist-project/kvist/quant"
)

// KIVI quantizes K per channel and V per token, asymmetrically: a group of values x is stored as
// round((x-min)/scale) with scale = (max-min)/(2^bits-1).
//
// Groups: K, 32 tokens of one channel; V, 32 channels of one token. The last group of a channel
// or row may be shorter. Window is the exact recent window that the paper calls residual.
//
// Bytes of a side of a head: bits/8 a value, 4 a group (f16 scale and min), and 2 a value of the
// window: bits + 1.0 bit/value if groups are full.
//
// Source: KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache (2024, arXiv
// 2402.02750). Deviations: no window by default; the paper keeps up to 128 recent tokens. Tokens that
// do not fill a group of K are quantized as a short group; the paper keeps them exact.
type KIVI struct {
	Bits   int // 1 to 8
	Window int // last tokens kept at f16
}

// kiviGroup is the group size of the paper's experiments.
const kiviGroup = 32

// Name returns "kivi2" or "kivi2:window=128".
func (k KIVI) Name() string {
	var args []string
	if k.Window != 0 {
		args = append(args, "window="+strconv.Itoa(k.Window))
	}
	return withArgs("kivi"+strconv.Itoa(k.Bits), args)
}

// Source names the paper.
func (k KIVI) Source() string {
	return "KIVI, arXiv 2402.02750; groups of 32, the exact window only where named"
}

// Compress implements Method.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrRange.
func (k KIVI) Compress(ctx context.Context, c *Context) (*Cache, error) {
	if k.Bits < 1 || k.Bits > 8 {
		return nil, fmt.Errorf("kvist/methods: %s: %d bits, want 1 to 8: %w", k.Name(), k.Bits,
			quant.ErrUnsupported)
	}
	perChannel := func(dst, src quant.Rows) (int64, error) {
		return affineChannels(dst, src, nil, k.Bits, kiviGroup)
	}
	perToken := func(dst, src quant.Rows) (int64, error) {
		return affineTokens(dst, src, nil, k.Bits, kiviGroup)
	}
	return eachHead(ctx, k, c, 0, k.Window, perChannel, perToken)
}

// affineChannels codes groups of tokens of one channel. It returns the bytes of codes, scales and
// minimums. It ignores values whose skip is true; skip may be nil.
func affineChannels(dst, src quant.Rows, skip []bool, bits, group int) (int64, error) {
	rows, dim := src.Len(), src.Dim
	for first := 0; first < rows; first += group {
		n := min(group, rows-first)
		for i := range dim {
			if err := affine(dst.Data, src.Data, skip, first*dim+i, n, dim, bits); err != nil {
				return 0, fmt.Errorf("channel %d, rows %d to %d: %w", i, first, first+n-1, err)
			}
		}
	}
	return codeBytes(rows*dim, bits) + 4*int64(ceilDiv(rows, group))*int64(dim), nil
}

// affineTokens is affineChannels for groups of channels of one token.
func affineTokens(dst, src quant.Rows, skip []bool, bits, group int) (int64, error) {
	rows, dim := src.Len(), src.Dim
	for r := range rows {
		for first := 0; first < dim; first += group {
			n := min(group, dim-first)
			if err := affine(dst.Data, src.Data, skip, r*dim+first, n, 1, bits); err != nil {
				return 0, fmt.Errorf("row %d, channels %d to %d: %w", r, first, first+n-1, err)
			}
		}
	}
	return codeBytes(rows*dim, bits) + 4*int64(rows)*int64(ceilDiv(dim, group)), nil
}

// affine codes and decodes the n values at, at+stride, ... with an f16 scale and an f16 minimum.
//
// Errors: quant.ErrRange for values that are not finite and scales out of the range of binary16.
func affine(dst, src []float32, skip []bool, at, n, stride, bits int) error {
	lo, hi := float32(math.Inf(1)), float32(math.Inf(-1))
	for i := at; i < at+n*stride; i += stride {
		if skip != nil && skip[i] {
			continue
		}
		if x := src[i]; x-x != 0 {
			return fmt.Errorf("value %g: %w", x, quant.ErrRange)
		}
		lo, hi = min(lo, src[i]), max(hi, src[i])
	}
	if lo > hi {
		return nil // all values are skipped
	}
	levels := float32(int(1)<<bits - 1)
	zero, err := halfOf(lo)
	if err != nil {
		return err
	}
	scale, err := halfOf((hi - lo) / levels)
	if err != nil {
		return err
	}
	for i := at; i < at+n*stride; i += stride {
		if skip != nil && skip[i] {
			continue
		}
		var q float32
		if scale > 0 {
			q = min(max(float32(math.RoundToEven(float64((src[i]-zero)/scale))), 0), levels)
		}
		dst[i] = float32(q*scale) + zero
	}
	return nil
}

// codeBytes returns the bytes of n codes.
func codeBytes(n, bits int) int64 { return (int64(n)*int64(bits) + 7) / 8 }

func ceilDiv(a, b int) int { return (a + b - 1) / b }
