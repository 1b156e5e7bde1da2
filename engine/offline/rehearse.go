// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// predict returns the error to expect of a plan. The planner's own sum is weighed by attention that
// is past, and hopes too much of attention to come; so the plan is rehearsed where there are
// queries: the tokens of the first three quarters are weighed by what was known then, planned at
// the same price of a byte, coded, and attended to by the queries of the last quarter, which are
// compared with what they get from the exact rows.
func (c *compressor) predict(ctx context.Context, p *plan.Plan) (float64, error) {
	n := len(c.in.Layers)
	for i := range c.in.Layers {
		if l := &c.in.Layers[i]; !l.HasV || !l.HasQ || l.Past() <= c.cfg.Sinks {
			return p.Damage, nil
		}
	}
	errs := make([]float64, n) // relative, by layer
	var unknown atomic.Bool
	err := c.eachLayer(ctx, "rehearsing", c.layerWorkers(), func(l *Layer) error {
		var e, ref float64
		for h := range l.Heads {
			he, hr, ok, err := c.rehearse(ctx, l, h, p.Slope)
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

// rehearse returns the squared error and the squared length of the outputs of one head. ok is false
// where its queries are not finite.
func (c *compressor) rehearse(ctx context.Context, l *Layer, head int,
	slope float64) (e, ref float64, ok bool, err error) {
	up := &uploader{be: c.be}
	defer up.free()
	past := l.Past()
	blocks, _, err := exactHead(up, l, head, []int{0, past, l.Tokens}, false)
	if err != nil {
		return 0, 0, false, err
	}
	q, err := c.pricer().lastQueries(l, head, past, len(blocks))
	if q == nil || err != nil {
		return 0, 0, false, err
	}
	want := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := c.be.Attend(ctx, q, blocks, want, nil); err != nil {
		return 0, 0, false, err
	}
	var coded []backend.Block
	for _, b := range blocks {
		if b.Base >= int64(past) {
			coded = append(coded, b)
		}
	}
	n := newPlanning(c)
	view := c.headOf(l, head, c.weights[l.Index].past[head], past)
	for s := 0; s*l.Segment < past; s++ {
		p, err := c.buildPart(view, s)
		if err != nil {
			return 0, 0, false, err
		}
		if err := n.add(p); err != nil {
			return 0, 0, false, err
		}
	}
	if err := n.ready(); err != nil {
		return 0, 0, false, err
	}
	p := n.solver.AtSlope(slope)
	for s := range n.parts {
		r, err := c.readSegment(l, head, s, past)
		if err != nil {
			return 0, 0, false, err
		}
		var cells []cell
		var codings [][2]quant.Coding
		if err := n.chosen(p, s, func(b stored) error {
			cells, codings = append(cells, *b.cell), append(codings, [2]quant.Coding{b.k, b.v})
			return nil
		}); err != nil {
			return 0, 0, false, err
		}
		got, err := c.codeCells(ctx, up, view, r, cells, codings)
		if err != nil {
			return 0, 0, false, err
		}
		coded = append(coded, got...)
	}
	if e, err = c.attendError(ctx, q, coded, want); err != nil {
		return 0, 0, false, err
	}
	return e, energyOf(want), true, nil
}
