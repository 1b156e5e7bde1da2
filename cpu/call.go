// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
)

// call is the state of one call of Attend or Relevance. It is reused, so that calls allocate
// nothing once the pools are warm.
type call struct {
	prepared
	b    *Backend
	ctx  context.Context
	view *view
	all  []int32 // 0, 1, ... queries: units slice their queries from it
	cuts []cut   // of all units, one after the other

	// Attend.
	to      backend.Attention
	wave    []unit    // current units
	owner   []int32   // the unit of every part of the wave
	parts   []part    // parts of the wave
	doubles []float64 // memory of the parts
	floats  []float32

	// Relevance.
	lse   []float32
	rel   *backend.RelevanceOut
	items []relevanceItem
	ptr   []int // block b is listed by queries users[ptr[b]:ptr[b+1]]
	users []int32

	// Weigh.
	zeros  []float32 // used as log-sum-exps by the checks
	totals []float64 // [rows of all blocks]

	// Method values, created once.
	doPrepare, doAttend, doCombine, doRelevance, doWeigh func(i int) error
}

func newCall(b *Backend) *call {
	c := &call{b: b}
	c.doPrepare, c.doAttend, c.doCombine = c.prepareOne, c.attendOne, c.combineOne
	c.doRelevance, c.doWeigh = c.relevanceOne, c.weighOne
	return c
}

// done returns a call to the pool without references to its caller's memory.
func (c *call) done() {
	c.Queries, c.ctx, c.view, c.to, c.lse, c.rel = nil, nil, nil, backend.Attention{}, nil, nil
	clear(c.units) // they refer to the caller's lists
	clear(c.variants)
	c.wave = nil
	c.b.calls.Put(c)
}
