// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Variant is one of several ways to store a group of tokens: items of its own, one after another,
// which are coded by their menus, and what it costs whatever their codings: the damage of tokens
// that it merged or dropped.
type Variant struct {
	First, Items int // range of items of the problem
	Bytes        int64
	Damage       float64
}

// Pick says that a variant is the best one for multipliers of Slope and more, up to the pick before.
type Pick struct {
	Slope   float64 // damage per byte
	Variant int
}

// Group is a set of tokens and the variants it can be stored in.
type Group struct {
	Variants []Variant
	Picks    []Pick // as Scaled.Picks returns them; not looked at for a single variant
}

// Varied is a Scaled problem whose items belong to groups, of which each takes one variant: the
// levels of detail. Items of variants not taken are not stored.
type Varied struct {
	Scaled
	Groups []Group
}

// VariedPlan is the answer to a Varied problem.
type VariedPlan struct {
	ScaledPlan       // Choice of items that are not stored means nothing
	Variant    []int // [groups]
}

// Picks returns the variants that are the best for some multiplier, in falling order of slopes, the
// last one from slope 0: what a group takes when a byte must save that much damage. They are the
// vertices of the lower convex hull of all variants together, each with its items at their own hull
// points, and so exact: more bytes for the whole problem are never more damage. Ties go to the
// fewest bytes, then to the first variant.
//
// Errors: quant.ErrShape.
func (p *Scaled) Picks(variants []Variant) ([]Pick, error) {
	if len(variants) == 0 {
		return nil, fmt.Errorf("kvist/plan: a group without variants: %w", quant.ErrShape)
	}
	if len(p.Class) != len(p.Sensitivity) {
		return nil, fmt.Errorf("kvist/plan: %d classes of items, %d sensitivities: %w", len(p.Class),
			len(p.Sensitivity), quant.ErrShape)
	}
	hulls, err := hullsOf(p.Classes)
	if err != nil {
		return nil, err
	}
	curves := make([][]curvePoint, len(variants))
	for i, v := range variants {
		if curves[i], err = p.curve(hulls, v); err != nil {
			return nil, err
		}
	}
	type vertex struct {
		curvePoint
		variant int
	}
	var hull []vertex
	for {
		// The curves are sorted by bytes, and there are few of them.
		next := -1
		for i, c := range curves {
			if len(c) > 0 && (next < 0 || c[0].bytes < curves[next][0].bytes ||
				(c[0].bytes == curves[next][0].bytes && c[0].damage < curves[next][0].damage)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		x := vertex{curves[next][0], next}
		curves[next] = curves[next][1:]
		if n := len(hull); n > 0 && x.damage >= hull[n-1].damage {
			continue // dominated
		}
		for len(hull) >= 2 && slopeOf(hull[len(hull)-2].curvePoint, hull[len(hull)-1].curvePoint) <=
			slopeOf(hull[len(hull)-1].curvePoint, x.curvePoint) {
			hull = hull[:len(hull)-1]
		}
		hull = append(hull, x)
	}
	var picks []Pick
	for i, x := range hull {
		slope := 0.0
		if i+1 < len(hull) {
			if hull[i+1].variant == x.variant {
				continue
			}
			// Damages next to nothing can have a slope of 0, which only the last pick may have.
			slope = max(slopeOf(x.curvePoint, hull[i+1].curvePoint), math.SmallestNonzeroFloat64)
			if n := len(picks); n > 0 && slope >= picks[n-1].Slope {
				continue
			}
		}
		picks = append(picks, Pick{slope, x.variant})
	}
	return picks, nil
}

// curvePoint is what a variant costs at one point of its walk.
type curvePoint struct {
	bytes  int64
	damage float64
}

// slopeOf is the damage saved per byte from a to b, which takes more bytes.
func slopeOf(a, b curvePoint) float64 {
	return (a.damage - b.damage) / float64(b.bytes-a.bytes)
}

// curve returns the points of a variant from its fewest bytes to its least damage: its items walked
// in falling order of slope.
func (p *Scaled) curve(hulls []scaledHull, v Variant) ([]curvePoint, error) {
	if v.First < 0 || v.Items < 0 || v.First > len(p.Class)-v.Items || v.Bytes < 0 ||
		!(v.Damage >= 0) || math.IsInf(v.Damage, 0) {
		return nil, fmt.Errorf("kvist/plan: variant of items [%d, %d) of %d, %d bytes, damage %g: %w",
			v.First, v.First+v.Items, len(p.Class), v.Bytes, v.Damage, quant.ErrShape)
	}
	bytes, err := p.bytesAtLeast(hulls, v.First, v.Items)
	if err != nil {
		return nil, err
	}
	type variantStep struct {
		slope float64
		bytes int64
	}
	var steps []variantStep
	damage := v.Damage
	for i := v.First; i < v.First+v.Items; i++ {
		class := p.Class[i]
		h, s := &hulls[class], p.Sensitivity[i]
		n := 0
		for ; n < len(h.rate) && s*h.rate[n] > 0; n++ {
			steps = append(steps, variantStep{s * h.rate[n], h.bytes[n]})
		}
		damage += s * p.Classes[class].Options[h.option[n]].Damage
	}
	slices.SortFunc(steps, func(a, b variantStep) int { return cmp.Compare(b.slope, a.slope) })
	// Damages are summed from the least one, so that small ones keep their digits.
	points := make([]curvePoint, len(steps)+1)
	bytes += v.Bytes
	for _, s := range steps {
		bytes += s.bytes
	}
	for k := len(steps); ; k-- {
		points[k] = curvePoint{bytes, damage}
		if k == 0 {
			return points, nil
		}
		bytes -= steps[k-1].bytes
		damage += steps[k-1].slope * float64(steps[k-1].bytes)
	}
}

// VariedSolver solves one problem for many budgets. It belongs to one goroutine at a time.
type VariedSolver struct {
	p    *Varied
	walk *scaledWalk
	only bool // every group has one variant
	last int  // grid point of the last budget's multiplier
}

// NewVariedSolver checks a problem and prepares its menus.
//
// Errors: quant.ErrShape.
func NewVariedSolver(p *Varied) (*VariedSolver, error) {
	w, err := newScaledWalk(&p.Scaled)
	if err != nil {
		return nil, err
	}
	s := &VariedSolver{p: p, walk: w, only: true}
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

// pick returns the variant of a group for a multiplier.
func (g *Group) pick(slope float64) int {
	for _, p := range g.Picks {
		if slope >= p.Slope {
			return p.Variant
		}
	}
	return 0
}

// AtSlope returns what a byte that must save more damage than slope leaves: the variant of every
// group and the hull point of its items.
func (s *VariedSolver) AtSlope(slope float64) *VariedPlan {
	v := &VariedPlan{Variant: make([]int, len(s.p.Groups))}
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

// VariantAt returns bytes and damage of a variant of a group, its items at their hull points for a
// multiplier.
func (s *VariedSolver) VariantAt(group, variant int, slope float64) (bytes int64, damage float64) {
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
func (s *VariedSolver) option(i int, slope float64) uint8 {
	h, sens := &s.walk.hulls[s.p.Class[i]], s.p.Sensitivity[i]
	n := 0
	for n < len(h.rate) && sens*h.rate[n] > slope {
		n++
	}
	return h.option[n]
}

// bytesAt is the bytes of AtSlope.
func (s *VariedSolver) bytesAt(slope float64) (n int64) {
	for g := range s.p.Groups {
		bytes, _ := s.VariantAt(g, s.p.Groups[g].pick(slope), slope)
		n += bytes
	}
	return n
}

// Least returns the plan of the fewest bytes.
func (s *VariedSolver) Least() *VariedPlan { return s.AtSlope(math.Inf(1)) }

// Best returns the plan of the least damage, and among those the fewest bytes.
func (s *VariedSolver) Best() *VariedPlan { return s.AtSlope(0) }

// Solve picks variants and options with the least total damage whose bytes sum to at most budget.
//
// A multiplier, the price of a byte in damage, decides every group for itself (the Lagrangian
// solution); it is found by bisection. The variants it leaves are then filled to the last bytes by
// SolveScaled. A group that turns to another variant may make bytes jump, and the fill pays them
// out among all others.
//
// Errors: quant.ErrBudget with the least possible budget.
func (s *VariedSolver) Solve(budget int64) (*VariedPlan, error) {
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
	// The variants on the other side of the break may fit too, coded more coarsely.
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
func (s *VariedSolver) bracket(budget int64) (low, high float64) {
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
func (s *VariedSolver) top() float64 {
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
func (s *VariedSolver) fill(variants []int, budget int64) (*VariedPlan, error) {
	v := &VariedPlan{Variant: variants}
	sub := Scaled{Classes: s.p.Classes, Class: s.p.Class, Sensitivity: s.p.Sensitivity}
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
	p, err := SolveScaled(&sub, budget-bytes)
	if err != nil {
		return nil, err
	}
	v.ScaledPlan = *p
	v.Bytes, v.Damage = p.Bytes+bytes, p.Damage+damage
	if s.only {
		return v, nil
	}
	v.Choice = make([]uint8, len(s.p.Class))
	at := 0
	for g, n := range variants {
		x := s.p.Groups[g].Variants[n]
		at += copy(v.Choice[x.First:x.First+x.Items], p.Choice[at:])
	}
	return v, nil
}
