// SPDX-License-Identifier: Apache-2.0

// Package blocks takes packed blocks from the records of a .kvist file into the memory of a backend, and back
// to rows.
//
// # Errors
//
// Those of package quant and the backend.
//
// # Concurrency
//
// All functions may be called by many goroutines, for different uploaders.
package blocks
