// SPDX-License-Identifier: Apache-2.0

// Package gorgoniacu lets kvist's CUDA backend and programs on gorgonia.org/cu use each other's
// device memory without a copy. It is a module of its own, behind the build tag gorgoniacu and cgo,
// because gorgonia.org/cu needs cgo and the headers of the CUDA toolkit (11 or 12; it does not compile
// against those of 13), and ends the process where there is no driver. Nothing else of kvist
// imports it.
//
// # Concepts
//
// Both sides must work in one context: the primary context of the backend's device. Context returns
// it for Gorgonia. Ptr is the device address of a span of kvist's; Adopt makes a buffer of memory
// that Gorgonia allocated, for Encode, Decode and Attend to read and write in place.
//
// # Concurrency
//
// kvist's calls are done with memory when they return. Gorgonia's stream that writes to shared
// memory must be synchronized before the next call that reads it.
//
// # Status
//
// Compiled against the headers of CUDA 11.8 by make check-gorgonia, without a linked driver. The
// calls it stands on, cuda.Backend.Address and Adopt, are tested with the stand-in driver. No GPU has
// run it.
package gorgoniacu
