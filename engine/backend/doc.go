// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between what decides (cache, planner, file codecs) and what
// computes (cpu, cuda): a handful of verbs over packed blocks, their arguments and their errors.
// It computes nothing but MergeAttention, and imports only package quant.
//
// # Concepts
//
// A Buffer is memory of a backend; a Span is a range of one. Bulk data are spans. Queries,
// outputs and log-sum-exps, which are small, are host slices. A Block is a handle of packed rows
// of one (layer, kv_head) and owns nothing.
//
// Every verb takes many jobs, or many queries and blocks, a call, because a launch costs more
// than a block. All calls are synchronous: when they return, their results are usable.
//
// # Lists of blocks
//
// Queries lists the blocks of each query in compressed sparse rows: query i attends to blocks
// BlockIdx[BlockPtr[i]:BlockPtr[i+1]]. Lists may share blocks, be empty, and mix codings, row
// counts, offsets and positions freely; a block listed twice counts twice. The order of a list,
// and of the rows within a block, changes results by rounding only.
//
// The score of query head h of query i on row r of a block is
//
//	s = Scale * <turn(q_h, Offset), k_r>
//	s = Softcap * tanh(s / Softcap)                                  where Softcap > 0
//	s += log(Count[r]) + Bias[r] - 1/2 * Scale^2 * |q_h|^2 * Noise * rowScale(k_r)^2
//
// for rows that the query sees, and -Inf for others: a row that is not seen cannot reach the
// result, even where it holds a NaN. turn rotates q by Offset further RoPE positions.
//
// Searcher is what an index of embeddings wants of a backend beside that; both have it. So is
// Predictor, for how far rows are from a linear prediction.
//
// Relevance looks at K only: V of a block may be left out. Its RowPtr leaves each block exactly
// the block's rows. Outputs must not overlap the queries.
//
// # Two bases
//
// Rows of the rotated codings stay in the rotated basis: q is rotated once per seed, and V is
// summed in the basis it is stored in, one accumulator for the original basis and one for the
// rotated, which is rotated back once at the end. So all rotated K sides of one query's list
// have one seed, and all rotated V sides have one.
//
// # Spans
//
// Packed sides start on multiples of 16 bytes of their buffer; all other spans on multiples of
// their element size, and a source's Stride is a multiple of its element size. A span has
// exactly the length its job or block implies, except EncodeJob.Src, which may be longer. With
// nothing to hold, a span may be left out. Dst of a job overlaps none of its sources, but for
// Demote in place.
//
// # Errors
//
// Arguments are checked before anything is written.
//
//	quant.ErrShape        lengths, offsets, indices, or a buffer of another backend
//	quant.ErrUnsupported  Supports says no
//	quant.ErrTooLarge     Alloc beyond what the backend may take
//	quant.ErrClosed       the backend is closed, or a buffer was freed before
//	quant.ErrRange        Encode met a row that its coding cannot hold (*JobError: the first
//	                      failing job, and the row); what the call's destinations then hold is
//	                      not defined
//	context errors        the call was cancelled; the same holds
//
// Errors of Encode, Decode and Demote are *JobError wherever one job is at fault.
//
// # Concurrency
//
// All methods of a Backend may be called from many goroutines. Calls in flight must not write
// what another reads, and a buffer is not freed under a call.
//
// # Determinism
//
// Packed bytes are those of package quant, bit by bit, and so are the floats of Decode. Floats of
// Attend and Relevance are within the tolerance that backendtest derives, and the same bits
// whenever a call is repeated on the same backend; no number of workers changes them.
//
// Package backendtest holds the suite that every backend runs.
package backend
