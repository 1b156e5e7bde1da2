// SPDX-License-Identifier: Apache-2.0

// Package backendtest is the suite that every backend runs: RunBackend holds it against package
// quant, bit by bit where bytes and decoded floats are concerned, and against a slow oracle of
// attention and relevance in float64, within a derived tolerance.
//
// # Concepts
//
// The oracle knows rows only as quant.Decode gives them, in the original basis: it shares no code
// with any backend. Every span that a test hands out lies between canaries, and after every call
// the whole buffer is fetched: what was not an output must be as it was.
//
// What a backend does not support is skipped by its own word (Supports), and must then be refused
// with quant.ErrUnsupported.
//
// # Determinism
//
// All inputs are drawn from stated seeds. Tolerances and their derivation are in tolerance.go.
package backendtest
