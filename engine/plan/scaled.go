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

// Class is a menu that many items share: option o takes Options[o].Bytes, and does
// Options[o].Damage times the sensitivity of the item that takes it. At most 255 options.
type Class struct {
	Options []Option
}

// Scaled is a problem whose items share menus up to a factor: one side (K or V) of a block, whose
// codings have relative errors that are the same for all blocks of a head. Sides are apart because
// their damages add up.
type Scaled struct {
	Classes     []Class
	Class       []uint32  // [items] index into Classes
	Sensitivity []float64 // [items] finite, at least 0
}

// ScaledPlan is the answer to a Scaled problem.
type ScaledPlan struct {
	Choice []uint8 // [items] index into the options of the item's class
	Bytes  int64
	Damage float64
	Slope  float64 // as Plan.Slope
}

// SolveScaled picks the options with the least total damage whose bytes sum to at most budget. It
// gives the plan of Solve over the same items written out, up to rounding of slopes that are
// almost equal, in one pass over all steps and a second over the items: no step is sorted but the
// few thousand around the break, which a histogram of slopes finds.
//
// Errors: quant.ErrBudget with the least possible budget; quant.ErrShape.
func SolveScaled(p *Scaled, budget int64) (*ScaledPlan, error) {
	s, err := newScaledWalk(p)
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

// Least returns the bytes of the cheapest options.
func (p *Scaled) Least() (n int64) {
	low := make([]int64, len(p.Classes))
	for i, c := range p.Classes {
		if len(c.Options) > 0 {
			low[i] = cheapest(c.Options)
		}
	}
	for _, c := range p.Class {
		n += low[c]
	}
	return n
}

// AtSlope writes what every item takes where a byte must save more damage than slope: its hull
// point for that multiplier, the choice of SolveScaled but for the items around the break.
//
// dst: [items].
func (p *Scaled) AtSlope(dst []uint8, slope float64) error {
	s, err := newScaledWalk(p)
	if err != nil {
		return err
	}
	for i, c := range p.Class {
		h := &s.hulls[c]
		n := 0
		for n < len(h.rate) && p.Sensitivity[i]*h.rate[n] > slope {
			n++
		}
		dst[i] = h.option[n]
	}
	return nil
}

// scaledHull is the lower hull of a class.
type scaledHull struct {
	option []uint8   // [points] from the cheapest to the least damaging
	bytes  []int64   // [points-1] of the step to the next point
	rate   []float64 // [points-1] damage saved per byte and unit of sensitivity, falling
	least  int64     // bytes of the first point
}

// scaledStep moves an item one point along its hull. Steps of equal slope go by item, then by step.
type scaledStep struct {
	key  uint64 // the bits of the slope, which order like the slope
	item int32
	step uint16
}

type scaledWalk struct {
	p     *Scaled
	hulls []scaledHull
	at    []uint8 // [items] hull point held
	bytes int64   // of the points held
	slope float64
	exact map[int32]uint8 // options of the items around the break, where settle chose them
}

func newScaledWalk(p *Scaled) (*scaledWalk, error) {
	if len(p.Class) != len(p.Sensitivity) || len(p.Class) > math.MaxInt32 {
		return nil, fmt.Errorf("kvist/plan: %d classes of items, %d sensitivities: %w",
			len(p.Class), len(p.Sensitivity), quant.ErrShape)
	}
	hulls, err := hullsOf(p.Classes)
	if err != nil {
		return nil, err
	}
	s := &scaledWalk{p: p, hulls: hulls, at: make([]uint8, len(p.Class))}
	if s.bytes, err = p.bytesAtLeast(hulls, 0, len(p.Class)); err != nil {
		return nil, err
	}
	return s, nil
}

// bytesAtLeast checks items [first, first+n) and returns what they take at the first points of their hulls.
func (p *Scaled) bytesAtLeast(hulls []scaledHull, first, n int) (bytes int64, err error) {
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

// hullsOf checks classes and returns their hulls.
func hullsOf(classes []Class) ([]scaledHull, error) {
	hulls := make([]scaledHull, len(classes))
	for ci, c := range classes {
		if len(c.Options) == 0 || len(c.Options) > 255 {
			return nil, fmt.Errorf("kvist/plan: class %d has %d options: %w", ci, len(c.Options),
				quant.ErrShape)
		}
		if err := checkOptions(c.Options); err != nil {
			return nil, fmt.Errorf("kvist/plan: class %d %w", ci, err)
		}
		h := &hulls[ci]
		points := lowerHull(nil, c.Options)
		for k, o := range points {
			h.option = append(h.option, uint8(o))
			if k > 0 {
				a, b := c.Options[points[k-1]], c.Options[o]
				h.bytes = append(h.bytes, b.Bytes-a.Bytes)
				h.rate = append(h.rate, (a.Damage-b.Damage)/float64(b.Bytes-a.Bytes))
			}
		}
		h.least = c.Options[points[0]].Bytes
	}
	return hulls, nil
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
func (s *scaledWalk) walk(budget int64) {
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
	slices.SortFunc(list, func(a, b scaledStep) int {
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
func (s *scaledWalk) collect(first, last uint64) (list []scaledStep) {
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
			list = append(list, scaledStep{math.Float64bits(v * rate[n]), int32(i), uint16(n)})
		}
	}
	return list
}

// narrow is collect over a list: it reuses its memory.
func (s *scaledWalk) narrow(list []scaledStep, first, last uint64) []scaledStep {
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
func (s *scaledWalk) settle(list []scaledStep, k int, budget int64) {
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

func (s *scaledWalk) finish() *ScaledPlan {
	p := &ScaledPlan{Choice: s.at, Slope: s.slope}
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
