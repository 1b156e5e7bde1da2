// SPDX-License-Identifier: Apache-2.0

package importance

import "math"

// ShapeConfig says how a raw signal becomes a weight. The zero value only normalises.
type ShapeConfig struct {
	// Sinks is the number of first tokens that stand apart: they take no part in smoothing, nor
	// in the mean that floor and normalisation refer to. Attention sinks would otherwise set it.
	Sinks int
	// Smooth is the width of a centred mean over neighbours, odd. 0 and 1 are off.
	Smooth int
	// Floor is the least value, as a share of the mean, in [0, 1].
	Floor float64
	// Temper in [0, 1] trusts a head less the more its signal is gathered on few tokens: values
	// are taken to the power 1 - Temper*(1-h), h in [0, 1] the entropy of the signal over that
	// of an even one. 0 is off.
	Temper float64
}

// validate checks the ranges of the fields.
//
// Errors: quant.ErrShape.
func (c ShapeConfig) validate() error {
	switch {
	case c.Sinks < 0:
		return shapeErr("shape: %d sinks, want 0 or more", c.Sinks)
	case c.Smooth < 0 || c.Smooth > 1<<16 || c.Smooth > 0 && c.Smooth%2 == 0:
		return shapeErr("shape: smoothing over %d tokens, want an odd number", c.Smooth)
	case !(c.Floor >= 0 && c.Floor <= 1):
		return shapeErr("shape: floor %v, want 0 to 1", c.Floor)
	case !(c.Temper >= 0 && c.Temper <= 1):
		return shapeErr("shape: temper %v, want 0 to 1", c.Temper)
	}
	return nil
}

// Shape smooths, floors, tempers and normalises x [tokens] in place, in this order. The mean of
// the tokens that are no sinks is 1 afterwards; a signal that is zero everywhere becomes 1
// everywhere. At the ends smoothing takes the neighbours there are.
//
// Scaling x by a power of two changes nothing.
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for values that are negative, NaN
// or infinite. x is unchanged then.
func Shape(x []float64, cfg ShapeConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	if err := checkSignal("signal", x); err != nil {
		return err
	}
	// To the order of 1, so that no sum overflows; an exact power of two.
	if m := largest(x); m > 0 {
		_, exp := math.Frexp(m)
		for i := range x {
			x[i] = math.Ldexp(x[i], -exp)
		}
	}
	body := x[min(cfg.Sinks, len(x)):]
	smooth(body, cfg.Smooth)
	mean := meanOf(body)
	for i, v := range body {
		body[i] = max(v, cfg.Floor*mean)
	}
	if cfg.Temper > 0 && mean > 0 && len(body) > 1 {
		h := entropy(body) / math.Log(float64(len(body)))
		power := 1 - cfg.Temper*(1-min(max(h, 0), 1))
		for i, v := range x {
			x[i] = math.Pow(v, power)
		}
	}
	normalise(x, meanOf(body))
	return nil
}

// normalise divides x by mean; without one every value becomes 1.
func normalise(x []float64, mean float64) {
	for i := range x {
		if mean > 0 {
			x[i] /= mean
		} else {
			x[i] = 1
		}
	}
}

func smooth(x []float64, width int) {
	if width < 3 || len(x) < 2 {
		return
	}
	half := width / 2
	out := make([]float64, len(x))
	for i := range x {
		lo, hi := max(0, i-half), min(len(x), i+half+1)
		for _, v := range x[lo:hi] {
			out[i] += v
		}
		out[i] /= float64(hi - lo)
	}
	copy(x, out)
}

func meanOf(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	var s float64
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}

func largest(x []float64) (m float64) {
	for _, v := range x {
		m = max(m, v)
	}
	return m
}

// entropy of x taken as a distribution, in nats.
func entropy(x []float64) (h float64) {
	var s float64
	for _, v := range x {
		s += v
	}
	for _, v := range x {
		if p := v / s; p > 0 {
			h -= p * math.Log(p)
		}
	}
	return h
}
