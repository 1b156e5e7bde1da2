// SPDX-License-Identifier: Apache-2.0

// Package args checks the arguments of the verbs of a backend: the part of the contract that all
// backends share. What differs between them, how a span becomes memory, is a function that the
// backend hands in. A caller of a backend has no use for this package.
//
// # Errors
//
// Those of package backend: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge, and what
// the backend's own function returns. They name the argument; the backend adds verb and job.
//
// # Concurrency
//
// All functions are pure but for the function handed in.
package args
