// SPDX-License-Identifier: Apache-2.0

// Package attend holds the kernels of attention over packed rows, for every instruction set:
// unpacking a tile of rows for all query heads, inner products, the online softmax, weighted sums,
// and the sums of Relevance. Only package cpu uses it.
//
// # Concepts
//
// A tile is up to TileRows rows as float32 without their row scales, which enter the scores and the
// weights instead. Each instruction set chooses the order of a tile's values (Layout) and pads rows
// (PadDim). Arrange brings queries into that order, and Restore brings sums back. Generic keeps rows
// as they are.
//
// AVX-512 turns codes in bit planes into floats without a lookup per value. VPERMB collects bytes of
// the planes, an 8 x 8 bit transposition (GF2P8AFFINEQB) makes codes of four bits from them, and
// VPERMPS uses the codes as indices into a table in a register. For K, four rows share a vector,
// which makes the horizontal sums of inner products cheap.
//
// Integer centroids (lm1..lm4, u8) need not become floats. Tiles of bytes (bytes.go) are multiplied
// with queries and weights in three digits of eight bits. VPDPBUSD makes four times the products of
// a float32 instruction, a third more after counting digits, and a tile of bytes takes a quarter of
// the stores. Plain Go has no such instruction and avoids products instead (tables.go).
//
// # Errors
//
// None: callers check arguments. A slice that is too short causes a panic before the assembly runs.
//
// # Concurrency
//
// Kernels are immutable. Concurrent calls must not share outputs.
//
// # Determinism
//
// Unpack, Scales and Fold give the same bits on every instruction set, apart from the layout. The
// sums of Dots and Accumulate, and of their variants for bytes and tables, have an order per
// instruction set. The order depends on the lengths only, not on the number of heads.
package attend
