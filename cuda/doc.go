// SPDX-License-Identifier: Apache-2.0

// Package cuda is the CUDA backend. It launches the kernels of package kernels through libcuda,
// which it opens at run time, without cgo and without a toolkit. A binary with this package also runs
// on machines without a GPU, where Open says why there is no backend.
//
// Status: the tests run every kernel behind the stand-in driver of kernels/emu and compare it with
// the reference. No GPU has run it yet, so nothing is claimed about its speed. DESIGN.md in this
// folder has what bounds it on paper.
//
// # Concepts
//
// Packed blocks are in device memory: a Buffer is one allocation. A call checks its arguments on the
// host and takes a lane: a stream, pinned staging memory and scratch memory on the device, all of
// which are kept for later calls. It copies what the kernels need to know in one transfer, launches
// them, and waits.
//
// Attend: neighbouring queries with the same list of blocks form a unit of up to 8 heads, for which
// rows are unpacked once. Lists are divided into pieces. The division depends only on the list, so
// results do not depend on the rest of the batch. Blocks with V in the original basis and blocks
// with rotated V go to different pieces, which are combined last.
//
// There are three kernels of attention; ChooseAttend says which a device gets, Options.Attend and the
// variable KVIST_CUDA_ATTEND (plain, f16, int8) force one, and each leaves what it cannot do to those
// before it. plain is float32 arithmetic. f16 multiplies V of lm1..lm4 and u8 in tensor cores, with
// queries and weights as two binary16 numbers each, within the tolerance of float32. int8 takes blocks
// whose K and V both are lm1..lm4, at head_dim 64 and 128: products of bytes, with queries and weights as
// two digits of 8 bits each. A query's values are multiples of 1/32512 of its largest one, weights of
// 1/65535 of the largest: typically a score is off by 2e-6 of the lengths of query and row. Its tests
// have the bound. A kernel that was not asked for and fails the self-test gives way to plain.
//
// A table keeps the descriptors of its blocks in one array on the device. A descriptor is written
// once, before a view shows its block, and its place is taken again only when no view holds the block
// any more, so that kernels read it while the table changes. Rotary angles and metrics travel with
// each call: those of the listed blocks, once each.
//
// A call checks its context between launches. It cannot interrupt a running kernel.
//
// # Memory
//
// Caps.Memory bounds the buffers. In addition, each of the 4 lanes keeps scratch memory on the
// device, 1 MiB at first and later as much as its largest call needed (the parts of attention take
// at most 64 MiB per launch), and as much pinned memory as that call moved.
//
// Address and Adopt share device memory with other code of the process, without a copy. The module
// cuda/gorgoniacu uses them for gorgonia.org/cu.
//
// # Layout
//
// Device addresses are numbers on the host. The parameter structs are those of package kernels.
//
// # Errors
//
// The errors are those of the contract, and *Error for a driver call that failed: the call, the code,
// the kernel launched before, and the compiler's log. *Error matches quant.ErrTooLarge if memory ran
// out; free something and call again. Otherwise it matches quant.ErrUnavailable.
//
// A code that means that the device is lost (an illegal address, a failed launch) turns the backend
// off. Lost returns the error, and every later call fails with quant.ErrUnavailable. The contents of
// the buffers are lost; the caller must open another backend and start again.
//
// # Concurrency
//
// All methods are safe for concurrent use. Calls beyond the number of lanes wait for a free one.
//
// # On a machine with a GPU
//
// KVIST_REQUIRE=cuda go test ./cuda -run OnDevice compares the real device with the reference, and
// go test ./cuda -bench . measures it. make gpu-bundle packs both, and the command line tool, for a
// machine without Go; see bench/gpu/run.sh.
//
// # Determinism
//
// Packed bytes and decoded floats are those of package quant, bit by bit. Attend and Relevance give
// the same bits on every call: no float is added atomically.
package cuda
