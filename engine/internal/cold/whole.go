// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"math"
)

// fewLanes is the number of lanes of a file below which moving one of them is too coarse to meet a
// budget: the step of the file is moved instead.
const fewLanes = 64

// fitWhole encodes a file of one batch until it fits.
func (b *budget) fitWhole(ctx context.Context, s float64) error {
	few := len(b.all)*b.lanes < fewLanes
	near := float64(b.near) / float64(b.left)
	if !few {
		near = 0.004
	}
	var fits, closest kept // the most bytes that are not too many, and the nearest of all
	last, lastLog := math.NaN(), 0.0
	low, high := math.Inf(-1), math.Inf(1) // too fine, fits
	for try := range 24 {
		s = min(max(s, -mostStep), mostStep)
		b.enc.setStep(s)
		if err := b.enc.encodeAll(ctx, b.all, 0); err != nil {
			return err
		}
		n := bytesOf(b.all)
		if n <= b.left && (fits.recs == nil || n > fits.bytes) {
			fits = b.keep(b.all)
		}
		if closest.recs == nil || max(n-b.left, b.left-n) < max(closest.bytes-b.left, b.left-closest.bytes) {
			closest = b.keep(b.all)
		}
		fixed := 0.0 // bytes that do not go with the step
		for _, c := range b.all {
			if c.exact {
				fixed += float64(c.bytes)
			} else {
				fixed += b.besides(c)
			}
		}
		got, aim := float64(n)-fixed, float64(b.left)*(1-0.0002*float64(min(try, 6)))-fixed
		over := float64(n-b.left) / float64(b.left)
		if math.Abs(over) <= near && (over <= 0 || !few) {
			break
		}
		if n > b.left {
			low = max(low, s)
		} else {
			high = min(high, s)
		}
		if low >= mostStep {
			return b.coarsest(ctx)
		}
		if high <= -mostStep || high-low < 1e-2 || try >= 6 && fits.recs != nil && float64(fits.bytes) > 0.99*float64(b.left) {
			break
		}
		next := math.NaN()
		if got > 0 && aim > 0 {
			if math.Abs(s-last) > 0.5 { // nearer points tell more of rounding than of the slope
				b.rate.slope = min(max((math.Log(got)-lastLog)/(s-last), steepest), flattest)
			}
			last, lastLog = s, math.Log(got)
			next = s + min(max((math.Log(aim)-lastLog)/b.rate.slope, -64), 64)
		}
		if !(low < next && next < high) { // the line tells nothing here
			switch {
			case math.IsInf(high, 1):
				next = s + 64
			case math.IsInf(low, -1):
				next = s - 64
			default:
				next = (low + high) / 2
			}
		}
		s = next
	}
	if few && fits.recs != nil && fits.bytes > b.left-b.left/128 || high <= -mostStep {
		b.putBack(b.all, fits)
		return nil
	}
	b.putBack(b.all, closest)
	return b.finish(ctx, b.all, 0)
}

// kept is how records were encoded.
type kept struct {
	recs  []coded
	bytes int64
	fine  float32
	step8 int
	at    float64
}

func (b *budget) keep(recs []*coded) kept {
	k := kept{bytes: bytesOf(recs), fine: b.enc.params.Fine, step8: b.enc.step8, at: b.enc.at}
	for _, c := range recs {
		k.recs = append(k.recs, *c)
	}
	return k
}

func (b *budget) putBack(recs []*coded, k kept) {
	for i := range recs {
		*recs[i] = k.recs[i]
	}
	b.enc.params.Fine, b.enc.step8, b.enc.at = k.fine, k.step8, k.at
}
