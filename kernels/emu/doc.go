// SPDX-License-Identifier: Apache-2.0

// Package emu builds the stand-in for libcuda.so.1: the CUDA sources of package kernels, compiled
// for the processor, behind the driver interface. Tests hand its path to package cuda, whose
// launch path is then the same as on a GPU. It is for tests only; no product runs on it.
//
// # Concepts
//
// src/fiber.cc runs a kernel: one fiber a CUDA thread, one thread block after another. src/driver.cc
// is the driver: streams that run lazily, guarded device memory, the sizes of parameters held
// against the PTX, failures on demand, and a count of what leaks. src/emu.h is the part of CUDA
// C++ that the kernels use.
//
// The stand-in shows that results are right and that errors are handled. It does not show races
// that need true concurrency, the order of memory, alignment that only a GPU demands of single
// accesses wider than the checks of the compiler, or speed.
//
// # Errors
//
// None: where it cannot be built the test is skipped with the reason, or fails where the variable
// KVIST_REQUIRE names emu.
//
// # Concurrency
//
// Build may be called from many processes at once.
package emu
