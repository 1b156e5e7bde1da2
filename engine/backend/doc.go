// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between the packages that decide (cache, planner, file codecs)
// and those that compute (cpu, cuda): a few methods over packed blocks, their arguments and their
// errors. The package computes nothing except MergeAttention and imports only package quant.
//
// # Concepts
//
// A Buffer is memory of a backend; a Span is a range of one. Bulk data are passed as spans.
// Queries, outputs and log-sum-exps are small and are passed as slices. A Block is a handle of
// packed rows of one (layer, kv_head); it owns no memory.
//
// Every method takes many jobs, or many queries and blocks, because a kernel launch costs more than
// a block. All calls are synchronous: when a call returns, its results are usable.
//
// # Lists of blocks
//
// Queries lists the blocks of each query in compressed sparse rows: query i attends to blocks
// BlockIdx[BlockPtr[i]:BlockPtr[i+1]]. Lists may share blocks, may be empty, and may mix codings,
// row counts, offsets and positions. A block listed twice counts twice. The order of a list, and of
// the rows in a block, changes results by rounding only.
//
// The score of query head h of query i on row r of a block is
//
//	s = Scale * <turn(q_h, Offset), k_r>
//	s = Softcap * tanh(s / Softcap)                                  where Softcap > 0
//	s += log(Count[r]) + Bias[r] - 1/2 * Scale^2 * |q_h|^2 * Noise * rowScale(k_r)^2
//
// for rows that the query sees. The score of every other row is -Inf, so such a row cannot reach
// the result even if it holds a NaN. turn rotates q by Offset further RoPE positions.
//
// Two optional interfaces extend Backend; both backends implement them. Searcher finds the nearest
// rows for an index of embeddings. Predictor compares rows with a linear prediction.
//
// Relevance reads K only, so a block may omit V. RowPtr gives each block exactly as many elements
// as it has rows. Outputs must not overlap the queries.
//
// # Two bases
//
// Rows of rotated codings stay in the rotated basis. Attend rotates q once per seed. It sums V in
// the basis of each block, with one accumulator for the original basis and one for the rotated
// basis, and rotates the latter back once. Therefore all rotated K sides in one query's list must
// share a seed, and so must all rotated V sides.
//
// # Spans
//
// A packed side starts on a multiple of 16 bytes of its buffer. Every other span starts on a
// multiple of its element size, and Stride is a multiple of the source's element size. A span has
// exactly the length that its job or block implies; only EncodeJob.Src may be longer. A span of
// zero bytes may be omitted. Dst must not overlap a source, except in an in-place Demote.
//
// # Errors
//
// A call checks its arguments before it writes anything.
//
//	quant.ErrShape        lengths, offsets, indices, or a buffer of another backend
//	quant.ErrUnsupported  Supports reports false
//	quant.ErrTooLarge     Alloc exceeds the memory that the backend may take
//	quant.ErrClosed       the backend is closed, or a buffer was freed
//	quant.ErrRange        Encode met a row that the coding cannot hold; *JobError names the
//	                      first such job and row; the destinations are then undefined
//	context errors        the call was cancelled; the destinations are then undefined
//
// Encode, Decode and Demote return a *JobError if one job is at fault.
//
// # Concurrency
//
// All methods of a Backend are safe for concurrent use. A call must not write what another call
// reads at the same time, and a buffer must not be freed during a call that uses it.
//
// # Determinism
//
// Packed bytes equal those of package quant, and so do the floats of Decode, bit by bit. The floats
// of Attend and Relevance are within the tolerance that backendtest derives. They are the same bits
// every time the same backend repeats a call, for any number of workers.
//
// Package backendtest holds the suite that every backend runs.
package backend
