// SPDX-License-Identifier: Apache-2.0

// Package quanttest holds what tests of formats share: families of rows that provoke trouble,
// guarded buffers, tolerances with their derivation, and the conformance suite of a codec.
//
// # Concepts
//
// A Codec is anything that packs and unpacks rows; RunFormat holds it against the oracle of
// package quant over a matrix of codings, dims, row counts and row families. DecodeRotated is the
// oracle of backends that read rows without the inverse rotation.
//
// # Determinism
//
// Everything is drawn from a stated seed.
package quanttest
