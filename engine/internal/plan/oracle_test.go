// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// item is a thing to store and the menu of ways to do so, in any order.
type item struct {
	Options []Option
}

// itemPlan is the answer of solve: an option for every item.
type itemPlan struct {
	Choice []int   // [items], index into the item's options
	Bytes  int64   // sum over the choices
	Damage float64 // sum over the choices
	// Slope is the damage that one more byte would have saved where the budget ran out: the
	// marginal price of a byte. 0 when every item got its best option.
	Slope float64
}

// solve picks the options with the least total damage whose bytes sum to at most budget.
//
// Errors: quant.ErrBudget with the least possible budget; quant.ErrShape.
func solve(items []item, budget int64) (*itemPlan, error) {
	w, err := newItemWalk(items)
	if err != nil {
		return nil, err
	}
	if w.plan.Bytes > budget {
		return nil, fmt.Errorf("kvist/plan: budget of %d bytes: the least possible is %d: %w",
			budget, w.plan.Bytes, quant.ErrBudget)
	}
	for k, s := range w.steps {
		if w.plan.Bytes+s.bytes > budget {
			w.plan.Slope = s.slope
			w.settle(k, budget)
			break
		}
		w.take(s)
	}
	return w.finish(), nil
}

// itemStep moves an item one point along its hull.
type itemStep struct {
	item     int32
	from, to int16 // hull points as option indices
	bytes    int64
	saved    float64
	slope    float64 // damage saved per byte
}

type itemWalk struct {
	items []item
	at    []int16    // [items] option held
	steps []itemStep // descending slope
	plan  itemPlan
}

func newItemWalk(items []item) (*itemWalk, error) {
	if len(items) > math.MaxInt32 {
		return nil, fmt.Errorf("kvist/plan: %d items: %w", len(items), quant.ErrTooLarge)
	}
	w := &itemWalk{items: items, at: make([]int16, len(items))}
	var hull []int16
	for i, it := range items {
		if len(it.Options) == 0 || len(it.Options) > math.MaxInt16 {
			return nil, fmt.Errorf("kvist/plan: item %d has %d options: %w", i, len(it.Options),
				quant.ErrShape)
		}
		if err := checkOptions(it.Options); err != nil {
			return nil, fmt.Errorf("kvist/plan: item %d %w", i, err)
		}
		hull = lowerHull(hull[:0], it.Options)
		w.at[i] = hull[0]
		w.plan.Bytes += it.Options[hull[0]].Bytes
		w.plan.Damage += it.Options[hull[0]].Damage
		for k := 1; k < len(hull); k++ {
			a, b := it.Options[hull[k-1]], it.Options[hull[k]]
			s := itemStep{item: int32(i), from: hull[k-1], to: hull[k],
				bytes: b.Bytes - a.Bytes, saved: a.Damage - b.Damage}
			s.slope = s.saved / float64(s.bytes)
			w.steps = append(w.steps, s)
		}
	}
	// Within an item slopes fall strictly, so a stable sort keeps its steps in order.
	slices.SortStableFunc(w.steps, func(a, b itemStep) int { return cmp.Compare(b.slope, a.slope) })
	return w, nil
}

func (w *itemWalk) take(s itemStep) {
	w.at[s.item] = s.to
	w.plan.Bytes += s.bytes
	w.plan.Damage -= s.saved
}

// settle decides the items whose steps lie around steps[k], the first that no longer fits.
func (w *itemWalk) settle(k int, budget int64) {
	core := coreOf(len(w.steps), k, func(i int) int32 { return w.steps[i].item })
	menus := make([][]Option, len(core))
	at := make([]int16, len(core))
	for n, i := range core {
		menus[n], at[n] = w.items[i].Options, w.at[i]
	}
	if !settleCore(menus, at, budget-w.plan.Bytes, w.steps[k].bytes) {
		return
	}
	for n, i := range core {
		w.at[i] = at[n]
	}
}

// finish sums the choices anew, so that totals carry no error of the walk.
func (w *itemWalk) finish() *itemPlan {
	p := &w.plan
	p.Choice = make([]int, len(w.items))
	p.Bytes, p.Damage = 0, 0
	for i, it := range w.items {
		p.Choice[i] = int(w.at[i])
		p.Bytes += it.Options[w.at[i]].Bytes
		p.Damage += it.Options[w.at[i]].Damage
	}
	return p
}

// leastBytes returns the bytes of the cheapest options.
func leastBytes(items []item) (n int64) {
	for _, it := range items {
		if len(it.Options) > 0 {
			n += cheapest(it.Options)
		}
	}
	return n
}

// mostBytes returns the bytes that solve spends when the budget has no end.
func mostBytes(items []item) (n int64) {
	for _, it := range items {
		best := Option{Damage: math.Inf(1)}
		for _, o := range it.Options {
			if o.Damage < best.Damage || (o.Damage == best.Damage && o.Bytes < best.Bytes) {
				best = o
			}
		}
		n += best.Bytes
	}
	return n
}
