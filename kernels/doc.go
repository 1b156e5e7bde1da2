// SPDX-License-Identifier: Apache-2.0

// Package kernels holds the CUDA sources of kvist, the PTX made from them, and the parameter structs
// that the kernels share with package cuda. It has no driver code and imports the standard library
// only.
//
// # Concepts
//
// The sources are in src. `make ptx` compiles each .cu file to one PTX file in ptx, with a pinned
// compiler that it downloads, and writes manifest.json: hashes of sources and PTX, flags and
// versions. Nothing else writes these files. The PTX is committed and embedded, so a build needs no
// CUDA. It requires compute capability 7.5 (8.0 for attend_mma.cu and attend_int8.cu) and PTX ISA 8.0. Drivers from 525
// (CUDA 12.0) load it and compile it for their device.
//
// Kernels distinguish formats at run time, not by entry: one launch holds jobs, or blocks, of mixed
// codings, because a launch costs more than a block. All threads of a warp take the same branch.
//
// # Entries
//
//	codec.cu    kvist_encode kvist_scales kvist_decode kvist_demote        CodecParams
//	attend.cu   kvist_attend_h1 _h2 _h4 _h8 kvist_combine                  AttendParams
//	            kvist_relevance                                            RelevanceParams
//	attend_mma.cu  kvist_attend_mma, with tensor cores                      AttendParams
//	attend_int8.cu kvist_attend_int8_d64 _d128, integers in tensor cores    AttendParams
//	surprise.cu kvist_residual                                             ResidualParams
//
// codec.cu and surprise.cu are compiled without fused multiply-add, and every sum has a fixed order:
// their results are those of the plain Go, bit by bit. The other kernels may fuse.
//
// # Layout
//
// Each entry takes one struct by value, declared in src/params.cuh and in params.go: fixed widths,
// pointers as uint64, named padding. A test compares sizes and offsets of both with each other and
// with the PTX.
//
// # Without a GPU
//
// Package emu compiles the same sources for the CPU behind a stand-in libcuda.so.1. Tests then run
// the unchanged launch path of package cuda, and every kernel, on any machine with g++. They cannot
// show races that need true concurrency, the order of memory accesses, or speed.
//
// # Determinism
//
// No kernel adds floats atomically: results do not depend on the order of thread blocks.
//
// # Concurrency
//
// All functions are pure.
package kernels
