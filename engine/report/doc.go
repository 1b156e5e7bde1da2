// SPDX-License-Identifier: Apache-2.0

// Package report looks at .kvist files and changes nothing: what is in a file, and what it lost against its
// original. It is what verify, inspect and report of the command line show.
//
// # Concepts
//
// Compare holds a file against the capture it was made from, a layer at a time: errors of rows, the
// future-attention error, and beside every mean the worst head and token. Build collects sizes, codings and a map of
// bits over tokens; AddWhy adds why every block has its bits (kvfile.Explain).
//
// # Errors
//
// quant.ErrShape where file and capture do not belong together; quant.ErrCorrupt for side tensors that differ;
// *container.CorruptError, *capture.FormatError; those of the backend.
//
// # Concurrency
//
// Calls are independent of each other.
package report
