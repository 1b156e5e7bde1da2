// SPDX-License-Identifier: Apache-2.0

// Package gguf reads GGUF files, the model files of llama.cpp: metadata, the list of tensors and
// their values.
//
// # Concepts
//
// Read parses the front of a File: typed metadata (Value) and the list of tensors (Tensor). Tensor
// data stay in the file until they are asked for: Floats reads a tensor as float32, EachGroups
// hands out its stored groups piece by piece, and DecodeGroup says what a group means.
//
// Versions 2 and 3, little-endian; tensors of F32, F16, BF16, Q8_0, Q4_0 and Q4_1. One file holds
// the whole model: a part of a split one is refused by name.
//
// # Errors
//
// Faults of a file are *FileError, with file, key or tensor and offset, and wrap ErrCorrupt,
// ErrVersion, ErrUnsupported or ErrTooLarge of package quant. Nothing is allocated for a count or
// length before it is known that the file is large enough to hold it.
//
// # Concurrency
//
// A File may be used from many goroutines at once, as far as its io.ReaderAt allows that.
package gguf
