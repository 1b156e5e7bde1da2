// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
)

// call is one call of Attend or Relevance, with all that it needs beside its arguments. It is
// kept for later calls: in the steady state a call allocates nothing.
type call struct {
	prepared
	b      *Backend
	ctx    context.Context
	blocks []backend.Block

	// Attend.
	out, lse []float32
	all      []int32 // 0, 1, ... queries: what units take theirs from
	units    []unit
	cuts     []cut     // of all units, one after the other
	wave     []unit    // at work
	owner    []int32   // the unit of every part of the wave
	parts    []part    // of the wave
	doubles  []float64 // that the parts are made of
	floats   []float32

	// Relevance.
	rel   *backend.RelevanceOut
	items []relevanceItem
	ptr   []int // block b is listed by queries users[ptr[b]:ptr[b+1]]
	users []int32

	// Weigh.
	zeros  []float32 // in place of log-sum-exps, for the checks
	totals []float64 // [rows of all blocks]

	// Methods of this call, bound once.
	doPrepare, doAttend, doCombine, doRelevance, doWeigh func(i int) error
}

func newCall(b *Backend) *call {
	c := &call{b: b}
	c.doPrepare, c.doAttend, c.doCombine = c.prepareOne, c.attendOne, c.combineOne
	c.doRelevance, c.doWeigh = c.relevanceOne, c.weighOne
	return c
}

// done gives a call back, without what belongs to its caller.
func (c *call) done() {
	c.Queries, c.ctx, c.blocks, c.out, c.lse, c.rel, c.freqs = nil, nil, nil, nil, nil, nil, nil
	clear(c.units) // they refer to the caller's lists
	c.wave = nil
	c.b.calls.Put(c)
}
