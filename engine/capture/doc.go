// SPDX-License-Identifier: Apache-2.0

// Package capture reads the tensor files that kvist compresses, safetensors, .npy, .npz and GGUF, and
// writes the first two.
//
// # Concepts
//
// A Source is an open file. Open and New detect the format from the content, never from the file
// name, and parse only the header. Rows and raw bytes are read on request, so the memory needed
// does not depend on the size of the file. There are two kinds of Source:
//
//   - KV: a safetensors file whose metadata say format = kv-capture/1. It has a Geometry, Layers,
//     and for each layer the parts K, V, Q and those of the tokens after (KNext, VNext, QNext).
//     Every shape is checked against the metadata and against the other layers at Open.
//   - Activations: any other safetensors file, every .npy and .npz, and the tensors of a GGUF.
//     Each tensor of floats with two or more dims is a matrix of rows over its last dim
//     (ActTensors). All others are side tensors, which have raw access only, so that they can be
//     kept exactly. In a file without such a matrix, tensors of I8 are matrices too, and a tensor
//     of floats with one dim is one row: an array of codes, or one vector, on its own.
//
// A Tensor is a handle of rows: [heads, rows, dim], row-major, with one element type. ReadRows
// returns their bytes; ReadRowsF32 converts them to float32. The conversions from F16 and BF16 are
// exact, including subnormals and NaN payloads.
//
// # Element types
//
//	stored                rows of   values
//	F16, BF16, F32        the same  the same bits
//	F8_E4M3, F8_E5M2, I8  F16       the same, including NaN and infinities
//	F64                   F32       rounded; a finite value beyond float32 is refused, with
//	                                tensor, row and value
//	groups of a GGUF      F32       computed from scales and codes
//
// ReadRowsExactly refuses an F64 value that is not a float32, for lossless compression. Big-endian
// elements become little-endian, and arrays in Fortran order are read in C order. Their rows are
// looked up in the file on request, so that memory is bounded: one row of an array in Fortran order
// takes a read per value, and many rows take hardly more. A compressed member of an .npz is
// expanded to a temporary file when it is first read; Close removes the file.
//
// A Writer lays out a file from declarations and then accepts the bytes of its tensors in any
// order. It writes to an io.WriterAt. Use engine/atomicfile for a file that must appear whole or
// not at all.
//
// # Captures of Hugging Face models
//
// hf_capture.py writes captures of models that transformers runs, and hf_restore.py puts a capture, as
// kvist decompress writes it, into a DynamicCache and continues. Both need torch, transformers and
// safetensors only.
//
// # Layout of a KV capture
//
//	layers.N.k         [kv_heads, tokens, head_dim]     F16, BF16 or F32, RoPE applied
//	layers.N.v         [kv_heads, tokens, head_dim_v]   F16, BF16 or F32
//	layers.N.q         [heads, tokens, head_dim]        optional; RoPE applied
//	layers.N.k_next    and v_next, q_next: the same of the tokens after, tokens_next rows;
//	                   optional, but k_next and v_next come together, q_next only with them
//	layers.N.o_weight  [hidden, heads * head_dim_v]     optional
//	layers.N.kept      [kv_heads, tokens] U8            optional: 0 marks a dropped token
//	layers.N.bias      [kv_heads, tokens] F32           optional: row bias without log-count
//	tokens             [tokens] I32                     optional, as are the next two
//	surprisal          [tokens] F32                     -log p of the token, nats
//	positions          [tokens] I32                     default first_position + i
//	tokens_next, surprisal_next, positions_next         [tokens_next]
//	rope_inv_freq      [rotary_dim/2] F32               optional
//
// Metadata are text, as in all safetensors files. Required: format, layers (of the model; the file
// may hold fewer), heads, kv_heads, head_dim, rope_layout (half, interleaved or none). Unless
// rope_layout is none, rope_applied must be true, and rope_theta or the tensor rope_inv_freq must
// be present. Defaults: head_dim_v from the shape of V, rotary_dim = head_dim, first_position = 0,
// model empty. Tensors with other names are side tensors.
//
// # Layout of the files
//
//	safetensors   u64 header length n | n bytes of JSON | data
//	.npy          "\x93NUMPY" major minor | u16 (major 1) or u32 length n | n bytes of text | data
//	.npz          a zip of .npy, stored or deflated; a tensor is named after its member
//	GGUF          see package gguf; dims are named slowest first, as everywhere else here
//
// All integers are little-endian. The header of a safetensors file maps each name to dtype, shape
// and data_offsets [begin, end), counted from the first byte of data. The tensors cover the data
// without gaps or overlaps and end where the file ends; a missing or additional byte is an error.
//
// Writer orders tensors like the reference implementation: by element type, larger ones first (U64
// I64 F64 C64 F32 U32 I32 BF16 F16 ...), then by name. It pads the header with spaces to a multiple
// of 8, so every tensor is aligned to its elements. Metadata come first, keys ascending. The same
// declarations give the same bytes on every machine.
//
// # Errors
//
// An invalid file gives a *FormatError with file, section, tensor and offset. It wraps
// quant.ErrCorrupt (an invalid file, or a capture that contradicts itself), quant.ErrVersion,
// quant.ErrUnsupported (valid, but not supported: K without RoPE, layers that differ, a part of a
// split GGUF, ...), quant.ErrRange (a value that the row type cannot hold) or quant.ErrTooLarge
// (beyond Limits). For an unsupported file the message says what is supported instead. Wrong
// arguments give quant.ErrShape, calls after Close quant.ErrClosed. Errors of the underlying reader
// are wrapped in a *FormatError; those of the writer are returned unchanged.
//
// # Concurrency
//
// All methods of a Source except Close are safe for concurrent use if its io.ReaderAt is, as
// os.File is. The same holds for Writer.WriteAt and Writer.Copy.
package capture
