// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"

	"github.com/kvist-project/kvist/quant"
)

// headQueries are the queries of one query head.
type headQueries struct {
	Q     quant.Rows // [queries, head_dim], RoPE applied
	Pos   []int64    // [queries], or nil: every query sees every row
	Scale float64    // on q.k, most often 1/sqrt(head_dim)
}

// attentionSums adds to sum[r], over the queries, the attention probability of row r to the
// power of 1 or 2: the scalar reference of what a backend's Relevance returns for a query head,
// one query at a time, in float64. Call it for each query head of a KV head with the same sum.
//
// sum: [rows]. k: [rows, head_dim], RoPE applied. kPos: [rows], read only where h.Pos is given;
// a query sees the rows at its own position and before. A query that sees none adds nothing.
//
// It returns how many queries saw a row; nothing is written on errors.
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for NaN and infinities.
func attentionSums(sum []float64, h headQueries, k quant.Rows, kPos []int64, power int) (int, error) {
	if err := checkRows("k", k, 0); err != nil {
		return 0, err
	}
	if err := checkRows("q", h.Q, k.Dim); err != nil {
		return 0, err
	}
	switch {
	case power != 1 && power != 2:
		return 0, shapeErr("attention sums: power %d, want 1 or 2", power)
	case !finite(h.Scale):
		return 0, shapeErr("attention sums: scale %v, want a finite number", h.Scale)
	case len(sum) != k.Len():
		return 0, shapeErr("attention sums: room for %d rows, want %d", len(sum), k.Len())
	case h.Pos != nil && (len(h.Pos) != h.Q.Len() || len(kPos) != k.Len()):
		return 0, shapeErr("attention sums: %d positions of %d queries, %d of %d rows", len(h.Pos),
			h.Q.Len(), len(kPos), k.Len())
	}
	scores, saw := make([]float64, k.Len()), 0
	for i := range h.Q.Len() {
		for r := range scores {
			scores[r] = math.Inf(-1)
			if h.Pos == nil || kPos[r] <= h.Pos[i] {
				scores[r] = h.Scale * dot(h.Q.Row(i), k.Row(r))
			}
		}
		if !softmax(scores) {
			continue
		}
		saw++
		for r, p := range scores {
			if power == 2 {
				p *= p
			}
			sum[r] += p
		}
	}
	return saw, nil
}
