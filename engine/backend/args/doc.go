// SPDX-License-Identifier: Apache-2.0

// Package args checks the arguments of a backend's methods, so that all backends check the same.
// Only the step from a span to its memory differs between backends; the backend passes it as a
// function. Only backends need this package.
//
// # Errors
//
// The errors are those of package backend: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge,
// and those of the backend's own function. They name the argument; the backend adds method and job.
//
// # Concurrency
//
// All functions are pure, apart from the function that the backend passes.
package args
