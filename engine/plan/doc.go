// SPDX-License-Identifier: Apache-2.0

// Package plan picks one option for every item, so that the total damage is least under a byte
// budget, or the bytes least under a bound on damage.
//
// # Concepts
//
// An Item is a block; its Options are the ways to store it (a level, a coding for K and one for
// V), each with a price in bytes and a predicted damage. Solve reduces every menu to its lower
// convex hull and walks all hulls together in the order of damage saved per byte, which is the
// Lagrangian solution for every multiplier in turn (Shoham and Gersho, "Efficient bit allocation
// for an arbitrary set of quantizers", 1988). Where the next step no longer fits, the items around
// it are decided exactly, options off the hull among them, by dynamic programming. On small
// instances the result lies within 1 % of the optimum (TestSolve_NearOptimum).
//
// Menu builds the items of a cache: FULL at several codings for K and V of each block. Its damage
// model is the first-order one: V costs a^2 |dv|^2, K costs a^2 |v - out|^2 (q . dk)^2 /
// head_dim, with a the attention probability of a row.
//
// # Errors
//
// quant.ErrBudget, raised before any work, states the least possible budget. quant.ErrShape for
// menus that are empty or hold NaN or negative numbers.
//
// # Concurrency
//
// Pure functions.
//
// # Determinism
//
// Ties are broken by the order of items and options: the same input gives the same plan on every
// machine.
package plan
