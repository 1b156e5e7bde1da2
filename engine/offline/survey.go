// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/memo"
	"github.com/kvist-project/kvist/engine/weigh"
	"github.com/kvist-project/kvist/quant"
)

// menus are the codings that a plan may choose from for blocks that are no sinks.
type menus struct{ K, V, Rows []quant.Coding }

// builder turns layers into what a plan chooses from: blocks, in variants, with their prices.
type builder struct {
	be    backend.Backend
	in    *input.Data
	price *damage.Pricer
	memo  *memo.Memo
	seed  uint64
	menus menus
	specs []levelSpec // levels that a plan may choose beside FULL

	sinks, window int     // tokens at both ends that are kept finely, exactly
	expect        float64 // share of queries to expect that are unlike those seen
	nonfinite     bool    // rows with NaN or Inf are kept exactly, not refused
	rowBias       bool
	recipe        string // how tokens are weighed
	weighted      bool   // by weights that were handed in
	// factors returns what the damage of K and V of a head is multiplied with.
	factors func(l *input.Layer, head int) (k, v float64)

	stats   [][]damage.Head // [layers][heads]
	weights []weigh.Weights // [layers]
}

// survey measures the heads of a layer, whose weights are known, and prices all their blocks.
func (c *builder) survey(ctx context.Context, l *input.Layer) ([]part, error) {
	stats, w := make([]damage.Head, l.Heads), &c.weights[l.Index]
	var out float64
	for h := range stats {
		stats[h] = damage.Head{KSensitivity: 1, VSensitivity: 1, QueryEnergy: 1, OutEnergy: 1}
		if l.HasV {
			var err error
			if stats[h], err = c.price.Calibrate(ctx, l, h, w.Past[h], c.levelRatios); err != nil {
				return nil, err
			}
		}
		out += stats[h].OutEnergy / float64(l.Heads)
	}
	if !(out > 0) {
		out = 1 // a layer without any energy costs nothing; keep the divisions defined
	}
	c.stats[l.Index] = stats
	var parts []part
	for h := range l.Heads {
		// Errors are relative to the output of the whole layer, as the future-attention error is: a
		// head that attends to a sink only, and puts out next to nothing, cannot claim bytes for it.
		stats[h].OutEnergy = out
		view := c.headOf(l, h, w.Now[h], l.Tokens)
		for s := range l.Segments() {
			p, err := c.buildPart(view, s)
			if err != nil {
				return nil, err
			}
			parts = append(parts, p)
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
	}
	return parts, nil
}

// headOf returns the view of a head whose tokens before limit are planned.
func (c *builder) headOf(l *input.Layer, head int, w []float32, limit int) *headOf {
	h := &headOf{l: l, head: head, st: &c.stats[l.Index][head], w: w, limit: limit}
	h.kFactor, h.vFactor = c.factors(l, head)
	h.share = 1 / float64(c.in.Heads)
	if !l.HasV { // the mean over rows
		h.share = 1 / (float64(max(1, l.Tokens)) * float64(c.in.Heads))
	}
	return h
}

// levelRatios fills in what levels do to the queries that a head was probed with.
func (c *builder) levelRatios(ctx context.Context, p *damage.Probed, st *damage.Head) (err error) {
	if len(c.specs) == 0 || p.Weights == nil || st.VCurve == nil || p.Shortened {
		return nil
	}
	view := &headOf{l: p.Layer, head: p.Head, st: st, w: p.Weights, limit: p.Layer.Past(), share: 1, kFactor: 1, vFactor: 1}
	st.Ratios, err = c.probedLevels(ctx, view, p.Queries, p.Tail, p.Want)
	return err
}
