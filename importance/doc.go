// SPDX-License-Identifier: Apache-2.0

// Package importance says what a token of a KV cache is worth: a weight for each token and KV
// head, the product of signals that can each be switched off. Weights only, no bytes.
//
// # Concepts
//
//	signal       meaning                                     computed from               type
//	relevance    attention the token gets: root mean square  sums that a backend's       Relevance
//	             of probabilities over queries and heads     Relevance returns
//	  expected   the same, foretold from what queries are    their mean and covariance   QueryStats
//	value norm   how far V lies from what V is on average    V                           Deviation
//	surprise     residual of a causal prediction, over the   K without RoPE, or V        Surprise
//	             energy of the row
//	surprisal    -log p of the token                         the server's model          (a function)
//	habituation  blocks that repeat count less               V                           Habituation
//	decay        recency as a power law                      positions                   Decay, Trace
//
// A Profile holds the exponents of the signals and their settings, as text in one line. Combine
// multiplies signals to weights of mean 1 within a range; Shape smooths, floors and normalises
// one signal; Concentrate tells when attention has collapsed onto a few tokens. Tracker does all
// of it for one KV head of a live cache. AttentionSums is the scalar reference of relevance.
//
// # Units
//
// A weight multiplies errors, not squared errors: damage is the sum of weight^2 times squared
// error. Relevance is an attention probability, surprise a ratio in [0, 2], habituation and
// decay factors in [0, 1]. Weights have mean 1 in every head: how much heads and layers matter
// against each other is the planner's to measure. Positions count from the first token of the
// sequence.
//
// # What is on by default
//
// DefaultProfile is relevance alone: the last 64 queries with a little of the windows before.
// The other signals are off until a measurement in a model shows that they pay: exponents are
// found by search, never by taste.
//
// # Streams
//
// All signals are causal: what comes later never changes what was returned before, and what is
// returned depends on nothing that was not handed in yet. State is small, stated in bytes
// (StateBytes) and carried from call to call; results do not depend on how a stream of rows was
// split into calls. Clone serves forks. There is no tokens x tokens matrix anywhere.
//
// # Errors
//
//	quant.ErrShape     lengths, dims, positions or settings do not fit
//	quant.ErrTooLarge  a position beyond RelevanceConfig.MaxTokens
//	quant.ErrRange     NaN, an infinity, or a negative sum (*ValueError: what, row, value)
//
// *SignalError names the signal that weights could not be combined from. Nothing is taken from
// the arguments of a call that fails. Zero tokens, rows of zeros and subnormals are all right.
//
// # Concurrency
//
// Decay, Profile and the functions are safe for concurrent use. Everything with a state belongs
// to one goroutine at a time; different heads are independent.
//
// # Determinism
//
// The same calls give the same bits on one machine. Sums are float64; across architectures they
// may differ by rounding, so plans made from weights may differ in ties.
package importance
