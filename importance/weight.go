// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
)

// Signals are the values of the signals of the tokens of one KV head, each [tokens], finite and
// at least 0. Those that a weighting does not use may be nil.
type Signals struct {
	Relevance, Expected, ValueNorm, Surprise, Surprisal, Habituation, Decay []float64
}

// signals are Signals by number.
type signals [numSignals][]float64

// leastShare is how far below the largest a product may lie, as a power of two: zeros are put
// there, so that a weight of zero is never taken for certain.
const leastShare = -96

// Combine writes the weights of the tokens of one KV head: the product of the signals to the
// power of their exponents, to the power of the temperature, scaled and clipped to [Min, Max] so
// that the mean is 1 (up to rounding, and to where clipping leaves no choice). Tokens of equal
// signals get equal weights; the order of tokens or heads does not matter.
//
// Scaling a signal by a constant changes nothing: the magnitude of a head's damage is measured by
// who plans, and only how it is spread over the tokens is said here.
//
// dst: [tokens].
//
// Errors: quant.ErrShape for a signal that is missing or of another length; *ValueError
// wrapping quant.ErrRange for values that are negative, NaN or infinite. Both name the signal. dst is
// unchanged then.
func Combine(dst []float32, p *Weighting, s *Signals) error {
	return combineInto(dst, p, &signals{s.Relevance, s.Expected, s.ValueNorm, s.Surprise, s.Surprisal,
		s.Habituation, s.Decay})
}

func combineInto(dst []float32, p *Weighting, s *signals) error {
	if err := p.validate(); err != nil {
		return err
	}
	logs := make([]float64, len(dst))
	for _, e := range p.exponents() {
		if e.exponent == 0 {
			continue
		}
		x := s[e.signal]
		if len(x) != len(dst) {
			return fmt.Errorf("kvist/importance: combine %v: %w", e.signal, shapeErr("%d values, want %d", len(x), len(dst)))
		}
		if err := checkSignal(e.signal.String(), x); err != nil {
			return fmt.Errorf("kvist/importance: combine %v: %w", e.signal, err)
		}
		m := largest(x)
		for i, v := range x {
			if m == 0 {
				continue // the signal tells nothing apart
			}
			// Not v/m: it would lose subnormals.
			logs[i] += e.exponent * max(math.Log2(v)-math.Log2(m), leastShare)
		}
	}
	scaleTo(dst, logs, p)
	return nil
}

// scaleTo turns logarithms to the base 2 into weights of mean 1 within the range of p.
func scaleTo(dst []float32, logs []float64, p *Weighting) {
	if len(dst) == 0 {
		return
	}
	temperature := p.Temperature
	if temperature == 0 {
		temperature = 1
	}
	top := math.Inf(-1)
	for _, l := range logs {
		top = max(top, temperature*l)
	}
	for i, l := range logs {
		logs[i] = math.Exp2(max(temperature*l-top, leastShare))
	}
	lo, hi := p.limits()
	c := scaleFor(logs, lo, hi)
	for i, w := range logs {
		dst[i] = float32(min(max(c*w, lo), hi))
	}
}

// scaleFor returns the factor c with which the mean of c*w, clipped to [lo, hi], is 1. That mean
// does not fall as c rises.
func scaleFor(w []float64, lo, hi float64) float64 {
	mean := func(c float64) (s float64) {
		for _, v := range w {
			s += min(max(c*v, lo), hi)
		}
		return s / float64(len(w))
	}
	c := 1 / meanOf(w)
	if m := mean(c); math.Abs(m-1) < 1e-12 {
		return c
	}
	// The largest w is 1 and the least 2^leastShare: at these ends all are clipped.
	a, b := math.Log2(lo), math.Log2(hi)-leastShare
	for range 64 {
		mid := (a + b) / 2
		if mean(math.Exp2(mid)) < 1 {
			a = mid
		} else {
			b = mid
		}
		if b-a < 1e-9 {
			break
		}
	}
	return math.Exp2(b)
}
