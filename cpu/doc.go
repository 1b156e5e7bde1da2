// SPDX-License-Identifier: Apache-2.0

// Package cpu is the backend that runs everywhere: no cgo, no device, plain Go where there is no
// assembly for the processor.
//
// # Concepts
//
// Open returns a backend.Backend for one instruction set. Which one is decided there, for this
// backend alone: tests open several side by side.
//
//	generic  plain Go, on every machine and with the tag noasm
//	avx2     amd64 with AVX2, FMA and F16C
//	avx512   amd64 with AVX-512 F, BW, VL, DQ, VBMI, VNNI, GFNI and VPOPCNTDQ (Ice Lake, Zen 4 and later)
//
// ISAs lists those that this build has and this machine runs; the best is taken where neither
// Options.ISA nor KVIST_CPU says otherwise. arm64 runs the plain Go.
//
// The kernels are in cpu/internal/attend (attention, relevance) and cpu/internal/codec (encode,
// decode, demote): plain Go, and assembly written by the generator in cpu/internal/_gen. Each is
// held against package quant, or against float64, on every instruction set. Encode makes the bytes
// of quant.Encode; rows that it refuses, and the codings for comparison (ggml's, tqmse, f32 to
// f16), go to package quant itself.
//
// In Attend and Relevance, a tile of 32 rows is unpacked once, in the basis it is stored in, and
// met by every query head that lists it: the heads of the group, and those of neighbouring
// queries with the same list. Row scales are left out of the tile: those of K multiply scores,
// those of V multiply weights. AVX-512 keeps the centroids of lm1..lm4 and the codes of u8 as
// bytes and multiplies them as integers; for rows of 64 values and up to three heads it makes no
// tile. Plain Go looks the inner products with lm1..lm4 up, in tables of sums of eight signed
// values, where a group has up to four heads and a list 256 rows. Attend makes one pass with an
// online softmax. Scratch depends on the queries and the workers, never on the length of the
// context.
//
// # Accuracy
//
// Everything is float32 but what runs on over a long context. Inner products and scores are
// float32, exp is within four units of the last place, and weighted rows are added up in float32
// over at most 128 rows before they are folded into float64, as are the sums of weights: so the
// error does not grow with the context.
//
// Where rows are bytes, queries and weights are integers of 24 bits in three digits, and sums of
// products are exact. A query's value is off by at most its largest value's 2^-24th part, so an
// inner product by at most sqrt(head_dim)*2^-24*|q||k|, less than float32 sums may be. A weight is
// off by the 2^-24th part of the largest in its tile, so a sum over a tile by at most 31*2^-24 of
// the largest weight times the largest centroid: some eight float32 roundings of that row, where
// the tolerance has 128. Two digits would save a third of the products and leave the tolerance
// that package backendtest derives, several times over in the worst case.
//
// # Speed
//
// Attention over codes of 8 bits and fewer is bound by the vector ports of a core, not by memory:
// fewer bits cost less up to there and no less below. What bounds it on AVX-512, for a row of K
// and one of V of 64 values and three query heads, where a core starts one multiplication of 64
// bytes a cycle (Zen 4, of 512 bits; two on server cores with two such ports):
//
//	inner products    3 heads * 3 digits                      9 VPDPBUSD
//	weighted sums     3 heads * 3 digits                      9 VPDPBUSD
//	bit transpositions, digits put together, exp              7 on the same two ports
//
// That is 25 cycles, 6.8 ns at 3.7 GHz, of which the kernels reach three quarters; what goes on for
// every tile and block in Go comes on top, a third of the whole for blocks of 32 rows. For one head
// the 6.5 byte permutations of a row pair bind, not the 6 products.
//
// Aims that are missed, in bench/results/cpu.md: 10 ns a row pair in lm3 for three heads of 64 values (15);
// 2.5 times as quick as f16 from memory (2.1, 2.4 for one head); 60 % of what a core reads for one head
// (f16 and u8 42 %, lm4 28 %, lm3 20 %, on a core that reads 23 GB/s; f16 took 93 % of 8.7 GB/s on
// another); plain Go within 8 times of AVX-512 (9).
//
// Sides in planes are asked for a tile ahead: from memory that takes a sixth off, in the nearest
// caches it costs a fifteenth. What plain Go does for a row pair is bound by instructions: one for
// every product of V, two for its sum, and one load and addition for eight values of K.
//
// # Errors
//
// Those of package backend. Messages begin with kvist/cpu.
//
// # Concurrency
//
// All methods may be called at once. A call works on the caller's goroutine, and takes up
// to Workers-1 more from a set that all calls of the backend share. No goroutine outlives a call.
// Encode and Decode share large jobs among them, in parts of some 65,000 values.
//
// # Determinism
//
// How work is cut into pieces, and the order in which pieces are combined, depend on the call's
// arguments only. Results have the same bits for any number of workers, and a query's result
// does not depend on the other queries of the call. Instruction sets give other bits than each
// other in Attend and Relevance, within the tolerance, and the same in Encode, Decode and Demote.
package cpu
