// SPDX-License-Identifier: Apache-2.0

package importance

import "math"

const (
	// decaySpacing is the ratio of neighbouring time scales. The mixture is a trapezoid sum of a
	// smooth integral in the logarithm of the rate, so its error falls exponentially in
	// 1/log(spacing): at 3 it is below 2 % up to an exponent of 2.
	decaySpacing = 3
	// decayHorizon is the age in tokens up to which the mixture follows the power law.
	decayHorizon = 1 << 17
	// maxAlpha is the largest exponent of a decay.
	maxAlpha = 2
)

// decay is recency as a power law, age^-alpha, made from a few exponential time scales:
//
//	age^-alpha = 1/Gamma(alpha) * integral over u of exp(alpha*u - e^u * age)
//
// sampled at rates e^u that are a factor of 3 apart. A memory with one time scale forgets either
// the near or the far past; a power law forgets neither.
//
// The sum is within 3 % of the exact power law over ages 1 to 2^17, for alpha up to 2, with 16 or
// 17 scales. Beyond that age it falls off exponentially. Age 1 is the newest token. A decay is
// immutable and safe for concurrent use.
//
// Source: Wixted and Ebbesen (1991) for the power law of forgetting; Beylkin and Monzon (2005,
// Appl. Comput. Harmon. Anal. 19) for the sum of exponentials.
type decay struct {
	alpha, temperature float64
	rate, coef         []float64 // curve = sum coef * exp(-rate * age)
}

// newDecay returns the curve age^-alpha, to the power of a temperature: 0 flattens it to 1
// everywhere, 1 leaves it, more sharpens it. alpha 0 is flat.
//
// Errors: quant.ErrShape unless alpha is in [0, maxAlpha] and temperature in [0, 16].
func newDecay(alpha, temperature float64) (*decay, error) {
	if !(alpha >= 0 && alpha <= maxAlpha) {
		return nil, shapeErr("decay: alpha %v, want 0 to %v", alpha, maxAlpha)
	}
	if !(temperature >= 0 && temperature <= 16) {
		return nil, shapeErr("decay: temperature %v, want 0 to 16", temperature)
	}
	d := &decay{alpha: alpha, temperature: temperature}
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
func (d *decay) Scales() int { return len(d.rate) }

// At returns the curve at an age in tokens. Ages below 1 count as 1; NaN as 1, too.
func (d *decay) At(age float64) float64 {
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

// Values writes the curve of consecutive tokens, the first of them first, when the newest
// token of the sequence is at position now: token first+i has the age now-first-i+1.
func (d *decay) Values(dst []float64, first, now int64) {
	for i := range dst {
		dst[i] = d.At(float64(now - first - int64(i) + 1))
	}
}
