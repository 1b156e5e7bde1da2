// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"context"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/kvfile"
)

// The steps that tables are fitted at, in eighths of an octave around the deviation of the
// strongest component: from some 4 bits a value to less than half.
var fitSteps = []float64{-32, -24, -18, -12, -6, 0, 6}

// fitTables replaces the tables of set, three times, by what coding the captures shows.
func (c *calibrator) fitTables(ctx context.Context, set *archive.Set) error {
	for round := range 3 {
		var fit archive.Fit
		codec, err := archive.NewCodec(&archive.Params{Fine: 1, Ropes: archive.NewRopes(c.geo), Set: set}, true)
		if err != nil {
			return err
		}
		for i, n := range set.Layers {
			c.say.Say("fitting tables", int64(round*len(set.Layers)+i), int64(3*len(set.Layers)))
			if err := ctx.Err(); err != nil {
				return err
			}
			for k, src := range c.captures {
				// A part of each capture is enough.
				if (i+k+round)%2 != 0 && len(c.captures) > 1 {
					continue
				}
				in, err := captured.Of(src, kvfile.DefaultConfig().Segment)
				if err != nil {
					return err
				}
				seg, err := cold.ReadSegment(in, &in.Layers[indexOf(in, n)], (i+k)%in.Layers[0].Segments())
				if err != nil {
					return err
				}
				for j, t := range set.Transforms[i] {
					seg.Step8[j] = int(t.Std8[0])
				}
				p, err := codec.Prepare(seg)
				if err != nil {
					return err
				}
				for _, s := range fitSteps {
					codec.Fit(&fit, p, int(s), archive.Effort{Lambda: cold.Lambda})
				}
			}
		}
		set.Tables = fit.Tables(set.Tables)
	}
	return nil
}

func indexOf(in *input.Data, number int) int {
	for i := range in.Layers {
		if in.Layers[i].Number == number {
			return i
		}
	}
	return 0
}
