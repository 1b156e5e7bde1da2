// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"math"
	"slices"
)

// coreItems bounds the items around the break that settle decides exactly; coreCells the budget
// cells it does so in.
const (
	coreItems = 32
	coreCells = 1 << 13
)

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
