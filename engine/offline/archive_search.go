// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/archive"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// sampleValues is about how many values the search for the step looks at.
const sampleValues = 1 << 21

// load prepares a sample: some rows of the segments, of all segments where there are few.
func (a *archiver) load(ctx context.Context) error {
	type place struct{ layer, seg int }
	var all []place
	for i := range a.in.layers {
		for s := range a.in.layers[i].segments() {
			all = append(all, place{i, s})
		}
	}
	// Reading a segment costs more than coding it: at most 8 times what is looked at is read.
	every := int(a.in.values()/(8*sampleValues)) + 1
	thin := int(min(8, a.in.values()/sampleValues+1))
	var take []place
	for i, p := range all {
		if i%every == 0 {
			take = append(take, p)
		}
	}
	a.sample = make([]prepared, len(take))
	err := eachIndex(ctx, len(take), func(i int) error {
		p, err := a.segment(take[i].layer, take[i].seg)
		if err == nil && p != nil {
			a.sample[i].p = p.Thin(thin)
		}
		return err
	})
	a.share = float64(len(take)) / float64(len(all)) / float64(thin)
	return err
}

// cost returns the bits of all lanes at a step of 2^(s/8), from the sample.
func (a *archiver) cost(ctx context.Context, s float64) (float64, error) {
	s8 := a.params.SetStep(s)
	bits := make([]float64, len(a.sample))
	err := eachIndex(ctx, len(a.sample), func(i int) error {
		if a.sample[i].p == nil {
			return nil
		}
		bits[i] = a.codec.Cost(a.sample[i].p, s8, a.effort())
		return nil
	})
	var sum float64
	for _, b := range bits {
		sum += b
	}
	return sum / a.share, err
}

// keptBytes bounds the records that are kept in memory from the search to the writing; of a larger
// file they are encoded again.
var keptBytes int64 = 1 << 26

// fitAndWrite finds the step whose file comes closest to total bytes from below, and writes it.
// The sample tells how bytes go with the step; whole encodings tell how far off it is.
func (a *archiver) fitAndWrite(ctx context.Context, w io.Writer, total int64) (*Result, error) {
	fix, err := a.fixed()
	if err != nil {
		return nil, err
	}
	over := fix.Header + fix.Side + fix.Index
	var best, recs []*container.Record // kept where they are few
	var bestFine float32
	bestStep, bestBytes := 0, int64(-1)
	exact := int64(0) // bytes of records that are kept as they are
	ratio := 1.0      // bytes of records over what the sample says
	aim := float64(total)
	s := a.firstStep()
	for try := range 8 {
		a.say.say("encoding", int64(min(try, 2)), 3)
		var sampled float64
		if s, sampled, err = a.solve(ctx, 8*(aim-float64(over+exact))/ratio, s); err != nil {
			return nil, err
		}
		s8 := a.params.SetStep(s)
		recs = nil
		bytes := over
		exact = 0
		err = a.encodeAll(ctx, a.encodeAt(s8), func(r *container.Record) error {
			n, err := container.RecordSize(a.header, r)
			bytes += n
			if archive.IsLossless(r.Archive) {
				exact += n
			}
			if recs = append(recs, r); bytes > keptBytes {
				recs = recs[:0]
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if bytes <= total && bytes > bestBytes {
			best, bestBytes, bestStep, bestFine = recs, bytes, s8, a.params.Fine
		}
		if bytes <= total && total-bytes <= max(total/2000, 64) {
			break
		}
		ratio = float64(bytes-over-exact) / max(sampled/8, 1)
		aim = float64(total) * (1 - 0.0001*float64(1+try))
	}
	if bestBytes < 0 {
		return nil, fmt.Errorf("kvist/offline: %d bytes for %s as an archive: the least found is more: %w",
			total, a.in.src.Name(), quant.ErrBudget)
	}
	a.params.Fine = bestFine
	return a.emit(w, fix, func(emit func(*container.Record) error) error {
		if bestBytes > keptBytes {
			return a.encodeAll(ctx, a.encodeAt(bestStep), emit)
		}
		for _, r := range best {
			if err := emit(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// solve returns the step, as an exponent, at which the sample says so many bits, starting from a
// guess. Bits fall with the step by at most one for every coefficient and octave.
func (a *archiver) solve(ctx context.Context, bits, guess float64) (s, got float64, err error) {
	low, high := math.Inf(-1), math.Inf(1) // too fine, too coarse
	var lowBits, highBits float64
	s = guess
	for range 40 {
		if got, err = a.cost(ctx, s); err != nil {
			return 0, 0, err
		}
		if math.Abs(got-bits) < 2e-4*bits || high-low < 1e-3 {
			break
		}
		if got > bits {
			low, lowBits = s, got
		} else {
			high, highBits = s, got
		}
		switch {
		case math.IsInf(high, 0):
			s += max(2, 8*(got-bits)/float64(a.in.values()))
		case math.IsInf(low, 0):
			s -= max(2, 4*(bits-got)/float64(a.in.values()))
		default:
			f := (lowBits - bits) / max(lowBits-highBits, 1)
			s = low + (high-low)*min(max(f, 0.05), 0.95)
		}
		if math.Abs(s) > 1000 {
			break // beyond any step there is
		}
	}
	return s, got, nil
}

// firstStep is where the search for a step starts.
func (a *archiver) firstStep() float64 {
	var sum, n float64
	for i, steps := range a.step8 {
		for j, t := range a.params.Set.Find(a.in.layers[i].number) {
			sum += float64(int(t.Std8[0]) - steps[j])
			n++
		}
	}
	return sum/max(n, 1) - 8
}
