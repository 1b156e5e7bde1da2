// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/plan"
)

func ExampleSolver() {
	// Two blocks share a menu. The first is read twice as often. The second may be dropped.
	p := &plan.Problem{
		Classes: []plan.Class{{Options: []plan.Option{
			{Bytes: 100, Damage: 4},
			{Bytes: 200, Damage: 1},
		}}},
		Class:       []uint32{0, 0},
		Sensitivity: []float64{2, 1},
	}
	p.Groups = []plan.Group{
		{Variants: []plan.Variant{{First: 0, Items: 1}}},
		{Variants: []plan.Variant{{First: 1, Items: 1}, {First: 2, Damage: 9}}},
	}
	var err error
	if p.Groups[1].Picks, err = p.Picks(p.Groups[1].Variants); err != nil {
		fmt.Println(err)
		return
	}
	s, err := plan.NewSolver(p)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, budget := range []int64{400, 300, 200, 100} {
		best, err := s.Solve(budget)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(budget, best.Variant, best.Bytes, best.Damage)
	}
	// Output:
	// 400 [0 0] 400 3
	// 300 [0 0] 300 6
	// 200 [0 1] 200 11
	// 100 [0 1] 100 17
}
