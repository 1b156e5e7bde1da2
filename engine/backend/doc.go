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
// # Tables
//
// Blocks are listed in a Table of the backend. Set checks and describes a block once; from then on
// only its memory is looked up. A call names a View of the table, which never changes, so that one
// goroutine can change the table while others attend. The cost of a call depends on the lists of
// its queries and not on what else the table holds. Attend over a view allocates nothing on the cpu
// backend once it is warm. AttendBlocks makes a temporary table for lists that are used once.
//
// A table keeps 28 bytes of a block, and once what blocks share: codings, row count, seeds, metric,
// limit and offset; layer, head and means; buffers. Blocks of segments of eight take 36 bytes each in
// all. The cuda backend keeps 8 more, and 88 on the device (Caps.TableBytes). So a cache can
// leave the blocks of thousands of tokens in its tables, and change what a step changes.
//
// A block owns no memory, so that a table may hold one span in many blocks. A sequence that shares
// the first tokens of another lists the same indices. Where it ends inside a segment, it lists a
// copy of that segment's blocks with a Limit: a prefix of the positions, whatever the order of the
// rows. Positions and counts that are regular (Stride, Tokens) take no bytes.
//
// # Lists of blocks
//
// Queries lists the blocks of each query in compressed sparse rows: query i attends to blocks
// BlockIdx[BlockPtr[i]:BlockPtr[i+1]] of the view. Lists may share blocks, may be empty, and may mix
// codings, row counts, offsets, metrics and positions. A block listed twice counts twice. The order
// of a list, and of the rows in a block, changes results by rounding only.
//
// The score of query head h of query i on row r of a block is
//
//	t = turn(q_h, Offset),  q' = A^-T t                              A = Metric, or 1
//	s = Scale * (<q', k_r> + <t, MeanK>)
//	s = Softcap * tanh(s / Softcap)                                  where Softcap > 0
//	s += log(Count[r]) + Bias[r] - 1/2 * Scale^2 * |q'|^2 * Noise * rowScale(k_r)^2
//
// for rows that the query sees. The score of every other row is -Inf, so such a row cannot reach
// the result even if it holds a NaN. turn rotates q by Offset further RoPE positions. A query sees
// the rows before the block's Limit whose positions are in (pos - Window, pos], or up to pos without
// Window: layers with a sliding window are calls with a Window. With p = softmax(s), the output is
// the sum of p * (v_r + MeanV), and the mass of an entry of the list is the sum of p over its rows
// and over the query's heads.
//
// Optional interfaces extend Backend. Both backends implement Predictor, which compares rows with a
// linear prediction. The cpu backend implements Weigher, which computes Relevance in one pass.
//
// Relevance reads K only, so a block may omit V. RowPtr gives each index of the view exactly as
// many elements as its block has rows. Outputs must not overlap the queries.
//
// # Means and metrics
//
// The rows of a segment have much in common: a constant part, and channels of very unequal size. A
// block may hold its rows minus a mean, times a metric. Both are a matter of queries: the mean of K
// adds one inner product per segment and head, a query is brought into a metric once per call, and
// the mean of V is added by the weight of its block. frame.Center prepares rows for Encode, and
// frame.Uncenter undoes it after Decode. Encode, Decode, Demote and Gather know nothing of them: they
// move coded rows, whatever these are the difference to. Rows that Gather joins in a block must have
// had one mean and one metric.
//
// A list may mix metrics and offsets. Each distinct pair of them prepares the queries of the list
// once more, however often it is listed. Blocks coded with equal metrics should share the Metric.
//
// # Two bases
//
// Rows of rotated codings stay in the rotated basis. Attend rotates q once per seed and pair of
// offset and metric. It sums V in the basis of each block, with one accumulator for the original
// basis and one for the rotated basis, and rotates the latter back once. Therefore all rotated K
// sides in one query's list must share a seed, and so must all rotated V sides. Lists of one call
// may have different seeds.
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
// Encode, Decode, Demote and Gather return a *JobError if one job is at fault, Table.Set a
// *BlockError.
//
// # Concurrency
//
// All methods of a Backend are safe for concurrent use. A call must not write what another call
// reads at the same time, and a buffer must not be freed during a call that uses it. A block whose
// buffer was freed stays in its table; a call that lists it gets quant.ErrClosed.
//
// # Determinism
//
// Packed bytes equal those of package quant, and so do the floats of Decode, bit by bit. The floats
// of Attend and Relevance are within the tolerance that backendtest derives. They are the same bits
// every time the same backend repeats a call, for any number of workers.
//
// Attend is batch-invariant: the bits of a query's results depend on the query and on its own list
// only. How a list is cut and in which order sums run does not depend on the other queries of the
// call, on their number or order, on the other blocks of the table, or on indices in it. So a
// server may batch as it likes, and a sequence that is decoded again gets the same bits.
//
// Package backendtest holds the suite that every backend runs.
package backend
