// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/parallel"
)

// sampleValues is about how many values the sample holds. A layer has leastRows at least.
const (
	sampleValues = 3 << 19
	leastRows    = 32
	runRows      = 64 // rows of a segment, if any: enough to tell the deviations of components
)

// solveNear is how near the sample has to come to the bits asked for, relatively: the batches that
// follow make up for the rest.
const solveNear = 0.005

// The logarithm of bits falls with the step by 0.09 for an eighth of an octave where bits are few
// and by 0.02 where they are many; these bounds keep the search sane where rounding hides it.
const (
	steepest = -0.5
	flattest = -0.005
)

// rateModel says how bytes go with the step.
type rateModel struct {
	enc    *encoder
	sample []sampleRun
	layers []float64 // bits of a token of each layer at the step of the file
	bits   float64   // of all lanes
	slope  float64   // of the logarithm of bits, for an eighth of an octave
}

// sampleRun is some rows of a segment.
type sampleRun struct {
	layer int
	rows  int
	p     *archive.Prepared // nil where rows are kept as they are
	bits  float64           // at the step last tried
}

// load takes the sample: rows of some segments of every layer, spread evenly over them; all rows of a
// small file.
func (r *rateModel) load(ctx context.Context) error {
	type span struct{ layer, seg, every int }
	var spans []span
	share := min(1, sampleValues/float64(max(1, r.enc.in.SeenValues())))
	for i := range r.enc.in.Layers {
		l := &r.enc.in.Layers[i]
		in := r.enc.in
		gone := in.Outside(l, l.Tokens)
		seen := l.Tokens - gone
		if seen == 0 {
			continue
		}
		before := gone / l.Segment // segments of which nothing is stored
		segments := l.Segments() - before
		rows := min(seen, max(leastRows, int(share*float64(seen))))
		runs := min(max(1, rows/runRows), segments)
		if share == 1 {
			runs = segments
		}
		for j := range runs {
			seg := before + (2*j+1)*segments/(2*runs)
			_, n := in.SeenSpan(l, seg)
			spans = append(spans, span{i, seg, max(1, n*runs/max(1, rows))})
		}
	}
	r.sample = make([]sampleRun, len(spans))
	return parallel.Each(ctx, len(spans), func(i int) error {
		s := spans[i]
		first, n := r.enc.in.SeenSpan(&r.enc.in.Layers[s.layer], s.seg)
		p, err := r.enc.rows(s.layer, first, n, s.every, nil)
		if err != nil {
			return err
		}
		r.sample[i] = sampleRun{layer: s.layer, rows: n, p: p}
		if p != nil {
			r.sample[i].rows = p.Rows()
		}
		return nil
	})
}

// cost returns the bits of all lanes at a step of 2^(s/8), as the sample tells it, and keeps those
// of a token of each layer.
func (r *rateModel) cost(ctx context.Context, s float64) (float64, error) {
	s8 := r.enc.params.SetStep(s)
	err := parallel.Each(ctx, len(r.sample), func(i int) error {
		if r.sample[i].p != nil {
			r.sample[i].bits = r.enc.codec.Cost(r.sample[i].p, s8, r.enc.effort())
		}
		return nil
	})
	r.layers = make([]float64, len(r.enc.in.Layers))
	rows := make([]float64, len(r.enc.in.Layers))
	for _, x := range r.sample {
		r.layers[x.layer] += x.bits
		rows[x.layer] += float64(x.rows)
	}
	var sum float64
	for i := range r.layers {
		r.layers[i] /= max(rows[i], 1)
		l := &r.enc.in.Layers[i]
		sum += r.layers[i] * float64(l.Tokens-r.enc.in.Outside(l, l.Tokens))
	}
	return sum, err
}

// solve returns the step, as an exponent, at which the sample says so many bits, starting from a
// guess. The logarithm of bits is close to a straight line, so few steps are tried.
func (r *rateModel) solve(ctx context.Context, bits, guess float64) (s float64, err error) {
	low, high := math.Inf(-1), math.Inf(1) // too fine, too coarse
	slope, last, lastLog := -0.08, 0.0, 0.0
	want := math.Log(max(bits, 1))
	s = guess
	for try := range 30 {
		if r.bits, err = r.cost(ctx, s); err != nil {
			return 0, err
		}
		got := math.Log(max(r.bits, 1))
		if try > 0 && math.Abs(s-last) > 0.2 {
			slope = min(max((got-lastLog)/(s-last), steepest), flattest)
		}
		last, lastLog = s, got
		if try > 0 && math.Abs(got-want) < solveNear || high-low < 1e-2 || math.Abs(s) > mostStep {
			break
		}
		if got > want {
			low = s
		} else {
			high = s
		}
		s += min(max((want-got)/slope, -64), 64)
		if try == 0 && math.Abs(s-last) < 0.25 {
			s = last + math.Copysign(0.25, s-last) // near enough already: this one is for the slope
		}
		if !(low < s && s < high) && !math.IsInf(high-low, 0) {
			s = (low + high) / 2
		}
	}
	r.slope = slope
	return s, nil
}

// firstStep is where the search for a step starts: from the deviations of the components, with
// log2(1 + 2.5 * (deviation/step)^2) / 2 for the bits of a value. That is a bit less than one of a
// Gaussian takes: segments and rows are told apart, and most steps are coarser than the mean.
func (r *rateModel) firstStep(bits float64) float64 {
	const zero = 1 << 11
	count := make([]float64, 2*zero) // of values, by the exponent of their deviation over the lane's step
	for i, steps := range r.enc.laneSteps {
		l := &r.enc.in.Layers[i]
		for j, t := range r.enc.params.Set.Find(l.Number) {
			for _, s := range t.Std8 {
				count[min(max(int(s)-steps[j]+zero, 0), 2*zero-1)] += float64(l.Tokens - r.enc.in.Outside(l, l.Tokens))
			}
		}
	}
	low, high := -2000.0, 2000.0
	for range 20 {
		s := (low + high) / 2
		var sum float64
		for i, n := range count {
			if n > 0 {
				sum += n * math.Log2(1+2.5*math.Exp2((float64(i-zero)-s)/4)) / 2
			}
		}
		if sum > bits {
			low = s
		} else {
			high = s
		}
	}
	return low
}
