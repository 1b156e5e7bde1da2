// SPDX-License-Identifier: Apache-2.0

// Package cpu is the backend that runs on every machine: without cgo and without a device, in
// assembly where kvist has kernels for the processor and in plain Go elsewhere.
//
// # Concepts
//
// Open returns a backend.Backend for one instruction set. Backends with different instruction sets
// can be open at the same time; tests do that.
//
//	generic  plain Go, on every machine and with the tag noasm
//	avx2     amd64 with AVX2, FMA and F16C
//	avx512   amd64 with AVX-512 F, BW, VL, DQ, VBMI, VNNI, GFNI and VPOPCNTDQ (Ice Lake, Zen 4 and later)
//
// ISAs lists the instruction sets that this build has and this machine runs. Open takes the best,
// unless Options.ISA or KVIST_CPU names another. arm64 runs the plain Go.
//
// The kernels are in cpu/internal/attend (attention, relevance) and cpu/internal/codec (encode,
// decode, demote), in plain Go and in assembly that the generator in cpu/internal/_gen writes. Tests
// compare every kernel with package quant, or with float64, on every instruction set. Encode writes
// the bytes of quant.Encode. The codings for comparison (ggml's, tqmse, f32 to f16), and rows that
// the kernels refuse, go to package quant.
//
// DESIGN.md in this folder says how attention works, what bounds its speed, and which targets were
// missed.
//
// # Tables
//
// A table is a list of pointers to entries, copied in chunks of 64 when it changes after a view was
// taken. An entry holds what a call would otherwise compute: the angles of an offset, means as padded
// rows. The bytes of K and V are looked up at every call, because their buffers may be freed.
//
// # Accuracy
//
// Inner products and scores are float32; exp is within four units of the last place. Sums over rows
// are float32 over at most 128 rows and are then added in float64, and so are the sums of weights.
// The error therefore does not grow with the context. Where AVX-512 multiplies bytes, queries and
// weights are integers of 24 bits and sums of products are exact. Results are within the tolerance
// of package backendtest.
//
// # Errors
//
// The errors are those of package backend. Messages begin with kvist/cpu.
//
// # Concurrency
//
// All methods are safe for concurrent use. A call runs on the caller's goroutine and on up to
// Workers-1 more, from a set that all calls of the backend share. No goroutine outlives its call.
// Encode and Decode divide large jobs into parts of about 65,000 values.
//
// # Determinism
//
// How work is divided, and the order in which parts are combined, depend on the arguments only.
// Results have the same bits for any number of workers, and the result of a query does not depend on
// the other queries of the call. Results of Encode, Decode and Demote are the same bits on all
// instruction sets. Those of Attend and Relevance differ within the tolerance.
package cpu
