// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// hull is the lower hull of a class.
type hull struct {
	option []uint8   // [points] from the cheapest to the least damaging
	bytes  []int64   // [points-1] of the step to the next point
	rate   []float64 // [points-1] damage saved per byte and unit of sensitivity, falling
	least  int64     // bytes of the first point
}

// hullsOf checks classes and returns their hulls.
func hullsOf(classes []Class) ([]hull, error) {
	hulls := make([]hull, len(classes))
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
