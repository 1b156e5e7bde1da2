// SPDX-License-Identifier: Apache-2.0

// Package importance will say what a row is worth: weights only, no bytes.
//
// Status: vocabulary. Nothing is computed here yet; a weight per token is handed to
// engine/offline from outside (--weights FILE), and package engine/offline measures what errors
// cost per head on the capture's own queries.
//
// # Concepts
//
// The weight of a token in a KV head is the product of signals that can each be switched off:
//
//   - relevance: how much attention the token gets; root mean square of attention probabilities
//     over queries, aggregated over the query heads of the KV head
//   - surprise: prediction error; energy of (row - prediction) over energy of the row
//   - habituation: repeated patterns count less
//   - decay: recency, as a power law made from several exponential time scales
//
// A signal that does not pay in a model is shown as such and is off by default.
package importance
