// SPDX-License-Identifier: Apache-2.0

// Package matmul multiplies matrices on the CPU: what a language model needs for its linear layers
// and its attention, with weights in float32 and in the quantized types of GGUF.
//
// # Concepts
//
// An [Engine] is opened for one instruction set and a number of workers. Weights lie as
// [n, k], one row per output feature, as checkpoints store them; every product is
// c[m, n] = a[m, k] . w[n, k]^T.
//
//   - [Engine.F32]: weights and activations in float32.
//
//   - [Engine.Q8Exact], [Engine.Q4Exact]: weights in 8 or 4 bits, expanded to float32 tile by
//     tile; activations stay float32. The result is that of F32 on the expanded weights
//     ([Q8Matrix.Row]), bit for bit.
//
//   - [Engine.Q8], [Engine.Q4]: activations too are quantized, per row and per group of 32
//     along k, to int8 with one scale; products are summed as integers within a group.
//
//   - [Engine.Exact], [Engine.Fast]: the same two kinds of product for a [Matrix], whose [Form] says how
//     weights of 2 to 6 or 8 bits are stored: every quantized type of GGUF has one.
//
//   - [Engine.Panels], [Engine.ExpSum], [Engine.Largest]: the parts of exact attention.
//
// Activation error: a group's scale is s = max|a|/127, its codes are round(a/s), so each
// activation moves by at most s/2 (and float rounding), each product sum of a group by at
// most s/2 * sum|w|. Normally distributed activations move by about 0.5 % of their root mean
// square, and so does c relative to its own where weights and activations are independent.
// Groups whose largest magnitude is below 2^-100 count as zero; a group that holds a NaN or an
// infinity makes its row of c NaN.
//
// # Layout
//
// Packed weights are panels of 16 outputs, the last one padded with zeros. Per panel and group
// of 32 inputs:
//
//	8 bits  512 bytes: 8 vectors of 64 bytes; vector q, bytes 4j..4j+3: inputs 4q..4q+3 of output j
//	4 bits  256 bytes: 4 such vectors; low nibble input 4q+b, high nibble input 4(q+4)+b
//	scales  16 float32, mins (4 bits) 16 float32
//
// so that no kernel needs a sum across lanes. Weights of a Q4Matrix take 6 bits each, of a Q8Matrix 9.
//
// A Matrix has 64*bits bytes of codes per panel and group, in planes of 4, 2, 1 or 8 bits of every code:
//
//	2 bits  a plane of 2            5 bits  the lower 4, then the upper 1
//	3 bits  the lower 2, then 1     6 bits  the lower 4, then the upper 2
//	4 bits  a plane of 4            8 bits  a plane of 8, signed
//
// A plane of width p has p vectors. Byte 4j+b of vector i holds, in bits p*f to p*f+p-1, input
// 4(i+p*f)+b of output j. Bases are 16 binary16 numbers (float32 in wide forms) per panel and span,
// their multiples 16 int8 per panel and step. A weight takes 1.00 to 1.19 times its bytes in a file.
//
// # Errors
//
// quant.ErrShape: slices too short, negative or overflowing sizes, k not a multiple of 32, a nil
// matrix. quant.ErrRange: a code that a form does not have. quant.ErrUnsupported: an instruction set that
// this build does not know. quant.ErrUnavailable: one that this machine lacks. Slices may be
// longer than needed; what lies beyond is not touched. On an error nothing was written.
//
// # Concurrency
//
// All methods of an Engine and of matrices may be called from any number of goroutines.
// Helper goroutines live for one call; all calls of one Engine together use at most
// Workers-1 of them beside the callers. In the steady state no call allocates.
//
// # Determinism
//
// Work is divided over rows and outputs, never over k, and an element of c is computed in the
// same order whatever tile it falls in. So c does not depend on the number of workers, and row
// i of c depends on row i of a alone: a prompt in one call or token by token gives the same
// bits. The orders are:
//
//	F32, exact  acc = 0; for i in [0, k): acc += a[i]*w[i]
//	weights     w = float32(scale*code) + min, rounded after each step
//	Q8, Q4      acc = 0; for each group: acc += float32(sum) * float32(scaleW*scaleA);
//	            4 bits: acc += min * float32(scaleA*sumA), where sumA is the sum of the codes
//	Exact       as F32, on the rows of the matrix; Panels as F32
//	Fast        acc = 0; for each step: acc += float32(sum) * float32(scaleW*scaleA);
//	            with minima: acc += min * float32(scaleA*sumA), of the inputs of the step
//	Dot, ExpSum 32 sums, element i to sum i%32; then sum j += sum j+h for h = 16, 8, 4, 2, 1
//	Axpy        dst[i] += x*src[i]
//
// avx2 and avx512 fuse each "+=" with its product, and agree bit for bit. The plain Go twin
// ("generic") rounds the product first: results differ from the fused ones by at most
// k * 2^-23 * sum|a||w| (number of groups in place of k for Q8 and Q4), typically far less.
// Activation codes, scales and integer sums are the same on every instruction set.
package matmul
