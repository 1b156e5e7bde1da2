// SPDX-License-Identifier: Apache-2.0

// Package cuda is the CUDA backend: the kernels of package kernels, launched through libcuda,
// which is opened at run time. No cgo, no toolkit; a binary that holds this package runs on
// machines without a GPU, where Open says why not.
//
// Status: every kernel runs in tests through the stand-in driver of kernels/emu, which holds it
// against the oracle. No GPU has run it yet: nothing is claimed about its speed.
//
// # Concepts
//
// Packed blocks live in device memory: a Buffer is one allocation. A verb checks its arguments on
// the host, takes a lane (a stream, pinned staging memory and scratch on the device, all of them
// kept for the next call), sends what the kernels need to know in one copy, launches, and waits.
//
// Attend: neighbouring queries with one list of blocks share a unit of up to 8 heads, for which
// rows are unpacked once. Lists are cut into pieces that depend on nothing but the list, so that
// results do not change with what else is in a batch. Blocks whose V is in the original basis and
// blocks whose V is rotated go to different pieces, and are combined last.
//
// Options.TensorCores brings in a twin of attention for compute capability 8.0 on. It keeps the
// same tolerance: queries and weights are split into two binary16 numbers each, in rows of the
// product that would be idle otherwise. It is off until a GPU has shown that it is right and pays.
// What bytes and counted instructions allow on paper is in bench/results/cuda-roofline.md.
//
// A call that has started is not interrupted: its context is looked at between launches.
//
// Search scores every row with every query, and keeps the largest keys: product and row in 64 bits,
// sorted 2,048 at a time until one list is left (at most MaxSearchDim values a row).
//
// Learning what Surprise (package importance) predicts by has no kernel: row t is predicted by what was
// learnt up to row t-1, one row after the other, and as a weight it was measured not to pay. What can be
// done for all rows at once has one: Residuals, how far rows are from a linear prediction by the rows
// before them; the running mean and the codebook of Surprise are not in it. Nor is there
// a path of compute_90a: what bounds attention on paper is unpacking, 5 to 7 instructions a value
// (bench/results/cuda-roofline.md), not products or loads. wgmma would take K and V from shared memory, so
// that every value unpacked is written there and read again, where mma.sync takes it from registers; the
// tensor memory accelerator would save the few instructions that loads of packed planes are. Time on a
// GPU, of kvist_attend_mma against kvist_attend_h8 and of loads that wait, has to say whether that is so.
//
// # Memory
//
// Caps.Memory bounds the buffers. Beside them each of the 4 lanes keeps scratch on the device: 1 MiB
// at first, as much as its largest call needed later (parts of attention are bounded by 64 MiB a
// launch), and as much pinned memory as that call moved.
//
// Address and Adopt share device memory with other code of the process, without a copy; package
// cuda/gorgoniacu, a module of its own, does it with gorgonia.org/cu.
//
// # Layout
//
// Device addresses are numbers on the host; nothing on the host points into device memory. The
// parameter structs are those of package kernels.
//
// # Errors
//
// Those of the contract, and *Error for a call of the driver that failed: with the call, the code,
// the kernel launched before, and the compiler's log. It matches quant.ErrTooLarge where memory ran
// out: free something, and call again. Otherwise quant.ErrUnavailable.
//
// A code that means that the device is gone (an illegal address, a failed launch) turns the
// backend off: Lost names it, and every later call fails with quant.ErrUnavailable. Buffers are
// then lost; another backend has to start afresh.
//
// # Concurrency
//
// All methods may be called from many goroutines. Calls beyond the number of lanes wait for one.
//
// # On a machine with a GPU
//
// KVIST_REQUIRE=cuda go test ./cuda -run OnDevice holds the real device against the oracle, and go
// test ./cuda -bench . measures it. make gpu-bundle packs both, with the command line tool, for a
// machine without Go: see bench/gpu/run.sh.
//
// # Determinism
//
// Packed bytes and decoded floats are those of package quant, bit by bit. Attend and Relevance give
// the same bits on every call: no float is added atomically.
package cuda
