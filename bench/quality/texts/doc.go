// SPDX-License-Identifier: Apache-2.0

// Package texts holds the texts on which the quality of a compressed cache is measured inside a
// language model.
//
// # Concepts
//
// All texts were written for kvist, in English. They have the project's licence, and no model
// published before them has seen them in training. Each is of another kind. Late in each text, names
// and facts from its beginning return, so that a cache without detail of distant tokens makes
// mistakes. Every text has more than 6,000 bytes and at least 1,700 tokens of SmolLM2's tokenizer.
//
// A text has one of two roles. Parameters are fitted, tuned and chosen on calib texts. Eval texts are
// only for reporting: a figure of a text on which a parameter was chosen is no evidence. Eval texts
// differ a lot from each other, so compare two settings text by text, and state the interval of the
// paired differences, not the two means.
//
// # Concurrency
//
// All may be called from many goroutines. Each call returns a new slice.
//
// # Determinism
//
// The order of All and the bytes of every text are fixed by the source tree. Recorded results
// cannot be compared with those of an edited text, so add a new text instead.
package texts
