// SPDX-License-Identifier: Apache-2.0

// Package damage measures what errors of rows cost: in the attention of a head, and in that of tokens to come.
//
// # Concepts
//
// A Pricer finds what a squared error of K or V costs in each KV head. It plays the future on the head's own
// last queries: they attend to the rows before them, coded at 1, 2 and 3 bits on one side and exact on the
// other. Where there are no queries, K stands in for them, without its mean and with long rows held to a length
// (Use says in how many heads, and why). Rows that stand apart, 64 times as long as the median, are shortened
// for this, so that they do not hide what the others cost.
//
// Queries attend as those of their layer do: with its scale, its soft cap and its window (input.Attend). In a layer
// with a window they are of the last half of one, and rows that none of them sees have no say in any price.
//
// Future-attention error (Future) measures a finished file: the queries of the tokens that came after the
// captured context attend to the compressed context and, causally, to their own exact tail. The metric is
// the squared error of the attention output over its squared length, summed over all queries and heads of a layer,
// against the same attention over the exact context. It sees what errors of single rows do not: which rows
// matter. What a model makes of the error is measured in a model (package bench/quality).
//
// # Errors
//
// Those of the backend and the rows, and quant.ErrShape.
//
// # Concurrency
//
// A Pricer may be used by many goroutines, for different heads; a Future belongs to one.
package damage
