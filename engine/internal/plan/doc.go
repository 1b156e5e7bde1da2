// SPDX-License-Identifier: Apache-2.0

// Package plan decides how to store every block under a byte budget, so that the total damage is
// least.
//
// # Concepts
//
// An item is one side (K or V) of a block. Its class is the menu of codings that it shares with the
// other blocks of its head, side and number of rows: each Option has a price in bytes and a damage,
// which the item's sensitivity multiplies. A Group is a set of tokens that can be stored at
// several levels of detail: its Variants keep all tokens as rows, or merge or drop some. A variant
// has items of its own, fewer the more it merges, and a damage that its merges do whatever the
// codings are.
//
// A Solver reduces every menu to its lower convex hull and takes the steps of all hulls in the
// order of damage saved per byte. That is the Lagrangian solution for every multiplier in turn
// (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988). For a
// multiplier, the price of a byte in damage, every group takes the variant that costs the least;
// bisection finds the multiplier. A level is taken because it is cheaper at the same damage, never
// by rule. Where the next step no longer fits, the items around it are decided exactly by dynamic
// programming, which also looks at options off the hull. On small problems the plan is within 1 %
// of the optimum (TestSolver_NearOptimum).
//
// The steps of millions of items are not sorted: a histogram of slopes finds the break, and only
// the steps near it are put in order. 64 layers x 8 KV heads x 128K tokens in blocks of 32 are 4.2
// million items, and take 0.11 to 0.15 s on one core (bench/results/plan-speed.txt). The general
// algorithm, which sorts all steps, is the oracle of the tests (TestSolveItems_AgreesWithOracle).
//
// # Damage
//
// The damage model is of first order. An error dv of a row of V costs a^2 |dv|^2, where a is the
// row's attention probability; an error dk of a row of K costs a^2 |v - out|^2 (q . dk)^2 /
// head_dim. A Curve scales the damage of low widths, where large errors of K were measured to cost
// more. The caller measures sensitivities.
//
// # Errors
//
// quant.ErrBudget states the least possible budget. quant.ErrShape is for menus that are empty or
// hold NaN or negative numbers.
//
// # Concurrency
//
// A Solver belongs to one goroutine at a time. The other functions are pure.
//
// # Determinism
//
// The order of items and options breaks ties: the same input gives the same plan on every machine.
//
// More bytes never give more damage. Between two vertices of the hull of the whole problem the
// same items and variants are decided, in cells of the same width, so that what fits into a budget
// fits into a larger one. At a vertex the walk itself is as good as any plan of its bytes.
package plan
