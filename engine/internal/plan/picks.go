// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Picks returns the variants that are the best for some multiplier, in falling order of slopes, the
// last one from slope 0: what a group takes when a byte must save that much damage. They are the
// vertices of the lower convex hull of all variants together, each with its items at their own hull
// points, and so exact: more bytes for the whole problem are never more damage. Ties go to the
// fewest bytes, then to the first variant.
//
// Errors: quant.ErrShape.
func (p *Problem) Picks(variants []Variant) ([]Pick, error) {
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
func (p *Problem) curve(hulls []hull, v Variant) ([]curvePoint, error) {
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

// pick returns the variant of a group for a multiplier.
func (g *Group) pick(slope float64) int {
	for _, p := range g.Picks {
		if slope >= p.Slope {
			return p.Variant
		}
	}
	return 0
}
