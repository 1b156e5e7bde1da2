// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/segment"
	"github.com/kvist-project/kvist/quant"
)

// unprofiled are the fields of a Config that belong to a file and not to a model: how much it may
// take, and what its rows are. A profile that sets one of them is refused.
var unprofiled = []string{"bits", "bytes", "share", "max-error", "seed", "rows", "window",
	"allow-nonfinite", "weighted"}

// Apply makes p the profile of the config and puts p's settings in the place of the config's own.
// What is set afterwards overrides them. A nil p changes nothing.
//
// Errors: quant.ErrUnsupported for a setting that no Config has or that a profile may not make;
// those of ParseConfig.
func (c *Config) Apply(p *profile.Profile) error {
	if p == nil {
		return nil
	}
	params, err := p.Params()
	if err != nil {
		return err
	}
	next, err := c.WithParams(params)
	if err != nil {
		return fmt.Errorf("profile %s: %w", p.ID(), err)
	}
	next.Profile = p
	*c = next
	return nil
}

// WithParams returns the config with these settings in place of its own. Keys and values are
// those of String.
//
// Errors: quant.ErrUnsupported for a setting that no Config has or that a profile may not make;
// those of ParseConfig.
func (c Config) WithParams(params profile.Params) (Config, error) {
	if err := params.Validate(); err != nil {
		return c, err
	}
	for _, k := range slices.Sorted(maps.Keys(params)) {
		if slices.Contains(unprofiled, k) {
			return c, fmt.Errorf("kvist/kvfile: %s=%s is a setting of a file, not of a model: %w", k,
				params[k], quant.ErrUnsupported)
		}
	}
	return c.with(params.String())
}

// profileID is what the header of a file says of the profile.
func profileID(p *profile.Profile) [32]byte {
	if p == nil {
		return [32]byte{}
	}
	return p.ID()
}

// profileText is what a report says of a header's profile.
func ProfileText(id profile.ID) string {
	if id == (profile.ID{}) {
		return ""
	}
	return id.Full()
}

// checkProfile holds that a profile, unless nil, is of the model of the input, and returns its
// sensitivities, nil where it has none.
func checkProfile(p *profile.Profile, in *input.Data) (*profile.Sensitivity, error) {
	switch {
	case p == nil:
		return nil, nil
	case !in.KV:
		return nil, fmt.Errorf("kvist/kvfile: %s holds rows; a profile is of a KV cache: %w",
			in.Name, quant.ErrShape)
	}
	if err := p.Check(in.Model, in.Geo); err != nil {
		return nil, fmt.Errorf("kvist/kvfile: %s: %w", in.Name, err)
	}
	return p.Sensitivity()
}

// factors returns the profile's sensitivities of K and V of a head.
func (c *compressor) factors(l *input.Layer, head int) (k, v float64) {
	if c.sensitivity == nil {
		return 1, 1
	}
	return c.sensitivity.At(l.Number, head, c.in.Geo.KVHeads)
}

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
// Errors: those of Compress before it plans.
func Predict(ctx context.Context, src *capture.Source, be backend.Backend, cfg Config,
	k, v quant.Coding) ([]HeadDamage, error) {
	cfg.Importance, cfg.Profile, cfg.Levels = "none", nil, nil
	c, err := newCompressor(fileOrigin{src}, be, cfg, nil)
	if err != nil {
		return nil, err
	}
	if !c.in.KV {
		return nil, fmt.Errorf("kvist/kvfile: %s holds rows, want K and V: %w", src.Name(),
			quant.ErrShape)
	}
	if err := c.prepare(ctx, nil); err != nil {
		return nil, err
	}
	var out []HeadDamage
	for i := range c.in.Layers {
		l := &c.in.Layers[i]
		heads := make([]HeadDamage, l.Heads)
		for h := range heads {
			heads[h].Layer, heads[h].KVHead = l.Number, h
		}
		for _, p := range c.main.Parts[c.firstPart[i]:][:l.Heads*l.Segments()] {
			st, h := &c.seg.Stats[i][p.Head], &heads[p.Head]
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
						return nil, fmt.Errorf("kvist/kvfile: %s: %w", l.Name, err)
					}
					*side.sum += side.damage * class.Options[0].Damage
				}
			}
		}
		out = append(out, heads...)
	}
	return out, nil
}
