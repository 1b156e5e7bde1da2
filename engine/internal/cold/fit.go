// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
)

// fitter fits the transforms of a set to a file.
type fitter struct {
	in    *input.Data
	ropes *archive.Ropes
	turns *archive.LayerTurns
	room  pool
}

// fitSet makes transforms and tables of the file itself. A basis costs dim*dim bytes: a head has
// one where its rows are so many that they save twice that.
func fitSet(ctx context.Context, in *input.Data, ropes *archive.Ropes) (*archive.Set, error) {
	set := &archive.Set{Tables: archive.DefaultTables(), Heads: in.Layers[0].Heads,
		Sides: 1 + min(1, in.Layers[0].DimV())}
	f := &fitter{in: in, ropes: ropes, turns: ropes.Turns()}
	lanes := set.Heads * set.Sides
	for i := range in.Layers {
		set.Layers = append(set.Layers, in.Layers[i].Number)
		set.Transforms = append(set.Transforms, make([]*archive.Transform, lanes))
	}
	err := parallel.Each(ctx, len(in.Layers)*lanes, func(i int) error {
		j := i % lanes
		t, err := f.transform(&in.Layers[i/lanes], j/set.Sides, j%set.Sides)
		set.Transforms[i/lanes][j] = t
		return err
	})
	return set, err
}

// fitRows bounds the rows that a transform is fitted to.
const fitRows = 1 << 15

// eachRows calls do with the finite rows of a head that a later query can see, segment by segment, at most
// fitRows of them. do must not keep them.
func (f *fitter) eachRows(l *input.Layer, t input.Tensor, head int, unrope bool, do func([]float32)) error {
	every := f.seen(l)/fitRows + 1
	room, done := f.room.borrow(min(l.Tokens, l.Segment) * t.Dim())
	defer done()
	for s := f.in.Outside(l, l.Tokens) / l.Segment; s < l.Segments(); s += every {
		first, n := f.in.SeenSpan(l, s)
		x := room[:n*t.Dim()]
		if err := t.ReadF32(head, first, n, x); err != nil {
			return err
		}
		if unrope {
			pos := make([]int64, n)
			if err := f.in.Positions(first, pos); err != nil {
				return err
			}
			f.turns.Of(l.Number).UndoWithout(x, t.Dim(), pos)
		}
		do(input.FiniteOf(x, t.Dim()))
	}
	return nil
}

// seen returns the tokens of a layer that a later query can see.
func (f *fitter) seen(l *input.Layer) int { return l.Tokens - f.in.Outside(l, l.Tokens) }

func (f *fitter) transform(l *input.Layer, head, side int) (*archive.Transform, error) {
	t := l.K
	if side == 1 {
		t = l.V
	}
	dim := t.Dim()
	tokens := f.seen(l)
	full := dim <= maxOwnBasis && float64(tokens) > 8*float64(dim)
	m := archive.NewMoments(dim, full)
	if err := f.eachRows(l, t, head, l.HasV && side == 0, m.Add); err != nil {
		return nil, err
	}
	var metric []float64
	if l.HasQ && side == 0 && dim <= archive.MaxBasisDim {
		rope := f.ropes.Of(l.Number)
		q := archive.NewQueryMoments(dim, rope)
		group := f.in.Geo.GQARatio()
		for g := range group {
			if err := f.eachRows(l, l.Q, head*group+g, false, q.Add); err != nil {
				return nil, err
			}
		}
		if q.N > 0 { // some are finite
			metric = archive.QueryMetric(q, rope)
		}
	}
	without := archive.FitTransform(m, metric, false)
	if !full {
		return without, nil
	}
	var energy float64
	for _, s := range without.Std8 {
		energy += math.Exp2(float64(s) / 4)
	}
	// Noise at a twentieth of the energy is about what 2 bits a value leave.
	noise, least := energy/float64(dim)/20, 2*8*float64(dim*dim)/float64(tokens)
	if gain, ok := archive.ExpectedGain(m, metric, without, noise); ok && gain < least {
		return without, nil
	}
	with := archive.FitTransform(m, metric, true)
	if archive.BasisGain(with, without, noise) > least {
		return with, nil
	}
	return without, nil
}

// maxOwnBasis bounds the dim of a basis that is fitted to a file.
const maxOwnBasis = 1 << 9

// Bounds on how far the step of a lane lies from that of the median lane, both against how much their rows
// vary, in eighths of an octave. The prices of heads may be wrong, or of another unit than the rows; no
// price makes a head vanish. Heads of the test model lie within -45 and 26.
const (
	mostCoarser = 32
	// otherUnit is how far the deviation of rows lies from that of the calibration, where they are of another unit
	// and not just of another text.
	otherUnit = 24
	mostFiner = 80
)

// balance holds the steps of the lanes together, by the deviations that the sample shows.
func balance(steps [][]int, sample []sampleRun) {
	type lane struct{ layer, i int }
	energy, rows, expected := map[lane]float64{}, map[lane]float64{}, map[lane]float64{}
	for _, s := range sample {
		if s.p == nil {
			continue
		}
		for i := range steps[s.layer] {
			k := lane{s.layer, i}
			energy[k] += s.p.Energy(i) * float64(s.rows)
			expected[k] = s.p.Expected(i)
			rows[k] += float64(s.rows)
		}
	}
	deviation := func(k lane) float64 { return 4 * math.Log2(energy[k]/rows[k]) }
	for k, e := range energy {
		// Rows of another unit than those that a profile was made of take its steps in their own unit.
		if unit := deviation(k) - 4*math.Log2(expected[k]); e > 0 && expected[k] > 0 && math.Abs(unit) > otherUnit {
			steps[k.layer][k.i] += int(math.Round(unit))
		}
	}
	var off []float64
	for k, e := range energy {
		if e > 0 {
			off = append(off, float64(steps[k.layer][k.i])-deviation(k))
		}
	}
	if len(off) == 0 {
		return
	}
	slices.Sort(off)
	middle := off[(len(off)-1)/2]
	for k, e := range energy {
		if e > 0 {
			d := deviation(k) + middle
			s := &steps[k.layer][k.i]
			*s = int(math.Round(min(max(float64(*s), d-mostFiner), d+mostCoarser)))
		}
	}
}
