// SPDX-License-Identifier: Apache-2.0

// Package model runs language models from GGUF files. It shows what a compressed cache does to the
// next token of a real model.
//
// # Concepts
//
// A Model holds the weights, quantized in memory as they are in the file. A Tokenizer holds the
// vocabulary. Model.Forward runs tokens through the model, a chunk at a time, and returns logits.
// K and V go to a KVStore, which also computes the attention, so any kind of cache can be used.
//
// ExactKV is the uncompressed cache. It holds float32 rows, which may be rounded to binary16.
// AppendRows fills it with rows that were compressed and decompressed; rows may be left out, and a
// bias may be added to their scores. Clone and Truncate ask many questions after one context.
//
// An Observer is given q, k and v of every layer. WriteCapture writes them to a capture.
// Surprisal, LogSumExp and Argmax work on a row of logits.
//
// # Models
//
// Architectures llama (with Mistral), smollm3, qwen2, qwen3, gemma2, gemma3, phi3 and granite. One
// forward pass knows the features that a layer can have; arch.go lists which architecture has which:
//
//	norms         RMS, before attention and feed-forward network and, in Gemma, after them; of the
//	              heads of q and k
//	RoPE          a base for each layer, on all components or the first, or none; linear, YaRN, llama 3,
//	              longrope
//	attention     grouped queries, biases, sliding windows, a scale of its own, soft caps
//	feed-forward  SwiGLU, GeGLU
//	scales        of embeddings, residuals and logits; soft caps of logits; tied or separate output
//
// Tensors of every type that package gguf reads; F16 and BF16 matrices become float32 in memory,
// quantized ones stay quantized. GGUF versions 2 and 3, little-endian, split files too. Tokenizers gpt2,
// with the pre-tokenizers of these models, and llama (SentencePiece).
//
// Everything else is an error that names what is not supported: other architectures, mixture of
// experts, latent attention, sinks, biases of feed-forward networks, features that a key switches on in
// an architecture that does not have them, unknown keys and unknown tensors. A model that ran without
// them would give wrong numbers.
//
// Model.Attention says how each layer attends. Captures state it too: kv-capture/2 where layers differ.
//
// # Layout
//
// GGUF stores q and k of llama models permuted for interleaved RoPE. Loading undoes the permutation.
// K and q have the half-split layout everywhere: component i rotates with i + rotary_dim/2, as in
// captures and in quant.RopeHalf. With YaRN and longrope, q and K include their magnitude factor.
//
// # Errors
//
// An error in a file is a *gguf.FileError with the file, the key or tensor, and the offset. It wraps
// ErrCorrupt, ErrVersion, ErrUnsupported or ErrTooLarge of package quant. A reader allocates memory
// for a count or a length only after it has checked that the file is large enough.
//
// ErrShape reports arguments that do not fit: no tokens, tokens outside the vocabulary, positions
// out of order. ErrTooLarge reports positions beyond the model's context, ErrRange text that the
// vocabulary cannot express, ErrUnavailable a model file that does not exist.
//
// # Concurrency
//
// A Model and a Tokenizer may be used from many goroutines at once. A KVStore belongs to one
// sequence and one goroutine; a clone may be used in another one. Each pass uses up to
// Options.Workers goroutines of its own.
//
// # Determinism
//
// Results do not depend on the number of workers. Chunk sizes and instruction sets change them by
// rounding only.
package model
