// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
)

// predict returns the error to expect of a plan. The planner's own sum is weighed by attention that
// is past, and hopes too much of attention to come; so the plan is rehearsed where there are
// queries: the tokens of the first three quarters are weighed by what was known then, planned at
// the same price of a byte, coded, and attended to by the queries of the last quarter, which are
// compared with what they get from the exact rows.
func predict(ctx context.Context, c *compressor, p *plan.Plan) (float64, error) {
	n := len(c.in.Layers)
	for i := range c.in.Layers {
		if l := &c.in.Layers[i]; !l.HasV || !l.HasQ || input.FutureFrom(&c.in.Geo, l) <= c.cfg.Sinks {
			return p.Damage, nil
		}
	}
	errs := make([]float64, n) // relative, by layer
	var unknown atomic.Bool
	err := c.eachLayer(ctx, "rehearsing", c.in.Workers(), func(l *input.Layer) error {
		var e, ref float64
		for h := range l.Heads {
			he, hr, ok, err := c.seg.Rehearse(ctx, l, h, p.Slope)
			if err != nil {
				return err
			}
			if !ok {
				unknown.Store(true)
				return nil
			}
			e, ref = e+he, ref+hr
		}
		if ref > 0 {
			errs[l.Index] = e / ref
		}
		return nil
	})
	if err != nil || unknown.Load() {
		return p.Damage, err
	}
	var sum float64
	for _, e := range errs {
		sum += e
	}
	return sum / float64(n), nil
}
