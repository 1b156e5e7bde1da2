// SPDX-License-Identifier: Apache-2.0

// Package cpu is the backend that runs everywhere: plain Go, no cgo, no device.
//
// # Concepts
//
// Open returns a backend.Backend for one instruction set. Which one is decided there, for this
// backend alone: tests open several side by side. "generic" is the plain Go that every machine
// has.
//
// Encode and Demote call the reference of package quant, one job to a worker at a time, so their
// bytes are right by construction. Decode, Attend and Relevance unpack with kernels of their own,
// which tests hold against quant bit by bit.
//
// In Attend and Relevance, a tile of 32 rows is unpacked once, in the basis it is stored in, and
// met by every query head that lists it: the heads of the group, and those of neighbouring
// queries with the same list. Attend makes one pass with an online softmax. Inner products and
// the sums over a tile are float32; everything that runs on over a long context (maximum, sum of
// weights, output) is float64, so that the error does not grow with the context. Scratch depends
// on the queries and the workers, never on the length of the context.
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
// does not depend on the other queries of the call.
package cpu
