// SPDX-License-Identifier: Apache-2.0

// Package cold writes and reads the archive form of a file: rows of an input coded by package archive.
//
// # Concepts
//
// A Writer prices the errors of heads and puts tokens in classes (Measure), takes basis and tables from a
// profile, with its predictors if there are any and the file is not of stages, or fits them to the rows, and
// searches for the steps whose file is of so many bytes (Write). A sample of the rows tells how bytes go with the
// step; records are then encoded in batches, and the steps of the rest follow what is left. WriteLossless keeps every
// row as it is stored.
//
// Of a layer with a window, a record holds the tokens of its segment that a query behind the cache can see; where
// there are none it is in hot form, dropped. Rows returns zeros in the place of the others.
//
// OpenCodec and Rows decode what a file holds. A Truncator makes a file smaller without decoding it.
//
// # Errors
//
// *OverError for a size that cannot be met; *profile.MissingError for a file whose profile is not at hand;
// *container.CorruptError for damage, which names the record; quant.ErrRange for rows that cannot be coded.
//
// # Concurrency
//
// Measure may be called for several layers at once; everything else of a Writer belongs to one goroutine.
// Functions that decode are safe for concurrent use, each call with a Room of its own.
//
// # Determinism
//
// The same input, settings and profile give the same bytes, whatever the number of cores.
package cold
