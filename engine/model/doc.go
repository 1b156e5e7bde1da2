// SPDX-License-Identifier: Apache-2.0

// Package model runs language models of the llama architecture from GGUF files, so that kvist is
// measured in a real model: by what a compressed cache does to the next token.
//
// # Concepts
//
// A Model is its weights, kept quantized in memory as in the file;
// a Tokenizer its vocabulary. Model.Forward runs tokens through the model, a chunk at a time,
// and hands out logits; K and V pass through a KVStore, which does the attention as well. So a
// cache of any kind plugs in: ExactKV is the uncompressed one, in float32 or with its rows
// rounded to binary16. An ExactKV can also be filled from outside (AppendRows) with rows that
// were compressed and decompressed, with a bias on their scores and with some of them dropped,
// and then continued; Clone and Truncate ask many questions after one context.
//
// An Observer sees q, k and v of every layer on their way; WriteCapture uses it to write
// kv-capture/1 files. Surprisal, LogSumExp and Argmax work on rows of logits.
//
// # Models
//
// Architecture "llama": RMS norm, RoPE (plain, linear, YaRN, and the frequency factors of
// llama 3), grouped-query attention, SwiGLU, tied or separate output. Tensors F32, F16, BF16,
// Q8_0, Q4_0 and Q4_1, of which F16 and BF16 matrices become float32 in memory. GGUF versions 2
// and 3, little-endian. Tokenizer gpt2 with pre-tokenizer smollm. Everything else (other
// architectures, mixture of experts, latent attention, sinks, sliding windows, biases, unknown
// keys of the architecture, unknown tensors) is refused by name: wrong numbers are worse than
// none.
//
// # Layout
//
// GGUF stores q and k of llama models permuted for interleaved RoPE. Loading undoes that, so K
// and q are everywhere in the half-split layout (component i turns with i + rotary_dim/2), the
// layout of captures and of quant.RopeHalf. With YaRN, q and K carry its magnitude factor.
//
// # Errors
//
// Faults of a file are *gguf.FileError, with file, key or tensor and offset, and wrap ErrCorrupt,
// ErrVersion, ErrUnsupported or ErrTooLarge of package quant. A reader allocates nothing for a
// count or length before it has checked that the file is large enough to hold it. Calls that do
// not fit (no tokens, tokens outside the vocabulary, positions out of order) are ErrShape,
// positions beyond the model's context ErrTooLarge, text that the vocabulary cannot express
// ErrRange, a model that is not there ErrUnavailable.
//
// # Concurrency
//
// A Model and a Tokenizer may be used from many goroutines at once. A KVStore belongs to one
// sequence and one goroutine; clones go separate ways. Each pass uses up to Options.Workers
// goroutines of its own.
//
// # Determinism
//
// Results do not depend on the number of workers or on how tokens are cut into chunks, but may
// differ by rounding between instruction sets.
package model
