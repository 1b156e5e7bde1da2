// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"

	"github.com/kvist-project/kvist/quant"
)

// Backend is the whole contract. Every verb takes many blocks a call, and returns when its
// results are usable. All methods may be called from many goroutines at once; jobs of calls in
// flight must not write what another call reads. Arguments are checked; wrong ones give
// quant.ErrShape or quant.ErrUnsupported and nothing is written.
type Backend interface {
	// Caps says what this backend is, and why it is not a better one.
	Caps() Caps
	// Supports says whether op works on rows of dim values in coding c. Never a guess: the same
	// answer feeds dispatch, the skips of tests and the table in the README.
	Supports(op Op, c quant.Coding, dim int) bool
	// Alloc returns a zeroed buffer of n bytes, 64-byte aligned.
	// Errors: quant.ErrTooLarge, quant.ErrClosed.
	Alloc(n int64) (Buffer, error)
	// Encode packs rows. Packed bytes are those of quant.Encode, bit by bit.
	// Errors: *JobError wrapping quant.ErrRange for a row that the coding cannot hold.
	Encode(ctx context.Context, jobs []EncodeJob) error
	// Decode unpacks rows; floats are those of quant.Decode, bit by bit.
	Decode(ctx context.Context, jobs []DecodeJob) error
	// Demote re-codes packed lm rows to fewer bits without the original, in place where
	// Dst is Src. Packed bytes are those of quant.Demote.
	Demote(ctx context.Context, jobs []DemoteJob) error
	// Attend computes attention of every query over its list of blocks.
	// out is [queries, group, head_dim_v], lse [queries, group] or nil. A query that sees no
	// row gives zeros and lse = -Inf; partial results combine with MergeAttention.
	Attend(ctx context.Context, q *Queries, blocks []Block, out, lse []float32) error
	// Relevance adds to out[RowPtr[b]+r], over the queries that list block b, the sum over the
	// group of p^Power, where p = exp(score - lse) is the attention probability of row r.
	Relevance(ctx context.Context, q *Queries, lse []float32, blocks []Block, rel *RelevanceOut) error
	// Close frees the backend and its buffers; a second Close does nothing.
	Close() error
}

// Weigher is a backend that does in one pass over the rows what Attend and Relevance do in two,
// where outputs are not wanted. It is optional: ask by type assertion.
type Weigher interface {
	// Weigh is Relevance with the log-sum-exps of the queries over their lists: the attention
	// probabilities of every query that sees a row add up to 1. V of a block may be left out. Scores that
	// are NaN or +Inf make sums NaN, no fewer than in Relevance.
	Weigh(ctx context.Context, q *Queries, blocks []Block, rel *RelevanceOut) error
}

// Buffer is memory of a backend. A Buffer is used only with the backend that made it.
type Buffer interface {
	Len() int64
	Upload(off int64, src []byte) error
	Download(off int64, dst []byte) error
	Free() error
}
