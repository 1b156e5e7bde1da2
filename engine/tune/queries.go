// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// WithQueries adds to a profile what captures of its model say of queries: mean and variance of each component.
// Captures that hold no queries, as states of other servers, are then weighed by the attention that such queries
// would give. Every layer must be in every capture.
//
// Errors: quant.ErrShape for captures of another model, or without queries; quant.ErrRange for NaN and infinities.
func WithQueries(ctx context.Context, captures []*capture.Source, p *profile.Profile) (*profile.Profile, error) {
	g := p.Geometry()
	size := g.Layers * g.Heads * g.HeadDim
	q := &profile.Queries{Mean: make([]float32, size), Variance: make([]float32, size)}
	tokens := 0
	for _, src := range captures {
		if err := p.Check(src.Info().Model, src.Info().Geometry); err != nil {
			return nil, fmt.Errorf("kvist/tune: queries: %s: %w", src.Info().Name, err)
		}
		tokens += src.Info().Tokens
	}
	err := parallel.Each(ctx, g.Layers*g.Heads, func(i int) error {
		m, err := momentsOf(captures, g, i/g.Heads, i%g.Heads)
		if err != nil {
			return err
		}
		mean, variance := q.At(i/g.Heads, i%g.Heads, g.Heads, g.HeadDim)
		for d := range mean {
			mean[d], variance[d] = short(m.Mean[d]), short(m.Variance[d])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p.WithQueries(q, profile.Meta{"texts": fmt.Sprint(len(captures)), "tokens": fmt.Sprint(tokens)})
}

// short rounds to the 8 significant bits of bfloat16: more change no weight, and take twice the bytes in a profile.
func short(x float64) float32 {
	return quant.BF16ToF32(quant.F32ToBF16(float32(min(max(x, -math.MaxFloat32/2), math.MaxFloat32/2))))
}

// momentsOf adds up the queries of a query head.
func momentsOf(captures []*capture.Source, g quant.Geometry, layer, head int) (m importance.QueryMoments, err error) {
	c, err := importance.NewQueryCounter(g.HeadDim, g.RopeOf(layer))
	if err != nil {
		return m, err
	}
	for _, src := range captures {
		t, ok := src.KV(layer, capture.Q)
		if !ok {
			return m, fmt.Errorf("kvist/tune: queries: %s holds none of layer %d: %w", src.Info().Name, layer, quant.ErrShape)
		}
		x := quant.Rows{Dim: g.HeadDim, Data: make([]float32, t.Rows()*g.HeadDim)}
		if err := t.ReadF32(head, 0, t.Rows(), x.Data); err != nil {
			return m, err
		}
		pos := make([]int64, t.Rows())
		if err := src.ReadPositions(false, 0, pos); err != nil {
			return m, err
		}
		if err := c.Add(x, pos); err != nil {
			return m, fmt.Errorf("kvist/tune: queries: %s: layer %d head %d: %w", src.Info().Name, layer, head, err)
		}
	}
	return c.Moments(), nil
}
