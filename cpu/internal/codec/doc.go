// SPDX-License-Identifier: Apache-2.0

// Package codec holds the kernels of encoding, decoding and demotion, for every instruction set: the
// randomised Hadamard rotation, quantization to bit planes, and their inverses. Only package cpu
// uses it.
//
// # Concepts
//
// The bytes, and the decoded floats, are those of package quant, bit by bit. Each kernel does the
// same float32 operations in the same order, or operations with the same result (a product with +-1
// or a power of two, integer sums in another order). A kernel detects rows that quant refuses;
// Encode then reports false and the caller asks quant for the error.
//
// Rows are processed in tiles of tileRows. A row of a tile has a multiple of 16 values; zeros follow
// its own. These zeros do not change the sums in the order of the formats.
//
// # Errors
//
// None: callers check arguments. A slice that is too short causes a panic before the assembly runs.
//
// # Concurrency
//
// Kernels and rotations are immutable. A Worker belongs to one goroutine at a time.
//
// # Determinism
//
// Results are the same bits on every instruction set.
package codec
