// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// solveItems stores every item, whatever its group: it picks the options with the least total
// damage whose bytes sum to at most budget. It gives the plan of the oracle's solve over the same
// items, up to rounding of slopes that are almost equal. It sorts only the few thousand steps
// around the break, which a histogram of slopes finds.
//
// Errors: quant.ErrBudget with the least possible budget; quant.ErrShape.
func solveItems(p *Problem, budget int64) (*Plan, error) {
	s, err := newWalk(p)
	if err != nil {
		return nil, err
	}
	if s.bytes > budget {
		return nil, fmt.Errorf("kvist/plan: budget of %d bytes: the least possible is %d: %w",
			budget, s.bytes, quant.ErrBudget)
	}
	s.walk(budget)
	return s.finish(), nil
}

// step moves an item one point along its hull. Steps of equal slope go by item, then by step.
type step struct {
	key  uint64 // the bits of the slope, which order like the slope
	item int32
	step uint16
}

// walk holds every item at a point of its hull.
type walk struct {
	p     *Problem
	hulls []hull
	at    []uint8 // [items] hull point held
	bytes int64   // of the points held
	slope float64
	exact map[int32]uint8 // options of the items around the break, where settle chose them
}

func newWalk(p *Problem) (*walk, error) {
	if len(p.Class) != len(p.Sensitivity) || len(p.Class) > math.MaxInt32 {
		return nil, fmt.Errorf("kvist/plan: %d classes of items, %d sensitivities: %w",
			len(p.Class), len(p.Sensitivity), quant.ErrShape)
	}
	hulls, err := hullsOf(p.Classes)
	if err != nil {
		return nil, err
	}
	s := &walk{p: p, hulls: hulls, at: make([]uint8, len(p.Class))}
	if s.bytes, err = p.bytesAtLeast(hulls, 0, len(p.Class)); err != nil {
		return nil, err
	}
	return s, nil
}

// bytesAtLeast checks items [first, first+n) and returns what they take at the first points of their hulls.
func (p *Problem) bytesAtLeast(hulls []hull, first, n int) (bytes int64, err error) {
	for i := first; i < first+n; i++ {
		c := p.Class[i]
		if v := p.Sensitivity[i]; int(c) >= len(hulls) || !(v >= 0) || v > math.MaxFloat64 {
			return 0, fmt.Errorf("kvist/plan: item %d: class %d of %d, sensitivity %g: %w", i, c,
				len(hulls), v, quant.ErrShape)
		}
		bytes += hulls[c].least
	}
	return bytes, nil
}

// Slopes fall into slopeBuckets by their leading bits; a window of buckets around the break that
// holds at most coreSteps steps is sorted.
const (
	slopeBuckets = 1 << 15
	coreSteps    = 1 << 12
)

type slopeBucket struct {
	bytes int64
	steps int64
}

// walk takes all steps in falling order of slope until one does not fit, then settles the items
// around it.
func (s *walk) walk(budget int64) {
	hist := make([]slopeBucket, slopeBuckets)
	const shift = 64 - 1 - 15 // slopes are positive: the sign bit is 0
	for i, c := range s.p.Class {
		h, v := &s.hulls[c], s.p.Sensitivity[i]
		rate := h.rate
		for k, b := range h.bytes[:len(rate)] {
			x := &hist[math.Float64bits(v*rate[k])>>shift&(slopeBuckets-1)]
			x.bytes += b
			x.steps++
		}
	}
	low, high := windowOf(hist, budget-s.bytes)
	first, last := uint64(low)<<shift, uint64(high+1)<<shift-1
	list := s.collect(first, last)
	for was := len(list) + 1; len(list) > coreSteps && len(list) < was; {
		was = len(list)
		width := uint(max(0, bits.Len64(last-first)-15))
		clear(hist)
		for _, x := range list {
			b := &hist[(x.key-first)>>width]
			b.bytes += s.hulls[s.p.Class[x.item]].bytes[x.step]
			b.steps++
		}
		low, high = windowOf(hist, budget-s.bytes)
		first, last = first+uint64(low)<<width, first+uint64(high+1)<<width-1
		list = s.narrow(list, first, last)
	}
	slices.SortFunc(list, func(a, b step) int {
		return cmp.Or(cmp.Compare(b.key, a.key), cmp.Compare(a.item, b.item),
			cmp.Compare(a.step, b.step))
	})
	for k, x := range list {
		if n := s.hulls[s.p.Class[x.item]].bytes[x.step]; s.bytes+n <= budget {
			s.bytes += n
			s.at[x.item] = uint8(x.step + 1)
			continue
		}
		s.slope = math.Float64frombits(x.key)
		s.settle(list, k, budget)
		break
	}
}

// windowOf returns the range of buckets that holds the first step that does not fit into budget
// and as many steps on either side of it as settle looks at.
func windowOf(hist []slopeBucket, budget int64) (low, high int) {
	b := len(hist) - 1
	for ; b > 0 && hist[b].bytes <= budget; b-- {
		budget -= hist[b].bytes
	}
	low, high = b, b
	for n := int64(0); high < len(hist)-1 && n < 4*coreItems; {
		high++
		n += hist[high].steps
	}
	for n := int64(0); low > 0 && n < 4*coreItems; {
		low--
		n += hist[low].steps
	}
	return low, high
}

// collect takes the steps above a window of slopes and returns those in it, by item.
func (s *walk) collect(first, last uint64) (list []step) {
	top, floor := math.Float64frombits(last), math.Float64frombits(first)
	if last >= math.Float64bits(math.Inf(1)) {
		top = math.Inf(1)
	}
	for i, c := range s.p.Class {
		h, v := &s.hulls[c], s.p.Sensitivity[i]
		rate := h.rate
		n := 0
		for n < len(rate) && v*rate[n] > top {
			s.bytes += h.bytes[n]
			n++
		}
		s.at[i] = uint8(n)
		// Steps that save nothing are never taken.
		for ; n < len(rate) && v*rate[n] >= floor && v*rate[n] > 0; n++ {
			list = append(list, step{math.Float64bits(v * rate[n]), int32(i), uint16(n)})
		}
	}
	return list
}

// narrow is collect over a list: it reuses its memory.
func (s *walk) narrow(list []step, first, last uint64) []step {
	kept := list[:0]
	for _, x := range list {
		switch {
		case x.key > last:
			s.at[x.item] = uint8(x.step + 1)
			s.bytes += s.hulls[s.p.Class[x.item]].bytes[x.step]
		case x.key >= first:
			kept = append(kept, x)
		}
	}
	return kept
}

// settle decides the items around list[k] exactly.
func (s *walk) settle(list []step, k int, budget int64) {
	core := coreOf(len(list), k, func(i int) int32 { return list[i].item })
	menus := make([][]Option, len(core))
	at := make([]int16, len(core))
	for n, i := range core {
		c := s.p.Class[i]
		menus[n] = slices.Clone(s.p.Classes[c].Options)
		for j := range menus[n] {
			menus[n][j].Damage *= s.p.Sensitivity[i]
		}
		at[n] = int16(s.hulls[c].option[s.at[i]])
	}
	short := s.hulls[s.p.Class[list[k].item]].bytes[list[k].step]
	if !settleCore(menus, at, budget-s.bytes, short) {
		return
	}
	// Points off the hull have no place in at: finish reads them from here.
	s.exact = make(map[int32]uint8, len(core))
	for n, i := range core {
		s.exact[i] = uint8(at[n])
	}
}

func (s *walk) finish() *Plan {
	p := &Plan{Choice: s.at, Slope: s.slope}
	for i, c := range s.p.Class {
		o := s.hulls[c].option[s.at[i]]
		s.at[i] = o
		x := &s.p.Classes[c].Options[o]
		p.Bytes += x.Bytes
		p.Damage += s.p.Sensitivity[i] * x.Damage
	}
	for _, i := range slices.Sorted(maps.Keys(s.exact)) {
		o := s.exact[i]
		was, now := s.p.Classes[s.p.Class[i]].Options[p.Choice[i]], s.p.Classes[s.p.Class[i]].Options[o]
		p.Bytes += now.Bytes - was.Bytes
		p.Damage += s.p.Sensitivity[i] * (now.Damage - was.Damage)
		p.Choice[i] = o
	}
	return p
}
