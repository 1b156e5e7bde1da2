// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// unprofiled are the settings that belong to a file and not to a model. A profile that sets one of
// them is refused.
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

// profileID returns the profile's entry in the header of a file.
func profileID(p *profile.Profile) [32]byte {
	if p == nil {
		return [32]byte{}
	}
	return p.ID()
}

// checkProfile checks that a profile, if there is one, is of the model of the input, and returns its
// sensitivities, or nil.
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

// factors returns a function that gives the sensitivities of K and V of a head. They are 1 if s is
// nil.
func factors(s *profile.Sensitivity, kvHeads int) func(l *input.Layer, head int) (k, v float64) {
	return func(l *input.Layer, head int) (k, v float64) {
		if s == nil {
			return 1, 1
		}
		return s.At(l.Number, head, kvHeads)
	}
}
