// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// CodecOf returns a codec for rows of a cache that stand in no file, with basis, tables and predictors of a profile,
// and its steps, nil where it has none.
//
// Errors: quant.ErrShape where the profile was not calibrated or is of another model; *archive.CorruptError.
func CodecOf(p *profile.Profile, g quant.Geometry) (*archive.Codec, *Steps, error) {
	if have := p.Geometry(); have.Layers != g.Layers || have.KVHeads != g.KVHeads || have.HeadDim != g.HeadDim ||
		have.HeadDimV != g.HeadDimV {
		return nil, nil, fmt.Errorf("kvist/cold: profile %s is of a model of another shape: %w", p.ID(), quant.ErrShape)
	}
	predict := predicts(p, &Settings{})
	set, err := setOf(p, predict)
	if err != nil {
		return nil, nil, err
	}
	steps, err := StepsOf(p)
	if err != nil {
		return nil, nil, err
	}
	params := &archive.Params{Fine: 1, Class8: classSteps(), Ropes: archive.NewRopes(g), Set: set,
		Predict: predict}
	codec, err := archive.NewCodec(params, true)
	return codec, steps, err
}

// ClassOf returns the class of the step of a token of a weight, those of its head having a mean square of 1.
func ClassOf(weight float32) uint8 {
	v := (weight + weightFloor) / (1 + weightFloor)
	k := 0
	for k < len(classBounds) && v >= classBounds[k] {
		k++
	}
	return uint8(k)
}

// MidClass is the class that adds nothing to a step.
const MidClass = midClass
