// SPDX-License-Identifier: Apache-2.0

// Package auto opens the best backend that a machine has, and says why it is that one. It is the
// one place that knows every backend; packages above take a backend.Backend as an argument.
//
// # Concepts
//
// A Candidate is a backend that kvist knows, whether it can be used here, and the reason.
// Probing opens the CUDA driver and its best device, runs the self-test, and closes it again.
// Where that fails, files of the system (the driver's version, device files, folders that may hold
// the library) help to say why.
//
// A binary that holds this package is linked dynamically, for it may open libcuda.so.1. A server
// that wants to stay static imports package cpu instead.
//
// Open by name never falls back: a name that cannot be used is an error. Only "auto" does, and
// then the reason is in Caps.Reason of the backend it returns, and in the log, once.
//
// # Errors
//
//	quant.ErrUnavailable  the backend asked for cannot be used on this machine or by this build
//	quant.ErrUnsupported  no backend has that name
//
// # Concurrency
//
// All functions may be called at once.
package auto
