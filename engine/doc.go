// SPDX-License-Identifier: Apache-2.0

// Package engine will hold the serving cache: append K and V, attend, fork, roll back, save and
// load, under a byte budget.
//
// Status: the cache itself is not built. What it will stand on is here and works:
//
//   - engine/backend: the contract with what computes, and its conformance suite
//   - engine/internal/weigh, engine/internal/damage: what tokens are worth, and what errors of heads cost
//   - engine/internal/segment, engine/internal/plan: what a plan chooses from, and the optimisation of bytes against damage
//   - engine/internal/blocks: packed blocks in a backend's memory
//   - engine/container, engine/capture, engine/profile: files
//   - engine/kvfile: compress, decompress, verify, truncate; Pack and Open keep a cache packed in memory
//   - engine/report: what a file holds and what it lost
//   - engine/model: runs GGUF models
//   - engine/auto: picks a backend at run time and says why
//   - engine/atomicfile: outputs that appear whole or not at all
//
// Packages below engine take a backend.Backend as an argument and never import auto or cuda. kvfile and report
// import cpu, for calls that are given no backend.
package engine
