// SPDX-License-Identifier: Apache-2.0

// Package llamastate reads and writes sequence states of llama.cpp: the files that llama-server's slot save and
// llama_state_seq_save_file write, those of llama_state_save_file, and the bytes of llama_state_seq_get_data.
//
// # Concepts
//
// Open reads all of a state but its elements: tokens, cells, types, and where K and V of each layer stand. A
// state goes through a .kvist file in one of two ways:
//
//   - Capture makes a capture of it (package capture), which kvfile compresses to so many bits. That takes facts
//     that a state does not hold: heads, head_dim, windows, RoPE (Facts).
//   - Rows makes a file of rows of it, which kvfile compresses losslessly. That takes no facts, and restores the
//     same bytes.
//
// Restore writes the state again from what was decompressed. Both ways keep the frame, which is all that is no
// element of K or V, in the side tensor llama.state.
//
// A state holds no queries. Capture takes them from another capture, of a run of the model over the same tokens.
//
// # What llama.cpp does to K and V
//
//   - K has RoPE applied. In models whose GGUF file has permuted weights (llama, smollm3, granite) it turns pairs of
//     neighbours; captures have halves, so Capture reorders components and Restore puts them back.
//   - Quantized caches whose head_dim is a multiple of 64 are rotated by a Hadamard matrix, K by the largest power
//     of two that divides head_dim, V by 64. Capture undoes that. Files do not say whether they are rotated:
//     Facts.Plain is for those that are not.
//   - V may be transposed, channel by channel, where flash attention is off.
//   - Layers with a sliding window have a cache of their own, behind that of the others, with the last tokens
//     only. A capture has zeros for the other tokens, which no later query sees.
//   - The first of the cells of such a layer is seen by the last token of the state only. A server that computes
//     this token again needs it, and compression drops it: the tensor llama.edge keeps its row as it is.
//
// # Layout
//
// A state, little-endian, without padding:
//
//	llama_state_seq_save_file    u32 0x67677371, u32 version 3, u32 n, n times i32 token | caches
//	llama_state_save_file        u32 0x6767736e, u32 version 10, u32 n, n times i32 token, u32 length, name of the
//	                             architecture | caches
//	llama_state_seq_get_data     u32 0xaf143cd8, i32 sequence | caches
//	cache                        u32 streams; for each: u32 cells and, unless it is 0:
//	  cell                       i32 position, u32 n, n times i32 sequence
//	                             u32 V is transposed, u32 layers
//	  K of a layer               i32 type, u64 bytes of a row, rows of cells
//	  V of a layer               the same; or, transposed: i32 type, u32 bytes of an element, u32 channels, rows of
//	                             channels
//
// The versions are those of llama.cpp in llama-cpp-python 0.3.36, November 2026. Others are refused.
//
// The tensor llama.state, U8: "LST1", u32 flags (1: the token list is the tensor tokens; 2: pairs of neighbours;
// 4: rows), u32 size of the rotation of K, u32 that of V, 0 for none, then the state without elements and, under
// flag 1, without its tokens.
//
// # Limits
//
// f16, bf16, f32, q8_0 and q4_0. One sequence, unless every bit is kept. Refused by name: q4_1, q5_0, q5_1 and
// iq4_nl; cells with more fields (positions on several axes); recurrent and hybrid memory.
//
// # Errors
//
// *FileError with file, section and offset, which wraps quant.ErrCorrupt, ErrVersion, ErrUnsupported or
// ErrTooLarge; quant.ErrShape where the model does not fit. Memory is allocated only for what a file has bytes
// for.
//
// # Concurrency
//
// Methods of a State may be called from many goroutines if its reader may. Restore belongs to one goroutine.
//
// # Determinism
//
// The same state and facts give the same bytes on every machine.
package llamastate
