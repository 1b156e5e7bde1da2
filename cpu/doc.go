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
//	avx512   amd64 with AVX-512 F, BW, VL, DQ, VBMI and GFNI (Ice Lake, Zen 4 and later)
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
// those of V multiply weights. Attend makes one pass with an online softmax. Scratch depends on
// the queries and the workers, never on the length of the context.
//
// # Accuracy
//
// Everything is float32 but what runs on over a long context. Inner products and scores are
// float32, exp is within four units of the last place, and weighted rows are added up in float32
// over at most 128 rows before they are folded into float64, as are the sums of weights: so the
// error does not grow with the context. Queries are not quantized: 8-bit products would save a
// fifth of the work for K and leave the tolerance that package backendtest derives.
//
// # Speed
//
// Where codes are 4 bits and fewer, attention is bound by the two vector ports of a core, not by
// memory: fewer bits cost less up to there and no less below. bench/results/cpu.md has the
// figures.
//
// # Errors
//
// Those of package backend. Messages begin with kvist/cpu.
//
// # Concurrency
//
// All methods may be called at once. A call works on the caller's goroutine, and takes up
// to Workers-1 more from a set that all calls of the backend share. No goroutine outlives a call.
//
// # Determinism
//
// How work is cut into pieces, and the order in which pieces are combined, depend on the call's
// arguments only. Results have the same bits for any number of workers, and a query's result
// does not depend on the other queries of the call. Instruction sets give other bits than each
// other in Attend and Relevance, within the tolerance, and the same in Encode, Decode and Demote.
package cpu
