// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// What the archive keeps in a profile: the sections basis and tables, which decoding takes and
// whose digest names the profile in a file, and the section archive, which only compressing
// looks at.
const (
	tensorTransforms = "transforms"
	tensorCoder      = "coder"
	tensorStepsK     = "steps-k"
	tensorStepsV     = "steps-v"

	sectionArchive profile.Section = "archive"
)

// ProfileID returns what a file in archive form names the profile by: the digest of the sections
// that decoding takes.
func ProfileID(p *profile.Profile) profile.ID {
	return p.Digest(profile.SectionBasis, profile.SectionTables)
}

// setOf returns transforms and tables of a profile, which nobody changes.
//
// Errors: quant.ErrShape where the profile was not calibrated; *archive.CorruptError.
func setOf(p *profile.Profile) (*archive.Set, error) {
	s, err := p.Derived(setKey{}, func() (any, error) { return parseSet(p) })
	if err != nil {
		return nil, err
	}
	return s.(*archive.Set), nil
}

// setKey is the key of a profile's set among what is derived from it.
type setKey struct{}

func parseSet(p *profile.Profile) (*archive.Set, error) {
	basis, ok := p.Tensor(profile.SectionBasis, tensorTransforms)
	tables, ok2 := p.Tensor(profile.SectionTables, tensorCoder)
	if !ok || !ok2 {
		return nil, fmt.Errorf(
			"kvist/cold: profile %s holds no basis and tables for the archive (kvist calibrate makes them): %w",
			p.ID(), quant.ErrShape)
	}
	for _, t := range []profile.Tensor{basis, tables} {
		if t.DType != "U8" || len(t.Shape) != 1 {
			return nil, fmt.Errorf("kvist/cold: profile %s: tensor %q is %s %v, want U8 [-1]: %w",
				p.ID(), t.Name, t.DType, t.Shape, quant.ErrShape)
		}
	}
	return archive.ParseSet(tables.Data, basis.Data)
}

// WithSet returns a profile with these transforms and tables.
func WithSet(p *profile.Profile, s *archive.Set, meta profile.Meta) (*profile.Profile, error) {
	b := s.Append(nil)
	p, err := p.With(profile.SectionBasis, meta, bytesTensor(tensorTransforms, b, int64(len(b))))
	if err != nil {
		return nil, err
	}
	t := s.AppendTables(nil)
	return p.With(profile.SectionTables, meta, bytesTensor(tensorCoder, t, int64(len(t))))
}

// Steps are what heads add to the common step, in eighths of an octave, [layers, kv_heads]
// of the model: minus where an error in them costs more than its squared length says.
type Steps struct{ K, V []float32 }

// WithSteps returns a profile with these steps.
//
// Errors: quant.ErrShape.
func WithSteps(p *profile.Profile, s *Steps, meta profile.Meta) (*profile.Profile, error) {
	g := p.Geometry()
	shape := []int64{int64(g.Layers), int64(g.KVHeads)}
	return p.With(sectionArchive, meta, floatsTensor(tensorStepsK, s.K, shape...),
		floatsTensor(tensorStepsV, s.V, shape...))
}

// StepsOf reads the steps of a profile, nil where it has none.
func StepsOf(p *profile.Profile) (*Steps, error) {
	g := p.Geometry()
	shape := []int64{int64(g.Layers), int64(g.KVHeads)}
	s := &Steps{}
	for _, x := range []struct {
		name string
		dst  *[]float32
	}{{tensorStepsK, &s.K}, {tensorStepsV, &s.V}} {
		t, ok := p.Tensor(sectionArchive, x.name)
		if !ok {
			return nil, nil
		}
		var err error
		if *x.dst, err = floatsOf(t, shape); err != nil {
			return nil, err
		}
		for _, v := range *x.dst {
			if !(math.Abs(float64(v)) <= 400) {
				return nil, fmt.Errorf("kvist/cold: profile %s: step %v of an archive, want -400 to 400: %w",
					p.ID(), v, quant.ErrShape)
			}
		}
	}
	return s, nil
}

// SensitivityStep is the step, in eighths of an octave, of rows whose squared errors cost so much:
// the best steps make all squared errors cost the same.
func SensitivityStep(sensitivity, outEnergy float64) float64 {
	return -4 * (math.Log2(max(sensitivity, leastCost)) - math.Log2(max(outEnergy, leastCost)))
}

// leastCost stands for nothing where a logarithm is taken; energies of any float32 lie above it.
const leastCost = 1e-100

// ProfileText is what a report says of a header's profile.
func ProfileText(id profile.ID) string {
	if id == (profile.ID{}) {
		return ""
	}
	return id.Full()
}
