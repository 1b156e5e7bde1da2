// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// What the archive keeps in a profile: the sections basis, tables and predictors, which decoding takes and
// whose digest names the profile in a file, and the section archive, which only compressing
// looks at.
const (
	tensorTransforms = "transforms"
	tensorCoder      = "coder"
	tensorPredictors = "lanes"
	tensorStepsK     = "steps-k"
	tensorStepsV     = "steps-v"

	sectionArchive profile.Section = "archive"
)

// ProfileID returns what a file in archive form names the profile by: the digest of the sections
// that decoding takes.
func ProfileID(p *profile.Profile, set *Settings) profile.ID {
	return p.Digest(profile.ArchiveSections(predicts(p, set))...)
}

// predicts reports whether lanes are predicted: files of stages are not, because what was dropped of a lane would
// be missing from those that it tells.
func predicts(p *profile.Profile, set *Settings) bool {
	return p != nil && set.Chunks <= 1 && !set.Lossless && len(p.Tensors(profile.SectionPredictors)) > 0
}

// setOf returns transforms and tables of a profile, and predictors if asked for, which nobody changes.
//
// Errors: quant.ErrShape where the profile was not calibrated; *archive.CorruptError.
func setOf(p *profile.Profile, predict bool) (*archive.Set, error) {
	s, err := p.Derived(setKey{false}, func() (any, error) { return parseSet(p) })
	if err == nil && predict {
		plain := s.(*archive.Set)
		s, err = p.Derived(setKey{true}, func() (any, error) { return parsePredictors(p, plain) })
	}
	if err != nil {
		return nil, err
	}
	return s.(*archive.Set), nil
}

func parsePredictors(p *profile.Profile, plain *archive.Set) (*archive.Set, error) {
	t, ok := p.Tensor(profile.SectionPredictors, tensorPredictors)
	if !ok || t.DType != "U8" || len(t.Shape) != 1 {
		return nil, fmt.Errorf("kvist/cold: profile %s: section %s lacks a tensor %q of U8 [-1]: %w", p.ID(),
			profile.SectionPredictors, tensorPredictors, quant.ErrShape)
	}
	return plain.WithPredictors(t.Data)
}

// SetOf returns the set of a profile without predictors, and WithPredictors puts predictors in.
//
// Errors: quant.ErrShape where the profile was not calibrated; *archive.CorruptError.
func SetOf(p *profile.Profile) (*archive.Set, error) { return setOf(p, false) }

// WithPredictors returns a profile with the predictors of a set; none removes them.
func WithPredictors(p *profile.Profile, s *archive.Set, meta profile.Meta) (*profile.Profile, error) {
	if s.Predictors == nil {
		return p.With(profile.SectionPredictors, nil)
	}
	b := s.AppendPredictors(nil)
	return p.With(profile.SectionPredictors, meta, bytesTensor(tensorPredictors, b, int64(len(b))))
}

// setKey is the key of a profile's set among what is derived from it.
type setKey struct{ predict bool }

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

// WithSet returns a profile with these transforms and tables, and without predictors: those were of others.
func WithSet(p *profile.Profile, s *archive.Set, meta profile.Meta) (*profile.Profile, error) {
	b := s.Append(nil)
	p, err := p.With(profile.SectionBasis, meta, bytesTensor(tensorTransforms, b, int64(len(b))))
	if err != nil {
		return nil, err
	}
	if p, err = p.With(profile.SectionPredictors, nil); err != nil {
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
