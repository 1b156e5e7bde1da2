// SPDX-License-Identifier: Apache-2.0

// Package quant defines the formats in which kvist stores rows, and the types that its packages share.
// Encode and Decode define, in plain scalar Go, the bytes of every coding and the values that they
// decode to. They are slow and meant to be read. Tests compare every faster implementation with
// them: packed bytes must be identical, floats within a derived tolerance. The package imports the
// standard library and quant/layout only.
//
// # Concepts
//
// A row is the K or V of one token in one KV head, a hidden state, or an embedding. A Format is the
// way in which the values of a row are stored, and a Coding is a format with its options. A Level
// tells how many rows of a block remain. A packed side is the bytes of all rows of a block for K,
// or for V.
//
// A coding transforms, quantizes and packs. The transform of the rotated formats is a randomised
// Hadamard transform (Rotation). A query is rotated once by the same map, which keeps inner products
// what they are in the original basis. The exact formats f32, f16 and bf16 and those of ggml are not
// rotated. So there are two bases, and attention keeps an accumulator for each.
//
// # Formats
//
//	name          bits  scale a row      stored as                              use
//	f32 f16 bf16  32/16 none             the values                             sinks, windows
//	u8            8     f16 or 8-bit log uniform, symmetric, rotated            sinks
//	lm1 .. lm4    1..4  f16 or 8-bit log nested Lloyd-Max, rotated              everything else
//	ggml-q8_0     8     f16 per 32       ggml's block_q8_0                      comparison, exchange
//	ggml-q4_0     4     f16 per 32       ggml's block_q4_0                      comparison, exchange
//	tqmse1 .. 4   1..4  f16 norm         Lloyd-Max, rotated, norm kept          comparison
//
// Options are written behind the name: "+len" or "+ip" choose the scale rule of lm1..lm4 (least
// squares without either), "+s8" 8-bit logarithmic row scales. The format names kivi2..4,
// tqprod2..4 and fp8 are reserved, and refused so far.
//
// # Layout of a packed side
//
// Little-endian; R rows of D values. All padding is zero and counted by PackedBytes.
//
//	f32 f16 bf16      [R*D values, row-major]
//	u8                [R*D bytes, row-major, padded to 8][scales]
//	lm<b>, tqmse<b>   [plane 0][plane 1]..[plane b-1][scales]
//	ggml              [R*D/32 groups of 34 or 18 bytes, row-major]
//
//	plane p           R*D/8 bytes padded to 8: bit b-1-p of every code. Value i of row r is bit
//	                  i%8 of byte r*D/8 + i/8. Plane 0 holds the highest bits.
//	scales, f16       R x binary16
//	scales, +s8       float32 base (the largest scale of the block), then R x u8 k:
//	                  scale = base * 2^(-k/16), 255 = zero (layout.Log8Scale)
//
// Scales stand last and planes start with the highest bits, so that a demotion keeps a prefix
// of the planes where it is and writes new scales behind it.
//
// # The nested family lm1..lm4
//
// Codes of fewer bits are prefixes of codes of more: all four use thresholds of one set, built
// on the optimal 3-bit Lloyd-Max quantizer of a Gaussian. Centroids are small integers in units
// of 1/64 of the row scale. So sums over centroids are exact in any order, attention may use
// int8 products, and Demote needs no original. Per row of rotated values y:
//
//	e      exponent of max|x|, in [-120, 126]; y is of x * 2^-e
//	xx     tree sum of float32(y*y);  sigma = float32(sqrt(float32(xx/D)))
//	code   sign bit (0 for y < 0) on top; below it the number m of thresholds float32(t*sigma)
//	       that |y| reaches, complemented for y < 0
//	xc     tree sum of float32(y*c), c the integer centroid;  cc = exact integer sum of c*c
//	scale  64 * 2^e * { xc/cc  least squares;  sqrt(xx/cc)  +len;  xx/xc  +ip }
//
// Relative squared error of long Gaussian rows (least squares; RelativeError for the other
// rules), and the price of nesting against separate optimal quantizers:
//
//	lm1 0.3634 (0 %)   lm2 0.1184 (0.8 %)   lm3 0.0345 (0 %)   lm4 0.0096 (1.1 %)
//
// Rows of 64 values lie 1-8 % below, because the scale is fitted to the row.
//
// # Rotation of other lengths
//
// Dims that are no power of two are rotated in windows, 80 = 64 + 16, under one scale a row. A
// channel then spreads over its window only, so that the windows of a row can differ in energy.
// TestRotation_MassiveChannel bounds the error of lm4 by 0.0135 wherever a massive channel is.
// DESIGN.md in this folder has the measurements of other ways to mix windows.
//
// # Row bias
//
// A coarsely coded row of K has a noisy score. The noise raises the row's share of attention, because
// E[exp(noise)] = exp(variance/2). RowBias corrects it: it is minus half the variance of the score.
// The error energy of a value is NoisePerScale2 * scale^2, the same in all directions after the
// rotation, so the variance of q.k is |q|^2 times that. No bytes need to be stored for it.
//
// # Gather
//
// Gather joins rows of packed sides in a new side without decoding them. It copies codes and scales.
// Only 8-bit logarithmic scales of sides with different bases are rounded again.
//
// # Order of sums, rounding
//
// Sums that decide bytes are tree sums: with P the power of two from n up, x[i] += x[i+h] for
// h = P/2 ... 1 where i+h < n. The butterflies of the rotation run with ascending strides. Every
// product that meets an addition is rounded to float32 first, so that no compiler fuses them.
// Conversions round half to even. The bytes are the same on every machine.
//
// # NaN, infinities, range
//
// Exact formats keep NaN and Inf; finite values beyond their range are refused. All other
// codings refuse rows with NaN or Inf and magnitudes above 2^111 (RowError, ErrRange), and f16
// row scales above 65504: a finite row never decodes to an infinity. Row scales below
// 2^-25 round to zero in f16 (absolute error under 2^-22 a value). With +s8 they do not; the
// smallest scale is about 2^-16 of the largest of the block.
//
// # Errors
//
// Category errors (ErrShape and so on) are declared here for all packages; test with errors.Is.
//
// # Concurrency
//
// All functions are pure; a Rotation is immutable.
package quant
