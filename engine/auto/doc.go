// SPDX-License-Identifier: Apache-2.0

// Package auto opens the best backend that a machine has, and says why it is that one. It is the
// one place that knows every backend; packages above take a backend.Backend as an argument.
//
// # Concepts
//
// A Candidate is a backend that kvist knows, whether it can be used here, and the reason.
// Probing looks at files only: it loads no driver into the process and opens no device, so that
// it cannot hang or crash on a broken installation.
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
