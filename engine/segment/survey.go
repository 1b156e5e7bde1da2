// SPDX-License-Identifier: Apache-2.0

package segment

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
type Menus struct{ K, V, Rows []quant.Coding }

// builder turns layers into what a plan chooses from: blocks, in variants, with their prices.
type Builder struct {
	Backend backend.Backend
	Input   *input.Data
	Price   *damage.Pricer
	Memo    *memo.Memo
	Seed    uint64
	Menus   Menus
	Specs   []LevelSpec // levels that a plan may choose beside FULL

	Sinks, Window int     // tokens at both ends that are kept finely, exactly
	Unseen        float64 // share of queries to expect that are unlike those seen
	KeepNonfinite bool    // rows with NaN or Inf are kept exactly, not refused
	RowBias       bool
	Recipe        string // how tokens are weighed
	Weighted      bool   // by weights that were handed in
	// factors returns what the damage of K and V of a head is multiplied with.
	Factors func(l *input.Layer, head int) (k, v float64)

	Stats   [][]damage.Head // [layers][heads]
	Weights []weigh.Weights // [layers]
}

// survey measures the heads of a layer, whose weights are known, and prices all their blocks.
func (c *Builder) Survey(ctx context.Context, l *input.Layer) ([]Part, error) {
	stats, w := make([]damage.Head, l.Heads), &c.Weights[l.Index]
	var out float64
	for h := range stats {
		stats[h] = damage.Head{KSensitivity: 1, VSensitivity: 1, QueryEnergy: 1, OutEnergy: 1}
		if l.HasV {
			var err error
			if stats[h], err = c.Price.Calibrate(ctx, l, h, w.Past[h], c.levelRatios); err != nil {
				return nil, err
			}
		}
		out += stats[h].OutEnergy / float64(l.Heads)
	}
	if !(out > 0) {
		out = 1 // a layer without any energy costs nothing; keep the divisions defined
	}
	c.Stats[l.Index] = stats
	var parts []Part
	for h := range l.Heads {
		// Errors are relative to the output of the whole layer, as the future-attention error is: a
		// head that attends to a sink only, and puts out next to nothing, cannot claim bytes for it.
		stats[h].OutEnergy = out
		view := c.Head(l, h, w.Now[h], l.Tokens)
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

// Head returns the view of a head whose tokens before limit are planned.
func (c *Builder) Head(l *input.Layer, head int, w []float32, limit int) *Head {
	h := &Head{l: l, head: head, st: &c.Stats[l.Index][head], w: w, limit: limit}
	h.kFactor, h.vFactor = c.Factors(l, head)
	h.share = 1 / float64(c.Input.Heads)
	if !l.HasV { // the mean over rows
		h.share = 1 / (float64(max(1, l.Tokens)) * float64(c.Input.Heads))
	}
	return h
}

// levelRatios fills in what levels do to the queries that a head was probed with.
func (c *Builder) levelRatios(ctx context.Context, p *damage.Probed, st *damage.Head) (err error) {
	if len(c.Specs) == 0 || p.Weights == nil || st.VCurve == nil || p.Shortened {
		return nil
	}
	view := &Head{l: p.Layer, head: p.Head, st: st, w: p.Weights, limit: p.Layer.Past(), share: 1, kFactor: 1, vFactor: 1}
	st.Ratios, err = c.probedLevels(ctx, view, p.Queries, p.Tail, p.Want)
	return err
}
