// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/memo"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/engine/internal/weigh"
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
	Mean          bool   // K may be coded without the mean of its segment
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
	h := &Head{l: l, head: head, st: &c.Stats[l.Index][head], w: w}
	c.look(h, limit)
	h.kFactor, h.vFactor = c.Factors(l, head)
	h.share = 1 / float64(c.Input.Heads)
	if !l.HasV { // the mean over rows
		h.share = 1 / (float64(max(1, l.Tokens)) * float64(c.Input.Heads))
	}
	return h
}

// look sets what a view knows of its layer's attention, with the tokens before limit at hand.
func (c *Builder) look(h *Head, limit int) {
	h.limit, h.outside = limit, c.Input.Outside(h.l, limit)
	if h.l.HasV {
		h.divisor = c.Input.Geo.ScoreDivisor(h.l.Number)
	}
}

// levelRatios fills in what levels do to the queries that a head was probed with.
func (c *Builder) levelRatios(ctx context.Context, p *damage.Probed, st *damage.Head) (err error) {
	if len(c.Specs) == 0 || p.Weights == nil || st.VCurve == nil || p.Shortened {
		return nil
	}
	view := &Head{l: p.Layer, head: p.Head, st: st, w: p.Weights, share: 1, kFactor: 1, vFactor: 1}
	c.look(view, input.FutureFrom(&c.Input.Geo, p.Layer))
	st.Ratios, err = c.probedLevels(ctx, view, p.Queries, p.Tail, p.Want)
	return err
}

// Menu returns what the planner may choose for a block of a kind.
func (c *Builder) Menu(l *input.Layer, kind Kind) (plan.Menu, error) {
	ek := input.Exact(l.K)
	var ev quant.Coding
	if l.HasV {
		ev = input.Exact(l.V)
	}
	only := func(k, v []quant.Coding) plan.Menu {
		if !l.HasV {
			v = nil
		}
		return plan.Menu{K: k, V: v}
	}
	switch kind {
	case Exact:
		return only([]quant.Coding{ek}, []quant.Coding{ev}), nil
	case Late:
		some := fine(c.Menus.K)
		m, err := menu(some, c.Menus.V, l.K.Dim(), l.V.Dim(), ek)
		if err == nil && len(c.Menus.K) > 1 && len(some) == 1 {
			m.K = append(m.K, ek) // the choice is left, even where one coding of it is fine enough
		}
		if err == nil && len(c.Menus.V) > 1 {
			m.V[len(m.V)-1] = ev
		}
		return m, err
	case Sink:
		u8 := quant.Coding{Format: quant.U8, Scale: quant.ScaleLog8}
		k, v := []quant.Coding{u8, ek}, []quant.Coding{u8, ev}
		if u8.CheckDim(l.K.Dim()) != nil {
			k = k[1:]
		}
		if l.HasV && u8.CheckDim(l.V.Dim()) != nil {
			v = v[1:]
		}
		return only(k, v), nil
	}
	if !l.HasV {
		return menu(c.Menus.Rows, nil, l.K.Dim(), 0, ek)
	}
	m, err := menu(c.Menus.K, c.Menus.V, l.K.Dim(), l.V.Dim(), ek)
	if err == nil && len(c.Menus.V) > 1 {
		m.V[len(m.V)-1] = ev
	}
	return m, err
}

// fine returns the codings of a menu of 4 bits or more; where all have less, lm4 in the place of the last.
func fine(menu []quant.Coding) (some []quant.Coding) {
	for _, c := range menu {
		if c.Format.Bits() >= 4 {
			some = append(some, c)
		}
	}
	if len(some) == 0 {
		c := menu[len(menu)-1]
		if c.Format.Nested() {
			c.Format = quant.LM4
		}
		some = append(some, c)
	}
	return some
}

// menu is the planner's menu for blocks of one kind.
func menu(k, v []quant.Coding, dimK, dimV int, exact quant.Coding) (plan.Menu, error) {
	fit := func(m []quant.Coding, dim int) []quant.Coding {
		var ok []quant.Coding
		for _, c := range m {
			if c.CheckDim(dim) == nil {
				ok = append(ok, c)
			}
		}
		// The exact coding tops a menu that leaves a choice.
		if len(m) > 1 {
			ok = append(ok, exact)
		}
		return ok
	}
	var p plan.Menu
	p.K = fit(k, dimK)
	if dimV > 0 {
		p.V = fit(v, dimV)
	}
	if len(p.K) == 0 {
		return p, k[0].CheckDim(dimK)
	}
	if dimV > 0 && len(p.V) == 0 {
		return p, v[0].CheckDim(dimV)
	}
	return p, nil
}
