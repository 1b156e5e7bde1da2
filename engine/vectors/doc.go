// SPDX-License-Identifier: Apache-2.0

// Package vectors is an index of embeddings: it stores rows at 1 to 6 bits a value and searches them in place.
//
// # Concepts
//
// [Calibrate] fits a coding to a sample: it takes off the mean, turns rows to their principal axes and gives
// every cell of 16 components 0 to 6 bits, where they lower the error of scores most. [Oblivious] needs no
// sample: it rotates rows at random and gives all components the same bits. Components are coded by a trellis
// (package quant/trellis). A factor for every row keeps the length of its deviation from the mean, and one
// number for all makes scores unbiased.
//
// [Index.Search] compares a query with codes in integers (package cpu/scan), then the best candidates in
// float32 with what their codes stand for, and, where there is a [Source], with the originals. A calibrated
// row of 192 components or more has a head where a part of them, at most 60 %, says nearly all about scores. A
// search compares the heads of all rows first and completes the best 200; [SearchOptions.Exhaustive] compares
// all. Vectors whose variance is spread too evenly have no head, and every search compares all of them.
//
//	row - mean --> principal axes --> / deviations --> trellis codes    head | tail | factor
//	query      --> principal axes --> * deviations --> int8             1: heads of all rows
//	                                                                    2: tails of the best
//	                                                                    3: float32, 4k candidates
//	                                                                    4: originals, if given
//
// # Layout
//
// Rows lie in tiles of 16, tiles in segments of 256; heads, tails, factors, norms and ids are arrays of their
// own. [Index.Save] writes them as they are, so that [Open] maps a file and searches it in place.
// engine/container/FORMAT.md has the tensors of a file.
//
// # Errors
//
// Those of package quant. An [IDError] names an id. A damaged file gives a *container.CorruptError and no
// index. What fails changes nothing.
//
// # Concurrency
//
// All methods may be called at once. A search sees the rows at its start and waits for nobody: changes write
// new memory and publish it whole. Changes wait for each other.
//
// # Determinism
//
// The same codes give the same scores on every machine. The codes of a row are the same for the same
// components; components are sums of float32 products, which plain Go rounds and AVX2 and AVX-512 fuse, so
// that a value that lies between two codes may be coded either way.
package vectors
