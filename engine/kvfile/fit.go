// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/quant"
)

// choose finds the plan for the target.
func (hf *hotFile) choose(ctx context.Context) (choice *plan.Plan, measured float64, err error) {
	if hf.c.cfg.MaxError > 0 {
		fit := &errorFit{hf: hf}
		return fit.fit(ctx)
	}
	if total := hf.c.targetBytes(); total > 0 {
		choice, measured, err = hf.fit(total)
		var over *BudgetError
		if errors.As(err, &over) && hf.c.cfg.Soft {
			return hf.fit(over.Least)
		}
		return choice, measured, err
	}
	return hf.fit(hf.c.in.Values()*4 + 1<<40) // fixed codings
}

// fit finds the plan whose whole file has the most bytes up to total. The bytes of tables and padding
// depend on the plan, so the budget of the planner is adjusted until the file fits.
func (hf *hotFile) fit(total int64) (*plan.Plan, float64, error) {
	leastPlan := hf.main.Solver.Least()
	least, err := hf.fileBytes(leastPlan)
	if err != nil {
		return nil, 0, err
	}
	if least > total {
		return nil, 0, hf.c.overBudget("with these codings", total, least)
	}
	var best *plan.Plan
	var bestBytes int64 = -1
	low, high := leastPlan.Bytes, total
	// The first guess takes the tables of the least plan.
	budget := min(high, max(low, total-(least-low)))
	over := 0 // tries in a row that took too much
	for try := 0; try < 24 || best == nil && try < 80; try++ {
		p, err := hf.main.Solver.Solve(budget)
		if err != nil {
			return nil, 0, err
		}
		n, err := hf.fileBytes(p)
		if err != nil {
			return nil, 0, err
		}
		if n <= total {
			if over = 0; n > bestBytes {
				best, bestBytes = p, n
			}
			if p.Slope == 0 || total-n <= total/4096 {
				break
			}
			low = budget
			budget = min(budget+(total-n), high)
		} else {
			// Plans come in steps: less by a few bytes may be the same plan.
			high = budget
			budget -= (n - total) << min(over, 40)
			over++
		}
		if budget <= low || budget >= high { // the guess left the bracket: halve it
			budget = (low + high) / 2
		}
		if high-low < 8 {
			break
		}
	}
	if best == nil {
		best = leastPlan
	}
	return best, 0, nil
}

// fileBytes returns the exact bytes of the file that a choice makes.
func (hf *hotFile) fileBytes(choice *plan.Plan) (int64, error) {
	s, err := hf.sections(choice)
	return s.Header + s.Payload + s.Tables + s.Side + s.Index, err
}

func (hf *hotFile) sections(choice *plan.Plan) (Sections, error) {
	var s Sections
	var err error
	if s.Header, err = container.HeaderSize(hf.c.header); err != nil {
		return s, err
	}
	for _, a := range hf.c.aux {
		n, err := container.AuxSize(a)
		if err != nil {
			return s, err
		}
		s.Side += n
	}
	records := 0
	err = hf.eachRecord(choice, func(rec *container.Record) error {
		n, err := container.RecordSize(hf.c.header, rec)
		if err != nil {
			return err
		}
		kDim, vDim := hf.c.header.Dims(rec.Layer)
		var payload int64
		for _, h := range rec.Heads {
			for _, b := range h.Blocks {
				if b.Level == quant.Dropped {
					continue
				}
				payload += int64(b.K.PackedBytes(b.Rows(), kDim))
				if vDim > 0 {
					payload += int64(b.V.PackedBytes(b.Rows(), vDim))
				}
			}
		}
		records++
		s.Payload += payload
		s.Tables += n - payload
		return nil
	})
	s.Index = container.EndSize(records + len(hf.c.aux))
	return s, err
}
