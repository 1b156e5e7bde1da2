// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"

	"github.com/kvist-project/kvist/quant"
)

// Backend is the whole contract. Every method takes many blocks per call and returns when its
// results are usable. All methods are safe for concurrent use; a call must not write memory that
// another call reads at the same time. A method checks its arguments before it writes anything and
// returns quant.ErrShape or quant.ErrUnsupported for wrong ones.
type Backend interface {
	// Caps describes the backend and says why a better one was not chosen.
	Caps() Caps
	// Supports reports whether op works on rows of dim values in coding c. Dispatch, the skips of
	// the tests and the support table all use this answer.
	Supports(op Op, c quant.Coding, dim int) bool
	// Alloc returns a zeroed buffer of n bytes, 64-byte aligned.
	// Errors: quant.ErrTooLarge, quant.ErrClosed.
	Alloc(n int64) (Buffer, error)
	// Encode packs rows. It writes the same bytes as quant.Encode.
	//
	// Errors: *JobError wrapping quant.ErrRange for a row that the coding cannot hold.
	Encode(ctx context.Context, jobs []EncodeJob) error
	// Decode unpacks rows. It writes the same floats as quant.Decode, bit by bit.
	Decode(ctx context.Context, jobs []DecodeJob) error
	// Demote recodes packed lm rows to fewer bits without the original, in place if Dst equals Src.
	// It writes the same bytes as quant.Demote.
	Demote(ctx context.Context, jobs []DemoteJob) error
	// Gather packs rows of packed sides into new ones. It writes the same bytes as quant.Gather.
	Gather(ctx context.Context, jobs []GatherJob) error
	// NewTable returns an empty table.
	NewTable(s Shape) (Table, error)
	// Attend computes the attention of every query over its list of blocks of a view. A query that
	// sees no row gets zeros, lse = -Inf and no mass. MergeAttention combines partial results.
	Attend(ctx context.Context, q *Queries, v View, to Attention) error
	// Relevance adds to rel.Sum[RowPtr[b]+r] the sum of p^Power over the queries that list block b
	// and over their heads, where p = exp(score - lse) is the attention probability of row r.
	Relevance(ctx context.Context, q *Queries, lse []float32, v View, rel *RelevanceOut) error
	// Close frees the backend and its buffers. Closing it again does nothing.
	Close() error
}

// Weigher is a backend that computes Attend's log-sum-exps and Relevance in one pass over the rows,
// for callers that do not need the outputs of Attend. It is optional: use a type assertion.
type Weigher interface {
	// Weigh is Relevance with the log-sum-exps of the queries over their own lists, so the
	// probabilities of a query that sees a row add up to 1. Blocks may omit V. If a score is NaN or
	// +Inf, at least the sums that Relevance would make NaN are NaN.
	Weigh(ctx context.Context, q *Queries, v View, rel *RelevanceOut) error
}

// Buffer is memory of a backend. Only the backend that made it can use it.
type Buffer interface {
	Len() int64
	Upload(off int64, src []byte) error
	Download(off int64, dst []byte) error
	Free() error
}
