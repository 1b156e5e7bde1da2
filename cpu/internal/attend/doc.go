// SPDX-License-Identifier: Apache-2.0

// Package attend holds the kernels of attention over packed rows: unpacking a tile of rows once
// for all query heads, inner products, the online softmax, weighted sums, and the sums of
// Relevance, for every instruction set. Only package cpu uses it.
//
// # Concepts
//
// A tile is up to TileRows rows as float32 without their row scales, which enter the scores and
// the weights instead. Each instruction set chooses the order of a tile's values (Layout) and
// pads rows (PadDim); queries are arranged likewise (Arrange), and sums put back in order
// (Restore). Generic has rows as they are.
//
// AVX-512 turns codes in bit planes into floats without a lookup per value: bytes of the planes
// are brought together (VPERMB), an 8 x 8 bit transposition (GF2P8AFFINEQB) makes codes of four
// bits of them, and these index a table in a register (VPERMPS). For K the order is such that
// four rows lie in one vector, which makes the horizontal sums of inner products cheap.
//
// Centroids that are integers (lm1..lm4, u8) need not become floats: tiles of bytes (bytes.go) meet
// queries and weights in three digits of eight bits. VPDPBUSD makes four times the products of a
// float32 instruction, so a third more after digits are counted, and such a tile takes a quarter of
// the stores. Plain Go has no such instruction, and avoids products instead (tables.go).
//
// # Errors
//
// None: callers check. Slices that are too short panic; the assembly never sees them.
//
// # Concurrency
//
// Kernels are immutable. Outputs must not be shared between calls in flight.
//
// # Determinism
//
// Unpack, Scales and Fold give the same bits on every instruction set, up to the layout. The
// sums of Dots and Accumulate, and of their kin for bytes and tables, have an order of their own per
// instruction set, which depends on nothing but the lengths: not on how many heads are worked on
// together.
package attend
