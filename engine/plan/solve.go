// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Option is one way to store an item.
type Option struct {
	Bytes  int64
	Damage float64
	ID     int // the caller's name for it; not looked at
}

// Item is a thing to store and the menu of ways to do so, in any order.
type Item struct {
	Options []Option
}

// Plan is the answer: an option for every item.
type Plan struct {
	Choice []int   // [items], index into the item's options
	Bytes  int64   // sum over the choices
	Damage float64 // sum over the choices
	// Slope is the damage that one more byte would have saved where the budget ran out: the
	// marginal price of a byte. 0 when every item got its best option.
	Slope float64
}

// Solve picks the options with the least total damage whose bytes sum to at most budget.
//
// Errors: quant.ErrBudget with the least possible budget; quant.ErrShape.
func Solve(items []Item, budget int64) (*Plan, error) {
	w, err := newWalk(items)
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

// SolveDamage picks the options with the least bytes whose damage sums to at most bound.
//
// Errors: quant.ErrBudget with the least possible damage; quant.ErrShape.
func SolveDamage(items []Item, bound float64) (*Plan, error) {
	w, err := newWalk(items)
	if err != nil {
		return nil, err
	}
	for _, s := range w.steps {
		if w.plan.Damage <= bound {
			w.plan.Slope = s.slope
			break
		}
		if w.at[s.item] == s.from {
			w.take(s)
		}
	}
	p := w.finish()
	if p.Damage > bound*(1+1e-12) {
		return nil, fmt.Errorf("kvist/plan: damage of at most %g: the least possible is %g: %w",
			bound, p.Damage, quant.ErrBudget)
	}
	return p, nil
}

// step moves an item one point along its hull.
type step struct {
	item     int32
	from, to int16 // hull points as option indices
	bytes    int64
	saved    float64
	slope    float64 // damage saved per byte
}

type walk struct {
	items []Item
	at    []int16 // [items] option held
	steps []step  // descending slope
	plan  Plan
}

func newWalk(items []Item) (*walk, error) {
	if len(items) > math.MaxInt32 {
		return nil, fmt.Errorf("kvist/plan: %d items: %w", len(items), quant.ErrTooLarge)
	}
	w := &walk{items: items, at: make([]int16, len(items))}
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
			s := step{item: int32(i), from: hull[k-1], to: hull[k],
				bytes: b.Bytes - a.Bytes, saved: a.Damage - b.Damage}
			s.slope = s.saved / float64(s.bytes)
			w.steps = append(w.steps, s)
		}
	}
	// Within an item slopes fall strictly, so a stable sort keeps its steps in order.
	slices.SortStableFunc(w.steps, func(a, b step) int { return cmp.Compare(b.slope, a.slope) })
	return w, nil
}

func checkOptions(options []Option) error {
	for j, o := range options {
		if o.Bytes < 0 || !(o.Damage >= 0) || math.IsInf(o.Damage, 0) {
			return fmt.Errorf("option %d: %d bytes, damage %g: %w", j, o.Bytes, o.Damage,
				quant.ErrShape)
		}
	}
	return nil
}

// lowerHull returns the options on the lower left convex hull of (bytes, damage), from the
// cheapest (least damage among equals) to the least damaging.
func lowerHull(hull []int16, options []Option) []int16 {
	order := make([]int16, len(options))
	for i := range order {
		order[i] = int16(i)
	}
	slices.SortStableFunc(order, func(a, b int16) int {
		return cmp.Or(cmp.Compare(options[a].Bytes, options[b].Bytes),
			cmp.Compare(options[a].Damage, options[b].Damage))
	})
	for _, i := range order {
		p := options[i]
		if n := len(hull); n > 0 && p.Damage >= options[hull[n-1]].Damage {
			continue // dominated
		}
		for len(hull) >= 2 {
			a, b := options[hull[len(hull)-2]], options[hull[len(hull)-1]]
			// b stays only if the slope a->b is steeper than b->p.
			if (a.Damage-b.Damage)*float64(p.Bytes-b.Bytes) > (b.Damage-p.Damage)*float64(
				b.Bytes-a.Bytes,
			) {
				break
			}
			hull = hull[:len(hull)-1]
		}
		hull = append(hull, i)
	}
	return hull
}

func (w *walk) take(s step) {
	w.at[s.item] = s.to
	w.plan.Bytes += s.bytes
	w.plan.Damage -= s.saved
}

// coreItems bounds the items around the break that settle decides exactly; coreCells the budget
// cells it does so in.
const (
	coreItems = 32
	coreCells = 1 << 13
)

// settle decides the items whose steps lie around steps[k], the first that no longer fits.
func (w *walk) settle(k int, budget int64) {
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

// coreOf returns the items of the steps nearest to step k of n, ascending.
func coreOf(n, k int, item func(i int) int32) []int32 {
	var core []int32
	seen := map[int32]bool{}
	add := func(i int) {
		if i >= 0 && i < n && len(core) < coreItems && !seen[item(i)] {
			seen[item(i)] = true
			core = append(core, item(i))
		}
	}
	for d := 0; d < 4*coreItems; d++ {
		add(k + d)
		add(k - 1 - d)
	}
	slices.Sort(core)
	return core
}

// settleCore decides a few menus anew by dynamic programming over what is left of the budget (the
// core of a knapsack problem: Pisinger, "A minimal algorithm for the multiple-choice knapsack
// problem", 1995). at holds the options taken so far and gets the new ones; left is what they
// leave over, short is the first that does not fit into it. false: nothing better was found.
//
// Cells are as wide as the most that can be left over before that step fits: the same for all
// budgets that break there, so that a larger one never gets a worse answer.
func settleCore(menus [][]Option, at []int16, left, short int64) bool {
	// What the core needs at the least is not counted in cells: that keeps them fine.
	var base int64
	for n, options := range menus {
		left, short = left+options[at[n]].Bytes, short+options[at[n]].Bytes
		base += cheapest(options)
	}
	cell := max(1, (short-base+coreCells-1)/coreCells)
	cells := int((left - base) / cell)
	best := make([]float64, cells+1)
	next := make([]float64, cells+1)
	pick := make([][]int16, len(menus))
	for n, options := range menus {
		low := cheapest(options)
		pick[n] = make([]int16, cells+1)
		for b := range next {
			next[b] = math.Inf(1)
			for j, o := range options {
				// Cells round up, so that what fits in cells fits in bytes.
				c := int64(b) - (o.Bytes-low+cell-1)/cell
				if c >= 0 && best[c]+o.Damage < next[b] {
					next[b], pick[n][b] = best[c]+o.Damage, int16(j)
				}
			}
		}
		best, next = next, best
	}
	var now float64
	for n, options := range menus {
		now += options[at[n]].Damage
	}
	if best[cells] >= now {
		return false // cells coarser than bytes can lose to the walk
	}
	b := cells
	for n := len(menus) - 1; n >= 0; n-- {
		at[n] = pick[n][b]
		b -= int((menus[n][at[n]].Bytes - cheapest(menus[n]) + cell - 1) / cell)
	}
	return true
}

func cheapest(options []Option) int64 {
	low := options[0].Bytes
	for _, o := range options {
		low = min(low, o.Bytes)
	}
	return low
}

// finish sums the choices anew, so that totals carry no error of the walk.
func (w *walk) finish() *Plan {
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

// Prune returns the options on the lower convex hull of a menu, in ascending bytes: all that Solve
// takes but for the last few bytes of a budget. It keeps large plans small.
func Prune(options []Option) []Option {
	hull := lowerHull(nil, options)
	kept := make([]Option, len(hull))
	for i, j := range hull {
		kept[i] = options[j]
	}
	return kept
}

// Least returns the bytes of the cheapest options.
func Least(items []Item) (n int64) {
	for _, it := range items {
		if len(it.Options) > 0 {
			n += cheapest(it.Options)
		}
	}
	return n
}

// Most returns the bytes that Solve spends when the budget has no end.
func Most(items []Item) (n int64) {
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
