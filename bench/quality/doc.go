// SPDX-License-Identifier: Apache-2.0

// Package quality measures what compressing a KV cache does to a running language model, and
// compares the methods of package methods at equal bytes.
//
// # Concepts
//
// A method turns a context into a cache. The model continues on that cache, and the continuation
// is compared with the one on the exact cache:
//
//   - Evaluate: a context (1,024 tokens) goes through the model once. Each method compresses it. The
//     next tokens (256) run teacher-forced over the result, with exact float32 rows of their own.
//     Measured per position: KL(exact || method) of the next-token distributions in nats, whether
//     the arg max agrees, and the surprisal of the true next token.
//   - Decoding (Options.Decode): the tokens go through the model in chunks, and rows are compressed
//     once they are older than a recent window. Later rows are computed from the compressed past, so
//     errors feed back.
//   - Retrieval: questions about facts in a context, asked after compression. Methods do not know
//     the questions. All methods get the same contexts and questions.
//
// A Run is one text of Evaluate: a context and its exact continuation.
//
// BlockStore runs the model on packed blocks of a .kvist file through a backend, as a server would.
// Tests compare it with the decompressed cache.
//
// DESIGN.md describes why the measurements are made as they are.
//
// # Windows
//
// Layers with a sliding window, or with RoPE of their own, are contexts of their own for the reference
// methods, none of which moves bytes between layers. They get the rows of a layer that a query after the context
// sees, with those rows' queries. kvist compresses all layers as one file with one budget
// (methods.PerLayer). Rows beyond a window cost nothing and are kept by nobody. The reference methods
// refuse a model with soft caps or an attention scale of its own: they could not be told of it.
//
// # Numbers
//
//	bits/value   8 * Cache.Bytes / (values of K and V that a query after the context sees)
//	KL           sum_i p_i (log p_i - log q_i), float64 of float32 logits, mean over positions
//	worst token  the largest KL of a position, of all texts
//	perplexity   exp of the mean surprisal over the positions whose next token is known
//	top-1        share of positions where both distributions have the same arg max
//
// Only positions of the continuation are measured: the distribution after the last token of the
// context does not depend on the compressed cache.
//
// # Statistics
//
// A text is one observation, because positions of a text are not independent. Intervals of means and
// of paired differences are percentiles of a seeded bootstrap over texts. Shares of questions have
// Wilson intervals; their paired differences have a bootstrap over contexts.
//
// # Errors
//
// quant.ErrShape reports tokens, options and caches that do not fit together, quant.ErrRange a cache
// with which the model computes NaN or infinity, quant.ErrUnsupported a model whose attention methods
// cannot be told of. Errors of the model and of the methods are returned
// with the name of the method.
//
// # Concurrency
//
// The functions use the workers of the model and may be called from many goroutines.
//
// # Determinism
//
// The same model, texts and methods give the same numbers on the same instruction set. Other
// instruction sets differ by rounding. Random choices (facts, bootstrap) are seeded.
package quality
