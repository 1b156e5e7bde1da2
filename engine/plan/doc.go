// SPDX-License-Identifier: Apache-2.0

// Package plan picks one option for every item, so that the total damage is least under a byte
// budget, or the bytes least under a bound on damage.
//
// # Concepts
//
// An Item is a thing to store; its Options are the ways to store it, each with a price in bytes and
// a predicted damage. Solve reduces every menu to its lower convex hull and walks all hulls
// together in the order of damage saved per byte, which is the Lagrangian solution for every
// multiplier in turn (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of
// quantizers", 1988). Where the next step no longer fits, the items around it are decided
// exactly, options off the hull among them, by dynamic programming. On small instances the result
// lies within 1 % of the optimum (TestSolve_NearOptimum).
//
// Scaled is the same for a cache, where millions of items share a few menus: an item is one side (K
// or V) of a block, its class the menu of its head, side and rows, and its damages those of the
// class times its sensitivity. SolveScaled gives the plan of Solve (TestSolveScaled_AgreesWithSolve),
// and sorts next to nothing: a histogram of slopes finds the break, only the steps near it are
// looked at in order. 64 layers x 8 KV heads x 128K tokens in blocks of 32, 4.2 million items,
// take 0.11 to 0.15 s on one core (bench/results/plan-speed.txt).
//
// Varied adds levels of detail. A Group of tokens has Variants: all tokens as rows, some merged or
// dropped. Each has items of its own, fewer as more is merged, and a damage that its merges do
// whatever the codings. For a price of a byte every group takes the variant that costs the least;
// the price is found by bisection, and SolveScaled fills the variants that it leaves. A level is
// taken because it is cheaper at the same damage, never by rule. Within 1 % of the optimum on small
// instances too (TestVaried_NearOptimum).
//
// # Damage
//
// The damage model is the first-order one: V costs a^2 |dv|^2, K costs a^2 |v - out|^2 (q . dk)^2 /
// head_dim, with a the attention probability of a row; Curve bends it where large errors of K were
// measured to cost more. Who builds the items measures sensitivities (package engine/offline).
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
//
// More bytes never give more damage. Between two vertices of the hull of the whole problem the
// same items and variants are decided, in cells of the same width, so that what fits into a budget
// fits into a larger one; and at a vertex the walk itself is as good as any plan of its bytes.
package plan
