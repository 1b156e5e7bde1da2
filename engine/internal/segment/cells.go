// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// planRows is the number of rows of a planning block.
const planRows = 32

// Kind says what the planner may do with a block.
type Kind uint8

const (
	Free    Kind = iota // any coding of the menu
	Sink                // u8 or exact
	Exact               // exact: the window, rows that are not finite, few rows that stand apart
	Apart               // any coding of the menu, in blocks of their own: many rows that stand apart
	Outside             // dropped: outside the layer's window, no later query sees them
	Late                // 4 bits or more, K not without its mean: late sinks (input.Mean)
)

// Cell is a planning block: tokens of one (layer, segment, head) at one level.
type Cell struct {
	Level  quant.Level
	Kind   Kind
	Tokens []uint16 // offsets in the segment, ascending
	Counts []uint16 // tokens of each row of a merged block, in the order of tokens; nil for others
	// kDamage and vDamage are the damage of a relative squared error of 1 in all rows of K and V:
	// the sum over rows of weight^2 * sensitivity * energy.
	KDamage, VDamage float64
	// Centered cells have K coded without the mean of the segment, unless it is coded exactly.
	Centered bool
	// means are the merged rows of K and V, [rows * dim], while variants are compared; nil later.
	means [2][]float32
}

// Rows returns the number of rows that the cell stores.
func (b *Cell) Rows() int {
	switch {
	case b.Level == quant.Dropped:
		return 0
	case b.Counts != nil:
		return len(b.Counts)
	}
	return len(b.Tokens)
}

// part is one (layer, segment, head) and the variants that the planner chooses from.
type Part struct {
	Layer, Segment, Head int32
	Variants             []variant
	picks                []plan.Pick // which of them when; nil for a single one
}

// variant is one way to cut a part into Problem blocks: which tokens are merged or dropped. The
// first keeps every token.
type variant struct {
	Spec   LevelSpec
	Cells  []Cell
	Damage float64 // of merging and dropping
	bytes  int64   // that its tables take beyond those of the first variant, roughly
}

// Rows are the rows of one head in one segment.
type Rows struct {
	first, n         int
	K, V             quant.Rows // rows that are not finite are zeros
	kEnergy, vEnergy []float64
	bad              []bool // rows of K or V that are not finite
	apart            []bool // rows of K or V that stand apart (apartRatio)
	Mean             *input.Mean
	metric           *frame.Metric // of rows without their mean
	dev              []float64     // see Head.deviations
}

// Read reads a segment's rows of one head, those of the tokens before limit.
//
// Errors: quant.ErrRange for rows that are not finite, unless they are allowed.
func (c *Builder) Read(l *input.Layer, head, seg, limit int) (*Rows, error) {
	first, n := l.Span(seg)
	r := &Rows{first: first, n: max(0, min(n, limit-first))}
	r.bad, r.apart = make([]bool, r.n), make([]bool, r.n)
	var err error
	if r.K, r.kEnergy, err = c.readRows(l, l.K, head, r); err != nil {
		return nil, err
	}
	r.vEnergy = make([]float64, r.n)
	if l.HasV {
		if r.V, r.vEnergy, err = c.readRows(l, l.V, head, r); err != nil {
			return nil, err
		}
	}
	return r, center(c, l, head, r, limit)
}

// kindOf returns how a token of a segment is kept. outside are the layer's first tokens that no query sees.
func (c *Builder) kindOf(l *input.Layer, r *Rows, t, outside int) Kind {
	switch tok := r.first + t; {
	case tok < outside:
		return Outside
	case r.bad[t] || (l.HasV && tok >= l.Tokens-c.Window):
		return Exact
	case l.HasV && tok < c.Sinks:
		return Sink
	case r.apart[t]:
		return Apart
	case r.Mean.Late[t]:
		return Late
	}
	return Free
}

// readRows reads one side. Rows without attention get energy 1: all count the same, relative
// to their length.
func (c *Builder) readRows(l *input.Layer, t input.Tensor, head int,
	r *Rows) (quant.Rows, []float64, error) {
	x := quant.Rows{Dim: t.Dim(), Data: make([]float32, r.n*t.Dim())}
	raw := make([]byte, r.n*t.RowBytes())
	if err := t.Read(head, r.first, r.n, raw); err != nil {
		return x, nil, err
	}
	energy := make([]float64, r.n)
	for i := range r.n {
		row := raw[i*t.RowBytes() : (i+1)*t.RowBytes()]
		if input.FiniteRow(t.DType(), row) {
			continue
		}
		if !c.KeepNonfinite {
			return x, nil, fmt.Errorf(
				"kvist/segment: %s: %s head %d token %d holds NaN or Inf (allow-nonfinite=true keeps such rows exactly): %w",
				c.Input.Name, t.Name(), head, r.first+i, quant.ErrRange)
		}
		r.bad[i] = true
		clear(row)
	}
	if err := input.Decode(x, t, raw); err != nil {
		return x, nil, err
	}
	for i := range r.n {
		energy[i] = input.Energy(x.Row(i))
	}
	limit := input.ApartLimit(energy)
	for i := range r.n {
		r.apart[i] = r.apart[i] || energy[i] >= limit
		if !l.HasV && energy[i] > 0 {
			energy[i] = 1
		}
	}
	return x, energy, nil
}

// Head is what pricing needs to know of a head: its statistics and its tokens' weights.
type Head struct {
	l     *input.Layer
	head  int
	st    *damage.Head
	w     []float32 // [tokens] of root mean square 1, or nil
	limit int       // tokens from here on are left out: they are not past yet
	// outside are the first tokens that no query from limit on can see: outside the layer's window.
	outside int
	divisor float64 // quant.Geometry.ScoreDivisor of the layer
	share   float64 // of the damage that the head's count in the mean
	// kFactor and vFactor are the profile's sensitivities.
	kFactor, vFactor float64

	// Scratch of runWeights, meanRow and codeCells: a Head belongs to one goroutine.
	shares, sums []float64
	raw          []byte
}

// rowDamage returns the damage of a relative squared error of 1 in a row of K and one of V, of those
// energies: a row that stands for n tokens, whose weights add up to sum.
//
// unseen is the share of queries that put all their attention on one token, whichever. Next to the
// thin attention of others that is a lot; but an error of K can take no more from such a query
// than the token's V, which is about what one bit does to it.
func (h *Head) rowDamage(sum float64, n int, kEnergy, vEnergy, unseen float64) (k, v float64) {
	st, tokens := h.st, float64(n)
	scale := h.share / st.OutEnergy
	if st.KShare > 0 {
		kEnergy *= st.KShare
	}
	if h.w == nil || !h.l.HasV {
		w := tokens
		if h.w != nil {
			w = (1-unseen)*sum*sum + unseen*tokens
		}
		return scale * h.kFactor * w * st.KSensitivity * kEnergy,
			scale * h.vFactor * w * st.VSensitivity * vEnergy
	}
	past := (1 - unseen) * sum * sum
	k, v = past*st.KSensitivity*kEnergy, past*st.VSensitivity*vEnergy
	if unseen > 0 {
		asked := unseen * tokens / float64(h.limit-h.outside)
		lost := vEnergy / quant.Coding{Format: quant.LM1}.RelativeError()
		if x := st.KSensitivity / st.VSensitivity * kEnergy; x < lost {
			lost = x
		}
		k, v = k+asked*lost, v+asked*vEnergy
	}
	return scale * h.kFactor * k, scale * h.vFactor * v
}

func (h *Head) weight(tok int) float64 {
	if h.w == nil {
		return 1
	}
	return float64(h.w[tok])
}

// buildPart cuts a part into blocks, in all variants that are the best for some price of a byte.
func (c *Builder) buildPart(h *Head, seg int) (Part, error) {
	p := Part{Layer: int32(h.l.Index), Segment: int32(seg), Head: int32(h.head)}
	r, err := c.Read(h.l, h.head, seg, h.limit)
	if err != nil {
		return p, err
	}
	var by [Late + 1][]uint16
	for t := range r.n {
		k := c.kindOf(h.l, r, t, h.outside)
		by[k] = append(by[k], uint16(t))
	}
	outside, sinks, apart, fixed, free := by[Outside], by[Sink], by[Apart], by[Exact], by[Free]
	whole := variant{}
	if len(outside) > 0 {
		whole.Cells = append(whole.Cells, Cell{Level: quant.Dropped, Kind: Outside, Tokens: outside})
	}
	whole.Cells = append(whole.Cells, c.splitCells(h, r, Sink, sinks)...)
	if len(apart) <= max(1, r.n/fewApart) {
		fixed = append(fixed, apart...)
	} else {
		whole.Cells = append(whole.Cells, c.apartCells(h, r, apart)...)
	}
	whole.Cells = append(whole.Cells, c.splitCells(h, r, Late, by[Late])...)
	kept := len(whole.Cells)
	if h.w == nil {
		whole.Cells = append(whole.Cells, c.timeCells(h, r, free)...)
	} else {
		sortByWeight(free, func(t uint16) float64 { return h.weight(r.first + int(t)) })
		whole.Cells = append(whole.Cells, c.weightCells(h, r, free)...)
	}
	var last []Cell
	if len(fixed) > 0 {
		last = append(last, c.fullCell(h, r, Exact, fixed))
	}
	whole.Cells = append(whole.Cells, last...)
	p.Variants = append(p.Variants, whole)
	if h.w == nil || h.st.Ratios == nil || len(free) == 0 {
		return p, nil
	}
	for i, spec := range c.Specs {
		v, ok := c.levelVariant(h, r, spec, free)
		if !ok {
			continue
		}
		v.Damage = c.levelDamage(h, r, &v, h.st.Ratios[i])
		if math.IsNaN(v.Damage) || math.IsInf(v.Damage, 0) {
			continue // rows so large that their squares are not numbers
		}
		for ci := range v.Cells {
			v.Cells[ci].means = [2][]float32{}
		}
		v.Cells = slices.Concat(whole.Cells[:kept], v.Cells, last)
		p.Variants = append(p.Variants, v)
	}
	err = c.usefulOnly(&p)
	return p, err
}

// splitCells returns a cell of the tokens whose K is shorter as it is, and one of those whose K is shorter without the
// mean.
func (c *Builder) splitCells(h *Head, r *Rows, kind Kind, tokens []uint16) (cells []Cell) {
	var of [2][]uint16
	for _, t := range tokens {
		i := 0
		if !r.Mean.Without(r.metric, r.K.Row(int(t))) {
			i = 1
		}
		of[i] = append(of[i], t)
	}
	for i, tokens := range of {
		if len(tokens) > 0 {
			b := c.fullCell(h, r, kind, tokens)
			b.Centered = i == 1
			cells = append(cells, b)
		}
	}
	return cells
}

// fewApart is one over the share of rows that may stand apart and are kept exactly: more of them would take
// more bytes than there are.
const fewApart = 16

// apartCells cuts rows that stand apart into blocks of their own.
func (c *Builder) apartCells(h *Head, r *Rows, apart []uint16) []Cell {
	cells := c.timeCells(h, r, apart)
	for i := range cells {
		cells[i].Kind = Apart
	}
	return cells
}

// sortByWeight sorts tokens by falling weight, ties by position.
func sortByWeight(tokens []uint16, weight func(uint16) float64) {
	slices.SortStableFunc(tokens, func(a, b uint16) int {
		switch x, y := weight(a), weight(b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
}

func (c *Builder) fullCell(h *Head, r *Rows, kind Kind, tokens []uint16) Cell {
	b := Cell{Kind: kind, Tokens: slices.Sorted(slices.Values(tokens)), Centered: kind == Free && r.Mean.Stored != nil}
	for _, t := range tokens {
		k, v := h.rowDamage(h.weight(r.first+int(t)), 1, r.kEnergy[t], r.vEnergy[t], c.unseen())
		b.KDamage, b.VDamage = b.KDamage+k, b.VDamage+v
	}
	return b
}

// unseen is Config.Unseen where there are levels to hold back from.
func (c *Builder) unseen() float64 {
	if len(c.Specs) == 0 {
		return 0
	}
	return c.Unseen
}

// timeCells cuts tokens that weigh the same into blocks that start at multiples of 32 tokens,
// sinks or not.
func (c *Builder) timeCells(h *Head, r *Rows, free []uint16) (cells []Cell) {
	for len(free) > 0 {
		k := planRows - int(free[0])%planRows
		for i := 1; i < min(k, len(free)); i++ {
			if int(free[i]) >= int(free[0])/planRows*planRows+planRows {
				k = i
			}
		}
		k = min(k, len(free))
		cells = append(cells, c.fullCell(h, r, Free, free[:k]))
		free = free[k:]
	}
	return cells
}

// weightCells cuts tokens that are sorted by weight into blocks of equal worth.
func (c *Builder) weightCells(h *Head, r *Rows, sorted []uint16) (cells []Cell) {
	for part := range slices.Chunk(sorted, planRows) {
		cells = append(cells, c.fullCell(h, r, Free, part))
	}
	return cells
}

// usefulOnly drops the variants that are the best for no price of a byte: most of them.
func (c *Builder) usefulOnly(p *Part) error {
	n := NewProblem(c)
	group, err := n.group(p)
	if err != nil {
		return err
	}
	if p.picks, err = n.Planned.Picks(group.Variants); err != nil {
		return err
	}
	at := make([]int, len(p.Variants))
	for i := range at {
		at[i] = -1
	}
	var kept []variant
	for i, x := range p.picks {
		if at[x.Variant] < 0 {
			at[x.Variant] = len(kept)
			kept = append(kept, p.Variants[x.Variant])
		}
		p.picks[i].Variant = at[x.Variant]
	}
	p.Variants = kept
	return nil
}
