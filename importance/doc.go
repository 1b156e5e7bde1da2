// SPDX-License-Identifier: Apache-2.0

// Package importance computes what the tokens of a KV cache are worth: a weight for each token and
// KV head. The weight is a product of signals, each of which can be switched off.
//
// # Concepts
//
//	signal       meaning                                     computed from
//	relevance    attention the token gets: root mean square  sums that a backend's Relevance
//	             of probabilities over queries and heads     returns
//	  expected   the same, predicted for queries to come     mean and covariance of past queries
//	value norm   distance of V from the mean of V so far     V
//	surprise     residual of a causal prediction, over the   K without RoPE
//	             energy of the row
//	surprisal    -log p of the token                         the server's model
//	habituation  blocks that repeat count less               V
//	decay        recency as a power law                      positions
//
// A Weighting holds the exponents of the signals and their settings, as text in one line. A Tracker
// follows one KV head of a live cache and returns the weights of its tokens. Relevance, Shape,
// Concentrate and Combine are the steps of it for callers that keep signals themselves: Relevance
// adds up attention, Shape smooths, floors and normalises a signal, Concentrate tells when
// attention has collapsed onto a few tokens, and Combine multiplies signals to weights of mean 1.
//
// # Units
//
// A weight multiplies errors, not squared errors: damage is the sum of weight^2 times squared
// error. Relevance is an attention probability, surprise a ratio in [0, 2], habituation and
// decay factors in [0, 1]. Weights have mean 1 in every head; the planner measures how much heads
// and layers matter against each other. Positions count from the first token of the sequence.
//
// # What is on by default
//
// ParseWeighting("default") is relevance alone: the last 64 queries with a little of the windows before
// them. A signal is off until measurements in a model show that it pays. DESIGN.md in this folder
// has the tables that decided it.
//
// # Streams
//
// All signals are causal: a result depends only on what was passed in before it. The state is
// small, StateBytes returns its size, and results do not depend on how a stream of rows was split
// into calls. Clone copies a state for a fork of the sequence. No step needs a tokens x tokens
// matrix.
//
// # Errors
//
//	quant.ErrShape     lengths, dims, positions or settings do not fit
//	quant.ErrTooLarge  a position beyond RelevanceConfig.MaxTokens
//	quant.ErrRange     NaN, an infinity, or a negative sum (*ValueError: what, row, value)
//
// Errors of Combine name the signal that it could not use. A call that fails leaves the state as it
// was. Zero tokens, rows of zeros and subnormals are valid.
//
// # Concurrency
//
// Functions and methods of Weighting are safe for concurrent use. A Tracker or a Relevance belongs to
// one goroutine at a time; those of different heads are independent.
//
// # Determinism
//
// The same calls give the same bits on one machine. Sums are in float64. They may differ by rounding
// across architectures, so that plans made from weights may differ in ties.
package importance
