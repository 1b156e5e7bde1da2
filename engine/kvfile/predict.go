// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
)

// predict returns the expected error of a plan. The planner's own sum is too small, because its
// weights come from past attention. So the plan is rehearsed where there are queries: the tokens of
// the first three quarters get the weights that were known then, are planned at the same price of a
// byte and coded. The queries of the last quarter attend to them, and the outputs are compared with
// those over the exact rows.
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
