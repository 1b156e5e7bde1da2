// SPDX-License-Identifier: Apache-2.0

// Package backendtest is the conformance suite of backends. RunBackend compares a backend with
// package quant, bit by bit for packed bytes and decoded floats, and with a slow float64 reference
// of attention and relevance, within a derived tolerance.
//
// # Concepts
//
// The reference uses rows as quant.Decode returns them, in the original basis; it shares no code
// with any backend. Every span that a test passes lies between canaries. After a call the test
// downloads whole buffers: everything except the outputs must be unchanged.
//
// A test skips what Supports denies, and checks that the backend refuses it with
// quant.ErrUnsupported.
//
// # Determinism
//
// All inputs come from fixed seeds. tolerance.go derives the tolerances.
package backendtest
