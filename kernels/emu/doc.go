// SPDX-License-Identifier: Apache-2.0

// Package emu builds the stand-in for libcuda.so.1: the CUDA sources of package kernels, compiled
// for the CPU, behind the driver interface. Tests pass its path to package cuda, whose launch path
// is then the same as on a GPU. It is for tests only.
//
// # Concepts
//
// src/fiber.cc runs a kernel: one fiber per CUDA thread, one thread block after another.
// src/driver.cc is the driver: it runs streams lazily, guards device memory, compares parameter
// sizes with the PTX, fails on demand, and counts leaks. src/emu.h is the part of CUDA C++ that the
// kernels use; src/tensor.cc has exact twins of the tensor cores' integer products, and of copies that
// land late or early. src/twins.cc compares the twins with the definitions of the PTX ISA.
//
// The stand-in shows that results are right and errors are handled. It does not show races that
// need true concurrency, the order of memory accesses, alignment that only a GPU requires, or
// speed.
//
// # Errors
//
// None. If the stand-in cannot be built, the test is skipped with the reason, or fails if the
// variable KVIST_REQUIRE names emu.
//
// # Concurrency
//
// Several processes may call Build at the same time.
package emu
