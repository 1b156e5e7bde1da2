// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// HeadDamage is what the planner takes an error in one KV head for.
type HeadDamage struct {
	Layer, KVHead int // the model's number of the layer
	// K and V are the damages of storing all tokens but the sinks of that side at a coding, the
	// other side exactly: what importance and profile do is left out.
	K, V float64
}

// Predict returns the damage that is predicted for storing K at coding k, or V at coding v, of every
// head, in the order of the capture: what sensitivities measured in a model are held against.
//
// Errors: quant.ErrShape for a config that cannot be or a capture of rows; quant.ErrRange;
// *capture.FormatError.
func Predict(ctx context.Context, src *capture.Source, be backend.Backend, cfg kvfile.Config,
	k, v quant.Coding) ([]HeadDamage, error) {
	cfg.Importance, cfg.Profile, cfg.Levels = "none", nil, nil
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	in, err := captured.Of(src, cfg.Segment)
	if err != nil {
		return nil, err
	}
	if !in.KV {
		return nil, fmt.Errorf("kvist/tune: %s holds rows, want K and V: %w", src.Info().Name, quant.ErrShape)
	}
	seg := builder(in, be, &cfg)
	weigher := &weigh.Weigher{Backend: be, Geo: in.Geo, Sinks: cfg.Sinks, Recipe: cfg.Importance, Memo: cfg.Memo,
		Surprisal: in.Surprisal}
	out := make([][]HeadDamage, len(in.Layers))
	err = parallel.EachOf(ctx, in.Workers(), len(in.Layers), func(i int) error {
		l := &in.Layers[i]
		seg.Weights[i] = weigher.Level(l, nil, nil)
		parts, err := seg.Survey(ctx, l)
		if err != nil {
			return err
		}
		out[i], err = headDamages(l, parts, seg.Stats[i], k, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	return slices.Concat(out...), nil
}

// builder returns what surveys an input whose tokens are all kept and weigh the same.
func builder(in *input.Data, be backend.Backend, cfg *kvfile.Config) *segment.Builder {
	bias := cfg.RowBias == "true" || cfg.RowBias == "auto" && cfg.Form == kvfile.FormHot
	mean := cfg.Mean && cfg.Form == kvfile.FormHot
	for i := range in.Layers {
		mean = mean && in.Layers[i].HasQ
	}
	return &segment.Builder{Backend: be, Input: in, Memo: cfg.Memo, Seed: cfg.Seed,
		Menus: segment.Menus{K: cfg.K, V: cfg.V, Rows: cfg.Rows}, Sinks: cfg.Sinks, Window: cfg.Window,
		KeepNonfinite: cfg.AllowNonfinite, RowBias: bias, Mean: mean, Recipe: cfg.Importance,
		Price: &damage.Pricer{Backend: be, Geo: in.Geo, Positions: in.Positions, Sinks: cfg.Sinks, Seed: cfg.Seed,
			Small: cfg.Form == kvfile.FormArchive, RowBias: bias, Mean: mean, Metric: cfg.Metric, Memo: cfg.Memo},
		Factors: func(*input.Layer, int) (k, v float64) { return 1, 1 },
		Stats:   make([][]damage.Head, len(in.Layers)), Weights: make([]weigh.Weights, len(in.Layers))}
}

// headDamages returns the damages of the heads of a layer, whose blocks are in parts.
func headDamages(l *input.Layer, parts []segment.Part, stats []damage.Head, k, v quant.Coding) ([]HeadDamage, error) {
	heads := make([]HeadDamage, l.Heads)
	for h := range heads {
		heads[h].Layer, heads[h].KVHead = l.Number, h
	}
	for _, p := range parts {
		st, h := &stats[p.Head], &heads[p.Head]
		for _, b := range p.Variants[0].Cells {
			if b.Kind != segment.Free {
				continue
			}
			for _, side := range []struct {
				coding quant.Coding
				curve  *plan.Curve
				dim    int
				damage float64
				sum    *float64
			}{{k, st.KCurve, l.K.Dim(), b.KDamage, &h.K}, {v, st.VCurve, l.V.Dim(), b.VDamage, &h.V}} {
				class, err := plan.ClassOf([]quant.Coding{side.coding}, side.curve, b.Rows(), side.dim)
				if err != nil {
					return nil, fmt.Errorf("kvist/tune: %s: %w", l.Name, err)
				}
				*side.sum += side.damage * class.Options[0].Damage
			}
		}
	}
	return heads, nil
}
