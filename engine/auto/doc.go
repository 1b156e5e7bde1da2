// SPDX-License-Identifier: Apache-2.0

// Package auto opens the best backend of a machine and says why it chose that one. It is the only
// package that knows every backend; the packages above take a backend.Backend as an argument.
//
// # Concepts
//
// A Candidate is a backend that kvist has, with whether it is usable on this machine and the
// reason. Probing opens the CUDA driver and its best device, runs the self-test and closes the
// device again. If that fails, system files (the driver's version, device files, folders that may
// hold the library) help to explain why.
//
// A binary that imports this package is linked dynamically, because it may open libcuda.so.1. A
// server that must stay static imports package cpu instead, or is built with the tag nocuda.
//
// Open returns an error for a named backend that is not usable; it does not fall back. Only "auto"
// falls back. It then puts the reason into Caps.Reason of the backend and logs it once.
//
// # Errors
//
//	quant.ErrUnavailable  the named backend is not usable on this machine or in this build
//	quant.ErrUnsupported  no backend has that name
//
// # Concurrency
//
// All functions are safe for concurrent use.
package auto
