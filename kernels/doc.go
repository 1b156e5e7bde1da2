// SPDX-License-Identifier: Apache-2.0

// Package kernels holds the CUDA sources of kvist, the PTX made from them, and the parameter
// structs that tie both to the launchers of package cuda. It holds no driver code and imports the
// standard library only.
//
// # Concepts
//
// src/ are the sources. `make ptx` compiles each .cu to one PTX of ptx/, with a pinned compiler
// that it fetches, and writes manifest.json: the hashes of sources and PTX, flags and versions. It
// is the only writer. The PTX is committed and embedded, so that a build needs no CUDA at all. It
// asks for compute capability 7.5, attend_mma.cu for 8.0, and PTX ISA 8.0: drivers from 525 on
// (CUDA 12.0) load it, and compile it for their device.
//
// Formats are told apart at run time, not by entry: one launch holds jobs, or blocks, of mixed
// codings, because a launch costs more than a block. The switch is uniform over a warp.
//
// # Entries
//
//	codec.cu    kvist_encode kvist_scales kvist_decode kvist_demote        CodecParams
//	attend.cu   kvist_attend_h1 _h2 _h4 _h8 kvist_combine                  AttendParams
//	            kvist_relevance                                            RelevanceParams
//	attend_mma.cu  kvist_attend_mma, with tensor cores                      AttendParams
//	scan.cu     kvist_scan                                                 ScanParams
//	            kvist_top                                                  TopParams
//	surprise.cu kvist_residual                                             ResidualParams
//
// codec.cu and surprise.cu are compiled without contraction of products and sums, and every sum has
// its written order: their results are those of the plain Go, bit by bit. The others may contract.
//
// # Layout
//
// Each entry takes one struct by value, declared in src/params.cuh and again in params.go. Fixed
// widths, pointers as uint64, padding named. The test of the ABI compares sizes and offsets of
// both with each other and with the PTX.
//
// # Without a GPU
//
// emu/ compiles the same sources for the processor behind a stand-in libcuda.so.1, so that package
// cuda's unchanged launch path and every kernel run in tests on any machine with g++. What it
// cannot show: races that need true concurrency, the order of memory, and speed.
//
// # Determinism
//
// No kernel adds floats atomically: results do not depend on the order in which thread blocks run.
//
// # Concurrency
//
// All functions are pure.
package kernels
