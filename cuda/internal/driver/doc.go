// SPDX-License-Identifier: Apache-2.0

// Package driver calls the CUDA driver, libcuda, which it opens at run time without cgo or a
// toolkit. It is the only package that imports purego.
//
// # Concepts
//
// An API is an opened library: a table of symbols that Load finds, so that a missing symbol is an
// error and not a crash. Each method makes one driver call and converts its code to an *Error that
// names the call. Handles are plain numbers; the caller that creates one destroys it.
//
// Contexts belong to operating system threads. Callers of most methods must hold a locked thread
// with a current context (package cuda does).
//
// # Errors
//
// *Error for a nonzero code. It matches quant.ErrTooLarge if memory ran out and
// quant.ErrUnavailable otherwise. Load returns quant.ErrUnavailable.
//
// # Concurrency
//
// An API is immutable. The driver's own rules apply to its handles.
package driver
