// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"

	"github.com/kvist-project/kvist/engine/internal/damage"
)

// Worst is where an error is largest. A mean over a layer hides a head or a token that is lost.
type Worst struct {
	Head, Token int     // -1 where it is of all of them, or nothing was measured
	Error       float64 // NaN where nothing was measured
}

func notMeasuredWorst() Worst { return Worst{Head: -1, Token: -1, Error: math.NaN()} }

// worse keeps the larger error, the first of equal ones.
func (w *Worst) worse(head, token int, err float64) {
	if !(err <= w.Error) {
		*w = Worst{Head: head, Token: token, Error: err}
	}
}

// LayerWorst is the worst head and token of a layer.
type LayerWorst struct {
	// KHead and VHead are the heads whose rows have the largest error, relative to the head's own rows.
	KHead, VHead Worst
	// KToken and VToken are the rows with the largest squared error, relative to the mean squared length
	// of the rows of their head: a row that is nearly zero is not the worst for it.
	KToken, VToken Worst
	// FutureHead is the KV head whose queries have the largest future-attention error, FutureToken the
	// later token whose outputs have, all heads together; it counts from the first token behind the
	// context.
	FutureHead, FutureToken Worst
}

func newLayerWorst() LayerWorst {
	w := notMeasuredWorst()
	return LayerWorst{w, w, w, w, w, w}
}

// headSum is what rows of one head lost.
type headSum struct {
	damage.Sum
	rows int
	err  float64 // the most of one row
	at   int     // that row
}

func (s *headSum) add(row damage.Sum, token int) {
	s.Merge(row)
	s.rows++
	if row.Err > s.err {
		s.err, s.at = row.Err, token
	}
}

// worstOf returns the worst head, and the worst token of all heads.
func worstOf(heads []headSum) (head, token Worst) {
	head, token = notMeasuredWorst(), notMeasuredWorst()
	for h := range heads {
		s := &heads[h]
		if s.rows == 0 {
			continue
		}
		head.worse(h, -1, s.Relative())
		token.worse(h, s.at, damage.Sum{Err: s.err, Ref: s.Ref / float64(s.rows)}.Relative())
	}
	return head, token
}

// worstFuture returns the worst head and the worst later token; sums is [kv_heads][queries].
func worstFuture(sums [][]damage.Sum) (head, token Worst) {
	head, token = notMeasuredWorst(), notMeasuredWorst()
	var tokens []damage.Sum
	for h := range sums {
		var all damage.Sum
		if tokens == nil {
			tokens = make([]damage.Sum, len(sums[h]))
		}
		for i, s := range sums[h] {
			all.Merge(s)
			tokens[i].Merge(s)
		}
		head.worse(h, -1, all.Relative())
	}
	for i, s := range tokens {
		token.worse(-1, i, s.Relative())
	}
	return head, token
}
