// SPDX-License-Identifier: Apache-2.0

// Package engine will hold the serving cache: append K and V, attend, fork, roll back, save and
// load, under a byte budget.
//
// Status: the cache itself is not built. What it will stand on is here and works:
//
//   - engine/backend: the contract with what computes, and its conformance suite
//   - engine/plan: the optimisation of bytes against damage
//   - engine/container: the .kvist file
//   - engine/capture: safetensors and .npy, in and out
//   - engine/quality: error of future attention
//   - engine/kvfile: compress, decompress, compare, report
//   - engine/auto: picks a backend at run time and says why
//   - engine/atomicfile: outputs that appear whole or not at all
//
// Packages below engine take a backend.Backend as an argument and never import auto, cpu or cuda.
package engine
