// SPDX-License-Identifier: Apache-2.0

// Package runner answers prompts with a model whose cache is an engine.Cache: many conversations at once,
// within one budget of bytes. It is what a server or a chat stands on.
//
// # Concepts
//
// A Request is a prompt in tokens and how to sample. Generate returns when the answer is complete and hands
// over each token as it comes. What was computed stays as a Conversation: a later prompt that begins with
// its tokens goes on from there.
//
// One goroutine runs the model in steps. A step takes the next token of every answer under way and a chunk of
// the prompts that wait (continuous batching with chunked prefill). Between steps requests come and go, idle
// conversations fade, and Conversations, Describe and so on look at what is kept.
//
// # Budget
//
// Options.Cache.Budget bounds all conversations together, running and idle. Under pressure the cache itself
// lets detail fade where it costs least. Where it has nothing left to give, the runner closes the idle
// conversation that was unused for longest, then takes smaller chunks, then puts the newest answer back into
// the queue, to be computed again later. A request fails with quant.ErrFull if its own tokens do not fit.
//
// # Sharing
//
// A conversation is found again, and prefixes are shared, only under the same Request.Salt. Describe and the
// other calls on conversations take the salt too, and know nothing of those with another one.
//
// # Errors
//
//	quant.ErrShape     a prompt without tokens, settings outside their ranges
//	quant.ErrTooLarge  a prompt that leaves no room in the context
//	quant.ErrFull      the queue is full, or the budget does not hold the request
//	quant.ErrClosed    the runner was closed, or no such conversation
//
// # Concurrency
//
// All methods may be called from many goroutines.
//
// # Determinism
//
// Greedy answers, and sampled ones with the same Seed, depend on the other requests in two ways: by rounding,
// and under pressure by what the cache takes from whom.
package runner
