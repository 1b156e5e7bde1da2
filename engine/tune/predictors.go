// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

const (
	// predictorRidge is relative to the mean square of the components of a lane. On three texts that were not
	// calibrated on, 0.03 and 0.1 saved the same within 1 %.
	predictorRidge = 0.1
	// predictorShare of the components of a context are used.
	// predictorBits is the rate at which contexts are decoded to fit predictors: one fitted there serves from 0.4 to
	// 4 bits a value.
	predictorBits = 2
	// predictorPays is the least that a predictor saves, in bits of a value: with less it is left out.
	predictorPays = 0.01
	// mostPredictorBytes bounds the predictors of a profile; those that save most for their bytes stay.
	mostPredictorBytes = 6 << 20
	// mostPaired bounds the values of a token in a layer: fitting takes 32 bytes times the square of it.
	mostPaired = 1 << 11
)

// WithPredictors adds to a profile with bases what the lanes of a layer tell of each other, learnt from the captures
// that the bases were made from: K and V of a head from those of the heads before it, and V from K. Each is held
// against the last capture, by which it was not fitted, and left out where it saves too little.
//
// Errors: quant.ErrShape for captures of another model, or a profile without bases; *archive.CorruptError.
func WithPredictors(ctx context.Context, captures []*capture.Source, p *profile.Profile,
	say func(stage string, done, total int64)) (*profile.Profile, error) {
	set, err := cold.SetOf(p)
	if err != nil {
		return nil, err
	}
	if len(captures) == 0 {
		return nil, fmt.Errorf("kvist/tune: calibrate: no captures: %w", quant.ErrShape)
	}
	tokens := 0
	for _, src := range captures {
		if err := p.Check(src.Info().Model, src.Info().Geometry); err != nil {
			return nil, fmt.Errorf("kvist/tune: calibrate: %s: %w", src.Info().Name, err)
		}
		for _, l := range set.Layers {
			if _, ok := src.KV(l, capture.V); !ok {
				return nil, fmt.Errorf("kvist/tune: calibrate: %s lacks layer %d: %w", src.Info().Name, l, quant.ErrShape)
			}
		}
		tokens += src.Info().Tokens
	}
	steps, err := cold.StepsOf(p)
	if err != nil {
		return nil, err
	}
	f := &predictorFit{captures: captures, set: set, geo: p.Geometry(), steps: steps}
	if f.codec, err = archive.NewCodec(&archive.Params{Fine: 1, Ropes: archive.NewRopes(f.geo), Set: set}, true); err != nil {
		return nil, err
	}
	all, err := f.fit(ctx, say)
	if err != nil {
		return nil, err
	}
	return cold.WithPredictors(p, set.WithThese(all), profile.Meta{"texts": fmt.Sprint(len(captures)),
		"tokens": fmt.Sprint(tokens)})
}

type predictorFit struct {
	captures []*capture.Source
	set      *archive.Set
	geo      quant.Geometry
	steps    *cold.Steps // nil: all lanes have one step
	codec    *archive.Codec
}

// candidate is a predictor and what it saves, in bits of a token.
type candidate struct {
	layer, lane int
	of          *archive.Predictor
	saved       float64
}

func (c *candidate) bytes() int { return len(c.of.Weights) + 4*len(c.of.Scale) + 2*c.of.Dim }

// fit returns the predictors that pay, [layers][lanes].
func (f *predictorFit) fit(ctx context.Context, say progress.Func) ([][]*archive.Predictor, error) {
	all := make([][]*archive.Predictor, len(f.set.Layers))
	step8 := f.step()
	var found []candidate
	for i := range all {
		say.Say("fitting predictors", int64(i), int64(len(all)))
		all[i] = make([]*archive.Predictor, len(f.set.Transforms[i]))
		some, err := f.layer(ctx, i, step8)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	say.Say("fitting predictors", int64(len(all)), int64(len(all)))
	slices.SortStableFunc(found, func(a, b candidate) int {
		return -cmp.Compare(a.saved/float64(a.bytes()), b.saved/float64(b.bytes()))
	})
	size := 0
	for _, c := range found {
		if size+c.bytes() > mostPredictorBytes {
			break
		}
		size += c.bytes()
		all[c.layer][c.lane] = c.of
	}
	return all, nil
}

// layer fits the predictors of a layer, without those that save too little.
func (f *predictorFit) layer(ctx context.Context, i, step8 int) (found []candidate, err error) {
	ts, width := f.set.Transforms[i], 0
	for _, t := range ts {
		width += t.Dim
	}
	if len(ts) < 2 || width > mostPaired {
		return nil, nil
	}
	// The last capture is held back, to hold predictors against it.
	pairings := make([]*archive.Pairing, min(2, len(f.captures)))
	err = parallel.Each(ctx, len(pairings), func(k int) error {
		pairings[k] = archive.NewPairing(ts, f.set.Sides)
		some := f.captures[len(f.captures)-1:]
		if k == 0 && len(f.captures) > 1 {
			some = f.captures[:len(f.captures)-1]
		}
		for _, src := range some {
			if err := f.add(pairings[k], src, i, step8); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	held := pairings[len(pairings)-1]
	tried := pairings[0].Predictors(predictorRidge)
	if len(pairings) == 2 {
		pairings[0].Merge(held)
	}
	lanes := f.laneSteps(i)
	for lane, p := range pairings[0].Predictors(predictorRidge) {
		if p == nil || tried[lane] == nil {
			continue
		}
		if saved := held.Saved(tried[lane], lane, lanes[lane]+step8); saved > predictorPays*float64(p.Dim) {
			found = append(found, candidate{i, lane, p, saved})
		}
	}
	return found, nil
}

// add adds the rows of a capture to a pairing, without the first tokens, which are like no others.
func (f *predictorFit) add(p *archive.Pairing, src *capture.Source, i, step8 int) error {
	cfg := kvfile.DefaultConfig()
	in, err := captured.Of(src, cfg.Segment)
	if err != nil {
		return err
	}
	l := &in.Layers[indexOf(in, f.set.Layers[i])]
	for s := range l.Segments() {
		seg, err := cold.ReadWhole(in, l, s)
		if err != nil {
			return err
		}
		seg.Step8 = f.laneSteps(i)
		made, err := f.codec.Prepare(seg)
		if err != nil {
			return err
		}
		first, _ := l.Span(s)
		p.Add(f.codec, made, step8, archive.Effort{Lambda: cold.Lambda}, max(cfg.Sinks-first, 0))
	}
	return nil
}

// laneSteps returns what the lanes of a layer add to the common step.
func (f *predictorFit) laneSteps(i int) []int {
	steps := make([]int, len(f.set.Transforms[i]))
	for lane := range steps {
		if f.steps == nil {
			continue
		}
		of := f.steps.K
		if lane%2 == 1 {
			of = f.steps.V
		}
		steps[lane] = int(math.Round(float64(of[f.set.Layers[i]*f.geo.KVHeads+lane/2])))
	}
	return steps
}

// step returns the common step at which values take about predictorBits.
func (f *predictorFit) step() int {
	low, high := -2000, 2000
	for high-low > 1 {
		s := (low + high) / 2
		var bits, values float64
		for i, ts := range f.set.Transforms {
			lanes := f.laneSteps(i)
			for lane, t := range ts {
				for _, d := range t.Std8 {
					bits += math.Log2(1+2.5*math.Exp2(float64(int(d)-lanes[lane]-s)/4)) / 2
				}
				values += float64(t.Dim)
			}
		}
		if bits > predictorBits*values {
			low = s
		} else {
			high = s
		}
	}
	return low
}
