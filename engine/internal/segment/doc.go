// SPDX-License-Identifier: Apache-2.0

// Package segment turns rows, weights and prices into what a plan chooses from, and a plan into blocks.
//
// # Concepts
//
// A part is one segment of one KV head. Its tokens are sorted by weight and cut into cells: planning blocks of
// 32 rows at one level of detail. A part has variants: the first keeps all tokens, others merge or drop a quarter
// to all of the tokens that weigh the least. CHUNKS merges runs of up to 4 neighbours to a row each, SUMMARY what is
// left over of a segment to rows of about 32 tokens, DROPPED keeps nothing. Rows are merged as means by weight.
// Sinks, the window, and rows that are not finite or stand apart take no part in merging.
//
// Dropping moves the output by the sum of a_t (v_t - out), one coherent error and not a sum of squares. The
// estimates are put on scale by probes of the queries that damage.Pricer measures with.
//
// Tokens outside the window of their layer are a cell of their own, dropped in every variant at no cost.
//
// Problem collects parts for plan.Solver; blocks of one head, side, kind and number of rows share a menu of
// codings. Rehearse plans and codes the tokens before input.FutureFrom and lets the later queries judge.
//
// # Errors
//
// quant.ErrRange for rows that are not finite, unless they are allowed; those of package plan, the backend and
// the rows.
//
// # Concurrency
//
// A Builder may be used by many goroutines, for different layers. A Head or Problem belongs to one.
package segment
