// SPDX-License-Identifier: Apache-2.0

// Package codec holds the kernels of encoding, decoding and demotion: the randomised Hadamard
// rotation, quantization to bit planes, and their inverses, for every instruction set. Only
// package cpu uses it.
//
// # Concepts
//
// The bytes are those of package quant, bit by bit, and so are decoded floats: each kernel does
// the same float32 operations in the same order, or operations whose result is the same (a product
// with +-1 or a power of two, integer sums in another order). What quant refuses is found here,
// and left to quant to name: Encode then reports false.
//
// Rows are worked on in tiles of tileRows. A row of a tile takes a multiple of 16 values, zeros
// behind its own: sums in the order of the formats do not change by them.
//
// # Errors
//
// None: callers check. Slices that are too short panic; the assembly never sees them.
//
// # Concurrency
//
// Kernels and rotations are immutable; a Worker belongs to one goroutine at a time.
//
// # Determinism
//
// The same bits on every instruction set.
package codec
