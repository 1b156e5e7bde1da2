// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"context"

	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
)

// ArchiveSteps are what heads add to the common step, in eighths of an octave, [layers, kv_heads]
// of the model: minus where an error in them costs more than its squared length says.
type ArchiveSteps struct{ K, V []float32 }

// WithArchiveSteps returns a profile with these steps.
//
// Errors: quant.ErrShape.
func WithArchiveSteps(p *profile.Profile, s *ArchiveSteps, meta profile.Meta) (*profile.Profile, error) {
	return cold.WithSteps(p, (*cold.Steps)(s), meta)
}

// OldArchiveSteps returns the steps of a profile, nil where it has none that can be used.
func OldArchiveSteps(p *profile.Profile) *ArchiveSteps {
	s, err := cold.StepsOf(p)
	if err != nil {
		return nil
	}
	return (*ArchiveSteps)(s)
}

// steps returns what the captures' own queries say about the steps of heads: the mean over the
// captures of what compressing each without a profile would take.
func (c *calibrator) steps(ctx context.Context) (*ArchiveSteps, error) {
	n := c.geo.Layers * c.geo.KVHeads
	out := &ArchiveSteps{K: make([]float32, n), V: make([]float32, n)}
	cfg := kvfile.DefaultConfig()
	for at, src := range c.captures {
		in, err := captured.Of(src, cfg.Segment)
		if err != nil {
			return nil, err
		}
		price := &damage.Pricer{Backend: c.be, Geo: in.Geo, Positions: in.Positions, Sinks: cfg.Sinks,
			Seed: cfg.Seed, Small: true}
		for i := range in.Layers {
			l := &in.Layers[i]
			c.say.Say("measuring heads", int64(at*len(in.Layers)+i), int64(len(c.captures)*len(in.Layers)))
			for h := range l.Heads {
				st, err := price.Calibrate(ctx, l, h, nil, nil)
				if err != nil {
					return nil, err
				}
				j := l.Number*c.geo.KVHeads + h
				out.K[j] += float32(cold.SensitivityStep(st.KSensitivity, st.OutEnergy)) / float32(len(c.captures))
				out.V[j] += float32(cold.SensitivityStep(st.VSensitivity, st.OutEnergy)) / float32(len(c.captures))
			}
		}
	}
	// Only differences between heads mean something.
	var mean float64
	for j := range n {
		mean += float64(out.K[j]+out.V[j]) / float64(2*n)
	}
	for j := range n {
		out.K[j] -= float32(mean)
		out.V[j] -= float32(mean)
	}
	return out, nil
}
