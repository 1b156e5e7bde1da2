// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Calibrate makes the basis and tables of a model's archive from captures of it, which should be
// of other texts than what will be compressed, and at least four: K in the metric of the queries
// before their position embedding, V in that of the output projection where the captures hold
// it. old is the profile to put them in, or nil for a new one.
//
// Errors: quant.ErrShape for captures that are of different models, or lack queries.
func Calibrate(ctx context.Context, captures []*capture.Source, be backend.Backend,
	old *profile.Profile, say func(stage string, done, total int64)) (*profile.Profile, error) {
	if len(captures) == 0 {
		return nil, fmt.Errorf("kvist/tune: calibrate: no captures: %w", quant.ErrShape)
	}
	geo := captures[0].Info().Geometry
	if max(geo.HeadDim, geo.HeadDimV) > archive.MaxBasisDim {
		return nil, fmt.Errorf("kvist/tune: calibrate: head_dim %d, head_dim_v %d, want at most %d: %w",
			geo.HeadDim, geo.HeadDimV, archive.MaxBasisDim, quant.ErrUnsupported)
	}
	p := old
	var err error
	if p == nil {
		if p, err = profile.New(captures[0].Info().Model, geo); err != nil {
			return nil, err
		}
	}
	for _, src := range captures {
		if !src.Info().KV {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s is no KV capture: %w", src.Info().Name, quant.ErrShape)
		}
		if err := p.Check(src.Info().Model, src.Info().Geometry); err != nil {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s: %w", src.Info().Name, err)
		}
	}
	cal := &calibrator{captures: captures, geo: geo, be: be, say: say}
	set, err := cal.set(ctx)
	if err != nil {
		return nil, err
	}
	meta := profile.Meta{"texts": fmt.Sprint(len(captures)), "tokens": fmt.Sprint(cal.tokens)}
	if p, err = cold.WithSet(p, set, meta); err != nil {
		return nil, err
	}
	steps, err := cal.steps(ctx)
	if err != nil {
		return nil, err
	}
	if p, err = WithArchiveSteps(p, steps, meta); err != nil || len(set.Layers) < geo.Layers {
		return p, err // weights without queries want all layers
	}
	return WithQueries(ctx, captures, p)
}

type calibrator struct {
	captures []*capture.Source
	geo      quant.Geometry
	be       backend.Backend
	say      progress.Func
	tokens   int
}

// set fits transforms, then tables on what they give.
func (c *calibrator) set(ctx context.Context) (*archive.Set, error) {
	set := &archive.Set{Tables: archive.DefaultTables(), Heads: c.geo.KVHeads, Sides: 2}
	set.Layers = c.captures[0].Info().Layers
	for _, src := range c.captures {
		c.tokens += src.Info().Tokens
	}
	set.Transforms = make([][]*archive.Transform, len(set.Layers))
	for i, n := range set.Layers {
		c.say.Say("fitting bases", int64(i), int64(len(set.Layers)))
		ts := make([]*archive.Transform, 2*c.geo.KVHeads)
		err := parallel.Each(ctx, len(ts), func(j int) (err error) {
			ts[j], err = c.transform(n, j/2, j%2)
			return err
		})
		if err != nil {
			return nil, err
		}
		set.Transforms[i] = ts
	}
	c.say.Say("fitting bases", int64(len(set.Layers)), int64(len(set.Layers)))
	return set, c.fitTables(ctx, set)
}

// transform fits one side of one head.
func (c *calibrator) transform(layer, head, side int) (*archive.Transform, error) {
	rope := archive.NewRope(c.geo.RopeOf(layer))
	dim := c.geo.HeadDim
	if side == 1 {
		dim = c.geo.HeadDimV
	}
	m, q := archive.NewMoments(dim, true), archive.NewQueryMoments(dim, rope)
	var metric []float64
	for _, src := range c.captures {
		part := capture.K
		if side == 1 {
			part = capture.V
		}
		t, ok := src.KV(layer, part)
		if !ok {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s lacks layer %d: %w", src.Info().Name, layer, quant.ErrShape)
		}
		rows := make([]float32, t.Rows()*dim)
		if err := t.ReadF32(head, 0, t.Rows(), rows); err != nil {
			return nil, err
		}
		if !input.Finite(rows) {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s: %s head %d holds NaN or Inf: %w", src.Info().Name,
				t.Name(), head, quant.ErrRange)
		}
		if side == 0 {
			pos := make([]int64, t.Rows())
			if err := src.ReadPositions(false, 0, pos); err != nil {
				return nil, err
			}
			rope.Undo(rows, dim, pos)
		}
		m.Add(rows)
		if side == 1 {
			if metric == nil {
				var err error
				if metric, err = c.outputMetric(src, layer, head); err != nil {
					return nil, err
				}
			}
			continue
		}
		tq, ok := src.KV(layer, capture.Q)
		if !ok {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s holds no queries: %w", src.Info().Name, quant.ErrShape)
		}
		group := c.geo.GQARatio()
		for g := range group {
			if err := tq.ReadF32(head*group+g, 0, t.Rows(), rows); err != nil {
				return nil, err
			}
			if !input.Finite(rows) {
				return nil, fmt.Errorf("kvist/tune: calibrate: %s: %s head %d holds NaN or Inf: %w", src.Info().Name,
					tq.Name(), head*group+g, quant.ErrRange)
			}
			q.Add(rows)
		}
	}
	if side == 0 {
		metric = archive.QueryMetric(q, rope)
	}
	return archive.FitTransform(m, metric, true), nil
}

// outputMetric returns the sum of W^T W over the output projections of the head's queries, nil
// where the capture lacks them.
func (c *calibrator) outputMetric(src *capture.Source, layer, head int) ([]float64, error) {
	w, ok := src.OWeight(layer)
	if !ok {
		return nil, nil
	}
	group, dim := c.geo.GQARatio(), c.geo.HeadDimV
	row, part := make([]float32, w.Dim()), make([]float64, dim)
	m := make([]float64, dim*dim)
	for r := range w.Rows() {
		if err := w.ReadF32(0, r, 1, row); err != nil {
			return nil, err
		}
		for g := range group {
			for i := range part {
				part[i] = float64(row[(head*group+g)*dim+i])
			}
			for i, x := range part {
				for j, y := range part {
					m[i*dim+j] += x * y
				}
			}
		}
	}
	return m, nil
}
