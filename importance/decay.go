// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

const (
	// decaySpacing is the ratio of neighbouring time scales. The mixture is a trapezoid sum of a
	// smooth integral in the logarithm of the rate, so its error falls exponentially in
	// 1/log(spacing): at 3 it is below 2 % up to an exponent of 2.
	decaySpacing = 3
	// decayHorizon is the age in tokens up to which the mixture follows the power law.
	decayHorizon = 1 << 17
	// MaxAlpha is the largest exponent of a Decay.
	MaxAlpha = 2
)

// Decay is recency as a power law, age^-alpha, made from a few exponential time scales:
//
//	age^-alpha = 1/Gamma(alpha) * integral over u of exp(alpha*u - e^u * age)
//
// sampled at rates e^u that are a factor of 3 apart. Memories with one time scale forget either
// the near or the far past; a power law has none, and the exponentials give it a state of one
// number a scale (Trace).
//
// The profile is within 3 % of the exact power law over ages 1 to 2^17, for alpha up to 2, with
// 16 or 17 scales; beyond that age it falls off exponentially. Age 1 is the newest token. A Decay
// is immutable and safe for concurrent use.
//
// Source: Wixted and Ebbesen (1991) for the power law of forgetting; Beylkin and Monzon (2005,
// Appl. Comput. Harmon. Anal. 19) for the sum of exponentials.
type Decay struct {
	alpha, temperature float64
	rate, coef         []float64 // profile = sum coef * exp(-rate * age)
}

// NewDecay returns the profile age^-alpha, to the power of a temperature: 0 flattens it to 1
// everywhere, 1 leaves it, more sharpens it. alpha 0 is flat.
//
// Errors: quant.ErrShape unless alpha is in [0, MaxAlpha] and temperature in [0, 16].
func NewDecay(alpha, temperature float64) (*Decay, error) {
	if !(alpha >= 0 && alpha <= MaxAlpha) {
		return nil, shapeErr("decay: alpha %v, want 0 to %v", alpha, MaxAlpha)
	}
	if !(temperature >= 0 && temperature <= 16) {
		return nil, shapeErr("decay: temperature %v, want 0 to 16", temperature)
	}
	d := &Decay{alpha: alpha, temperature: temperature}
	if alpha == 0 {
		d.rate, d.coef = []float64{0}, []float64{1}
		return d, nil
	}
	step := math.Log(decaySpacing)
	norm := step / math.Gamma(alpha)
	// Rates far above 9 matter to no age; those below the horizon are one geometric sum that is
	// put on the last, where exp(-rate*age) is still about 1.
	for rate := 9.0; ; rate /= decaySpacing {
		d.rate = append(d.rate, rate)
		c := norm * math.Pow(rate, alpha)
		if rate*decayHorizon < 0.05 {
			d.coef = append(d.coef, c/(1-math.Pow(decaySpacing, -alpha)))
			return d, nil
		}
		d.coef = append(d.coef, c)
	}
}

// Scales returns the number of time scales.
func (d *Decay) Scales() int { return len(d.rate) }

// At returns the profile at an age in tokens. Ages below 1 count as 1; NaN as 1, too.
func (d *Decay) At(age float64) float64 {
	if !(age >= 1) {
		age = 1
	}
	var s float64
	for i, r := range d.rate {
		s += d.coef[i] * math.Exp(-r*age)
	}
	if d.temperature == 1 {
		return s
	}
	return math.Pow(s, d.temperature)
}

// Values writes the profile of consecutive tokens, the first of them first, when the newest
// token of the sequence is at position now: token first+i has the age now-first-i+1.
func (d *Decay) Values(dst []float64, first, now int64) {
	for i := range dst {
		dst[i] = d.At(float64(now - first - int64(i) + 1))
	}
}

// Trace is a sum of past events that fades by a Decay's power law (its temperature does not take
// part): after Add(x) and n calls of Advance, x counts as x * profile(n). State: 8 bytes a scale.
type Trace struct {
	d   *Decay
	sum []float64 // by scale
}

// NewTrace returns an empty trace.
func (d *Decay) NewTrace() *Trace { return &Trace{d, make([]float64, len(d.rate))} }

// Advance lets the given number of tokens pass.
//
// Errors: quant.ErrShape unless tokens is finite and at least 0.
func (t *Trace) Advance(tokens float64) error {
	if !(tokens >= 0) || math.IsInf(tokens, 0) {
		return shapeErr("trace: %v tokens pass, want a number from 0 up", tokens)
	}
	for i, r := range t.d.rate {
		t.sum[i] *= math.Exp(-r * tokens)
	}
	return nil
}

// Add adds an event of size x now.
//
// Errors: *ValueError wrapping quant.ErrRange unless x is finite.
func (t *Trace) Add(x float64) error {
	if !finite(x) {
		return &ValueError{"event", 0, x, "a finite number", quant.ErrRange}
	}
	for i := range t.sum {
		t.sum[i] = min(max(t.sum[i]+x, -math.MaxFloat64), math.MaxFloat64)
	}
	return nil
}

// Value returns the sum, as fading stands. Read it after Advance: an event of this very token
// (age 0) would be beyond the power law.
func (t *Trace) Value() (s float64) {
	for i, c := range t.d.coef {
		s += c * t.sum[i]
	}
	return s
}

// StateBytes returns the bytes of the state.
func (t *Trace) StateBytes() int64 { return int64(8*len(t.sum)) + 32 }

// Clone returns an independent copy.
func (t *Trace) Clone() *Trace { return &Trace{t.d, slices.Clone(t.sum)} }
