// SPDX-License-Identifier: Apache-2.0

// Package driver calls the CUDA driver, libcuda, which it opens at run time: no cgo, no toolkit.
// It is the only package that imports purego.
//
// # Concepts
//
// An API is an opened library: a table of symbols, found when it is loaded, so that a missing one
// is an error and never a crash. Methods are thin: one call of the driver each, its code turned
// into an *Error that names the call. Handles are plain numbers; who makes one destroys it.
//
// Contexts belong to threads of the operating system: callers of most methods hold a locked
// thread with a context pushed (package cuda).
//
// # Errors
//
// *Error for a code that is not 0. It matches quant.ErrTooLarge where memory ran out and
// quant.ErrUnavailable otherwise. Load fails with quant.ErrUnavailable.
//
// # Concurrency
//
// An API is immutable; the driver's own rules hold for its handles.
package driver
