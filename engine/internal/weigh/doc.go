// SPDX-License-Identifier: Apache-2.0

// Package weigh finds what tokens are worth: it feeds the signals of package importance with rows and
// queries, through a backend.
//
// # Concepts
//
// A Weigher takes a layer and returns a weight for every token of every KV head, as the queries at hand see
// them. Relevance alone, the default, is summed over all heads of a layer in one call of the backend;
// other signals take each head through an importance.Tracker. A plan also wants the weights as they were
// known at three quarters of the tokens (Layer.Past): queries after that play the future.
//
// A window of queries with NaN or Inf among them is left out, and counted in Use. A head without any other
// query has no weights: all of its tokens count the same, and Use says so.
//
// # Errors
//
// Those of package importance, the backend and the rows.
//
// # Concurrency
//
// A Weigher may be used by many goroutines, for different layers.
package weigh
