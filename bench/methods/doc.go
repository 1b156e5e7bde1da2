// SPDX-License-Identifier: Apache-2.0

// Package methods compresses KV caches with published methods, plain formats and kvist, so that
// they can be compared at equal bytes.
//
// # Concepts
//
// A Method turns a Context (K, V and the queries of every layer) into a Cache: the rows as
// attention sees them afterwards, and all bytes that they took. ByName returns a method by its
// name, "kivi2", "snapkv:25%" or "kvist:2.75"; Standard lists those of the evaluation.
//
//   - Uniform: one coding for all rows. It covers f16, the cache types of ggml, TurboQuant-mse and
//     kvist's own formats.
//   - FP8, KIVI, GEAR, TurboQuantProd: published quantization methods.
//   - Eviction: methods that keep a part of the rows, such as H2O, SnapKV and expected attention.
//   - Kvist: this project, by way of a .kvist file in memory.
//
// # Numbers
//
// The byte counts favour the reference methods: codes, scales, indices and exact rows count; a file
// header, alignment and tables of blocks do not. Kvist pays for every byte of its file. DESIGN.md says
// how open choices were made.
//
// # Errors
//
// quant.ErrShape reports a context whose parts do not fit together, quant.ErrRange values that a method
// cannot store, quant.ErrUnsupported unknown names and parameters out of range. Kvist also returns the
// errors of package kvfile.
//
// # Concurrency
//
// Methods are immutable and may be used from many goroutines. Each call runs layers in parallel.
//
// # Determinism
//
// The same context gives the same cache, bit for bit, on the same instruction set. Random choices
// are seeded.
package methods
