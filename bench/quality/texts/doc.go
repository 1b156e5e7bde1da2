// SPDX-License-Identifier: Apache-2.0

// Package texts holds the texts on which the quality of a compressed cache is measured inside a
// language model.
//
// # Concepts
//
// All texts are original English writing made for kvist: they can be shipped under the project's
// licence, and no model published before them has seen them in training. Each is of another kind,
// and each takes up again, late in the text, names and facts that it gave early, so that a cache
// which has lost detail of distant tokens has something to get wrong. Every text has more than
// 6,000 bytes and at least 1,700 tokens of SmolLM2's tokenizer.
//
// A text has one of two roles, and the two must not be mixed. Calib texts may be looked at as
// often as one likes: parameters are fitted, tuned and chosen on them. Eval texts are for
// reporting only; a number measured on a text that was used to choose a parameter is no evidence.
// Since the eval texts differ a lot from each other, compare two settings text by text and state
// the interval of the paired differences, not the two means.
//
// # Concurrency
//
// All may be called from any number of goroutines; each call returns a slice of its own.
//
// # Determinism
//
// The order of All and the bytes of every text are fixed by the source tree. Editing a published
// text makes recorded results incomparable: add a new one instead.
package texts
