// SPDX-License-Identifier: Apache-2.0

// Package quality measures what compressing a KV cache does to a running language model, and
// compares the methods of package methods at equal bytes.
//
// # Concepts
//
// A method turns a context into a cache. The model continues on that cache, and the continuation
// is compared with the one on the exact cache:
//
//   - Evaluate: a context (1,024 tokens) goes through the model once. Each method compresses it,
//     and the next tokens (256) are run teacher-forced over what is left, with exact float32 rows
//     of their own. Per position: KL(exact || method) of the next-token distributions in nats,
//     whether the arg max agrees, and the surprisal of the true next token.
//   - Decoding (Options.Decode): the tokens go through in chunks, and rows are compressed once
//     they are older than a recent window, so that later rows are computed from the compressed
//     past and errors feed back. See decode.go for what exactly is done.
//   - Retrieval: facts in a context, asked for after compression. The context is compressed
//     without knowing the questions, and every method is asked the same ones of the same
//     contexts.
//
// A Run is one text of Evaluate: its context and exact continuation, for other caches to be
// compared with.
//
// BlockStore runs the model on packed blocks of a .kvist file through a backend: the serving
// path, to be held against the decompressed one.
//
// # Numbers
//
//	bits/value   8 * Cache.Bytes / (2 * layers * kv_heads * tokens * head_dim)
//	KL           sum_i p_i (log p_i - log q_i), float64 of float32 logits, mean over positions
//	perplexity   exp of the mean surprisal over the positions whose next token is known
//	top-1        share of positions where both distributions have the same arg max
//
// The distribution after the last token of the context does not depend on the compressed cache,
// so the measured positions are those of the continuation.
//
// # Statistics
//
// A text is one observation: positions of a text are not independent. Intervals of means and of
// paired differences are percentiles of a seeded bootstrap over texts; shares of questions have
// Wilson intervals, and paired differences of them a bootstrap over contexts.
//
// # Errors
//
// quant.ErrShape for tokens, options and caches that do not fit together; quant.ErrRange for a
// method whose cache gives numbers that are not finite; those of the model and of the methods,
// with the method's name.
//
// # Concurrency
//
// The functions use the workers of the model and may be called from many goroutines.
//
// # Determinism
//
// The same model, texts and methods give the same numbers on the same instruction set; other
// instruction sets differ by rounding. Random choices (facts, bootstrap) are seeded.
package quality
