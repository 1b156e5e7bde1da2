// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Solver solves one problem for many budgets. It belongs to one goroutine at a time.
type Solver struct {
	p    *Problem
	walk *walk
	only bool // every group has one variant
	last int  // grid point of the last budget's multiplier
}

// NewSolver checks a problem and prepares its menus.
//
// Errors: quant.ErrShape.
func NewSolver(p *Problem) (*Solver, error) {
	w, err := newWalk(p)
	if err != nil {
		return nil, err
	}
	s := &Solver{p: p, walk: w, only: true}
	items := 0
	for i, g := range p.Groups {
		if len(g.Variants) == 0 || (len(g.Variants) > 1 && len(g.Picks) == 0) {
			return nil, fmt.Errorf("kvist/plan: group %d of %d variants, %d picks: %w", i,
				len(g.Variants), len(g.Picks), quant.ErrShape)
		}
		for k, pick := range g.Picks {
			if pick.Variant < 0 || pick.Variant >= len(g.Variants) || !(pick.Slope >= 0) ||
				(k > 0 && !(pick.Slope < g.Picks[k-1].Slope)) {
				return nil, fmt.Errorf("kvist/plan: group %d pick %d: variant %d from slope %g: %w", i,
					k, pick.Variant, pick.Slope, quant.ErrShape)
			}
		}
		for _, v := range g.Variants {
			// Variants follow one another, so that no item is counted twice.
			if v.First != items || v.Items < 0 || v.First > len(p.Class)-v.Items || v.Bytes < 0 ||
				!(v.Damage >= 0) || math.IsInf(v.Damage, 0) {
				return nil, fmt.Errorf("kvist/plan: group %d: variant of items [%d, %d), want them "+
					"from %d; %d bytes, damage %g: %w", i, v.First, v.First+v.Items, items, v.Bytes,
					v.Damage, quant.ErrShape)
			}
			items += v.Items
		}
		s.only = s.only && len(g.Variants) == 1
	}
	if items != len(p.Class) {
		return nil, fmt.Errorf("kvist/plan: variants of %d items, the problem has %d: %w", items,
			len(p.Class), quant.ErrShape)
	}
	return s, nil
}

// AtSlope returns the plan for a given price of a byte: every step that saves more damage per byte
// than slope is taken, and no other.
func (s *Solver) AtSlope(slope float64) *Plan {
	v := &Plan{Variant: make([]int, len(s.p.Groups))}
	v.Choice, v.Slope = make([]uint8, len(s.p.Class)), slope
	for g := range s.p.Groups {
		group := &s.p.Groups[g]
		if slope >= 0 {
			v.Variant[g] = group.pick(slope)
		}
		bytes, damage := s.VariantAt(g, v.Variant[g], slope)
		v.Bytes, v.Damage = v.Bytes+bytes, v.Damage+damage
		x := group.Variants[v.Variant[g]]
		for i := x.First; i < x.First+x.Items; i++ {
			v.Choice[i] = s.option(i, slope)
		}
	}
	return v
}

// VariantAt returns the bytes and the damage of a variant of a group when its items are at their
// hull points for a multiplier.
func (s *Solver) VariantAt(group, variant int, slope float64) (bytes int64, damage float64) {
	x := s.p.Groups[group].Variants[variant]
	bytes, damage = x.Bytes, x.Damage
	for i := x.First; i < x.First+x.Items; i++ {
		o := &s.p.Classes[s.p.Class[i]].Options[s.option(i, slope)]
		bytes += o.Bytes
		damage += s.p.Sensitivity[i] * o.Damage
	}
	return bytes, damage
}

// option returns the hull point of an item for a multiplier.
func (s *Solver) option(i int, slope float64) uint8 {
	h, sens := &s.walk.hulls[s.p.Class[i]], s.p.Sensitivity[i]
	n := 0
	for n < len(h.rate) && sens*h.rate[n] > slope {
		n++
	}
	return h.option[n]
}

// bytesAt returns the bytes of AtSlope's plan.
func (s *Solver) bytesAt(slope float64) (n int64) {
	for g := range s.p.Groups {
		bytes, _ := s.VariantAt(g, s.p.Groups[g].pick(slope), slope)
		n += bytes
	}
	return n
}

// Least returns the plan of the fewest bytes.
func (s *Solver) Least() *Plan { return s.AtSlope(math.Inf(1)) }

// Best returns the plan of the least damage, and among those the fewest bytes.
func (s *Solver) Best() *Plan { return s.AtSlope(0) }

// Solve picks variants and options with the least total damage whose bytes sum to at most budget.
//
// A multiplier, the price of a byte in damage, decides every group for itself (the Lagrangian
// solution); bisection finds it. The items of the variants that it picks then share what is left of
// the budget: where a group turns to a smaller variant, the bytes that it frees go to the others.
//
// Errors: quant.ErrBudget with the least possible budget.
func (s *Solver) Solve(budget int64) (*Plan, error) {
	if s.only {
		return s.fill(make([]int, len(s.p.Groups)), budget)
	}
	least := s.Least()
	if least.Bytes > budget {
		return nil, fmt.Errorf("kvist/plan: budget of %d bytes: the least possible is %d: %w",
			budget, least.Bytes, quant.ErrBudget)
	}
	if best := s.Best(); best.Bytes <= budget {
		best.Slope = 0
		return best, nil
	}
	low, high := s.bracket(budget)
	best, err := s.fill(s.AtSlope(high).Variant, budget)
	if err != nil {
		return nil, err
	}
	// The variants on the other side of the break may fit too, in coarser codings.
	if other, err := s.fill(s.AtSlope(low).Variant, budget); err == nil && other.Damage < best.Damage {
		best = other
	}
	return best, nil
}

// Multipliers lie on a grid of gridSteps to an octave, so that the bracket of a budget does not
// depend on where the search for it began.
const gridSteps = 1 << 16

func gridSlope(k int) float64 { return math.Exp2(float64(k) / gridSteps) }

// bracket returns two multipliers next to each other on the grid, of which the bytes at low do not
// fit and those at high do. It starts from the last one it found: budgets that follow one another
// are near.
func (s *Solver) bracket(budget int64) (low, high float64) {
	from, to := -400*gridSteps, int(math.Ceil(math.Log2(s.top())*gridSteps))+1
	fits := func(k int) bool { return s.bytesAt(gridSlope(k)) <= budget }
	if s.last > from && s.last < to {
		if fits(s.last) {
			to = s.last
		} else {
			from = s.last
		}
		for step := gridSteps / 16; to-from > step; step *= 4 {
			k := s.last + step
			if to == s.last {
				k = s.last - step
			}
			if k <= from || k >= to {
				break
			}
			if ok := fits(k); ok {
				to = k
			} else {
				from = k
			}
			if to-from <= 4*step {
				break
			}
		}
	}
	for to-from > 1 {
		if k := from + (to-from)/2; fits(k) {
			to = k
		} else {
			from = k
		}
	}
	s.last = to
	return gridSlope(from), gridSlope(to)
}

// top is a multiplier for which no step is worth its bytes.
func (s *Solver) top() float64 {
	top := 1e-200
	for g := range s.p.Groups {
		if p := s.p.Groups[g].Picks; len(p) > 0 {
			top = max(top, p[0].Slope)
		}
	}
	for i, c := range s.p.Class {
		if h := &s.walk.hulls[c]; len(h.rate) > 0 {
			top = max(top, s.p.Sensitivity[i]*h.rate[0])
		}
	}
	return min(2*top, math.MaxFloat64)
}

// fill solves the items of the given variants.
func (s *Solver) fill(variants []int, budget int64) (*Plan, error) {
	sub := Problem{Classes: s.p.Classes, Class: s.p.Class, Sensitivity: s.p.Sensitivity}
	if !s.only {
		sub.Class, sub.Sensitivity = nil, nil
	}
	var bytes int64
	var damage float64
	for g, n := range variants {
		x := s.p.Groups[g].Variants[n]
		bytes, damage = bytes+x.Bytes, damage+x.Damage
		if !s.only {
			sub.Class = append(sub.Class, s.p.Class[x.First:x.First+x.Items]...)
			sub.Sensitivity = append(sub.Sensitivity, s.p.Sensitivity[x.First:x.First+x.Items]...)
		}
	}
	p, err := solveItems(&sub, budget-bytes)
	if err != nil {
		return nil, err
	}
	p.Bytes, p.Damage, p.Variant = p.Bytes+bytes, p.Damage+damage, variants
	if s.only {
		return p, nil
	}
	stored := p.Choice
	p.Choice = make([]uint8, len(s.p.Class))
	for g, n := range variants {
		x := s.p.Groups[g].Variants[n]
		n := copy(p.Choice[x.First:x.First+x.Items], stored)
		stored = stored[n:]
	}
	return p, nil
}
