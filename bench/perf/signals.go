// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
)

// relevanceQueries look at the rows of a context at once, as when a segment is weighed.
const (
	relevanceQueries = 64
	relevanceTokens  = 4096
)

// signalCases measure what importance costs: the mass of blocks beside attention, and the attention of rows.
func signalCases(quick bool, threads int) (all []Case) {
	for _, s := range shapes(quick) {
		coding, tokens := K3, contexts(true)[0]
		all = append(all, Case{Names: []string{fmt.Sprintf("mass/%s/coding=%s/context=%d/threads=%d", s, coding, tokens, threads)},
			Setup: func(ctx context.Context, e *Env) (*Ready, error) {
				r, err := newRig(ctx, e, s, coding)
				if err != nil {
					return nil, err
				}
				return &Ready{Work: []*Work{r.attend(tokens, true)}, Close: r.table.Close}, nil
			}}, Case{Names: []string{fmt.Sprintf("relevance/head_dim=%d/gqa=%d/coding=%s/queries=%d/context=%d/threads=%d", s.HeadDim,
			s.GQA, F16, relevanceQueries, relevanceTokens, threads)},
			Setup: func(ctx context.Context, e *Env) (*Ready, error) { return relevanceReady(ctx, e, s) }})
	}
	return all
}

// relevanceReady prepares the relevance of the rows of a context to the last queries. The rows are f16: rows are
// weighed before they are coded.
func relevanceReady(ctx context.Context, e *Env, s Shape) (*Ready, error) {
	small := *e
	small.WorkingSet = relevanceTokens * int64(s.HeadDim) * 4
	r, err := newRig(ctx, &small, s, F16)
	e.arena = small.arena
	if err != nil {
		return nil, err
	}
	n, dim, group := relevanceQueries, s.HeadDim, s.GQA
	q := &backend.Queries{Q: gaussian(n*group*dim, 9), Group: group, HeadDim: dim, HeadDimV: dim,
		Scale: float32(1 / math.Sqrt(float64(dim))), Pos: slices.Repeat([]int64{1 << 40}, n), BlockPtr: make([]int32, n+1)}
	for i := range n {
		for b := range r.blocks {
			q.BlockIdx = append(q.BlockIdx, int32(b))
		}
		q.BlockPtr[i+1] = int32(len(q.BlockIdx))
	}
	to := &backend.RelevanceOut{Power: 2, RowPtr: make([]int32, r.blocks+1), Sum: make([]float32, r.blocks*r.rows)}
	for i := range to.RowPtr {
		to.RowPtr[i] = int32(i * r.rows)
	}
	run := func(ctx context.Context) error {
		att := backend.Attention{Out: make([]float32, n*group*dim), LSE: make([]float32, n*group)}
		if err := e.Backend.Attend(ctx, q, r.view, att); err != nil {
			return err
		}
		return e.Backend.Relevance(ctx, q, att.LSE, r.view, to)
	}
	if w, ok := e.Backend.(backend.Weigher); ok {
		run = func(ctx context.Context) error { return w.Weigh(ctx, q, r.view, to) }
	}
	units := float64(n * r.blocks * r.rows)
	return &Ready{Close: r.table.Close, Work: []*Work{{Unit: "row and query", Units: units, Bytes: units * float64(2*dim),
		Plain: units * float64(2*dim), Threads: e.Threads, Run: run}}}, nil
}
