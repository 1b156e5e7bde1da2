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
func predict(ctx context.Context, hf *hotFile, p *plan.Plan) (float64, error) {
	c := hf.c
	n := len(c.in.Layers)
	if !c.rehearsable() {
		return p.Damage, nil
	}
	errs := make([]float64, n) // relative, by layer
	var unknown atomic.Bool
	err := c.eachLayer(ctx, "rehearsing", c.in.Workers(), func(l *input.Layer) error {
		var e, ref float64
		slope := p.Slope
		if hf.factors != nil {
			slope /= hf.factors[l.Index]
		}
		for h := range l.Heads {
			r, err := c.seg.Rehearse(ctx, l, h, slope)
			if err != nil {
				return err
			}
			if !r.OK {
				unknown.Store(true)
				return nil
			}
			e, ref = e+r.Err, ref+r.Ref
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

// rehearsable reports whether every layer has queries that see tokens which are no sinks.
func (c *compressor) rehearsable() bool {
	for i := range c.in.Layers {
		if l := &c.in.Layers[i]; !l.HasV || !l.HasQ || input.FutureFrom(&c.in.Geo, l) <= c.cfg.Sinks {
			return false
		}
	}
	return true
}
