// SPDX-License-Identifier: Apache-2.0

// Package gguf reads GGUF files, the model files of llama.cpp: metadata, the list of tensors and
// their values.
//
// # Concepts
//
// Read parses the front of a File: typed metadata (Value) and the list of tensors (Tensor). Open does
// it for a path, and for all files of a split model. Tensor data stay in the file until they are asked
// for: Floats reads a tensor as float32, EachRows does it some rows at a time, EachGroups hands out its
// stored groups piece by piece. SplitGroup takes a group of a quantized type apart (Group), DecodeGroup
// and Dequantize compute its values.
//
// Versions 2 and 3, little-endian; tensors of F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K,
// Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4.
//
// # Errors
//
// Faults of a file, or of a part of a split model, are *FileError, with file, key or tensor and offset, and wrap ErrCorrupt,
// ErrVersion, ErrUnsupported or ErrTooLarge of package quant. Nothing is allocated for a count or
// length before it is known that the file is large enough to hold it.
//
// # Concurrency
//
// A File may be used from many goroutines at once, as far as its io.ReaderAt allows that.
package gguf
