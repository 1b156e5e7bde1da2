// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Weighting holds the exponents of the signals that make up a weight. An exponent of 0 switches a
// signal off. The zero Weighting gives every token the weight 1.
type Weighting struct {
	// Exponents of the signals, in [-4, 4].
	Relevance, Expected, ValueNorm, Surprise, Surprisal, Habituation float64
	// Decay is the exponent alpha of the power law of recency, in [0, 2].
	Decay float64

	Attention RelevanceConfig // which queries relevance is about
	Horizon   int             // queries ahead that expected attention looks at. 0: 256
	Shape     ShapeConfig     // what is done to both before the product
	// Scale and Softcap are those of the layer's scores, for expected attention: the model's, so texts
	// lack them. 0: 1/sqrt(head_dim), and no soft cap.
	Scale, Softcap float64
	// Temperature sharpens (above 1) or flattens (below 1) the product, in [0, 16]. 0 means 1.
	Temperature float64
	// Min and Max bound the weights, whose mean is 1. 0: 1/64 and 64.
	Min, Max float64
}

// defaultWeighting is the square root of relevance and nothing else: the last 64 queries with a share
// of those of the last few windows, a floor at a tenth of the mean, the first 4 tokens apart.
// DESIGN.md holds the measurements behind it.
func defaultWeighting() Weighting {
	return Weighting{
		Relevance: 0.5,
		Attention: RelevanceConfig{Window: 64, Mix: 0.05, HalfLife: 64},
		Shape:     ShapeConfig{Sinks: 4, Smooth: 1, Floor: 0.1},
	}
}

// field is one entry of a weighting's text.
type field struct {
	name string
	f    *float64
	i    *int
}

func (p *Weighting) fields() []field {
	return []field{
		{"relevance", &p.Relevance, nil},
		{"expected", &p.Expected, nil},
		{"value-norm", &p.ValueNorm, nil},
		{"surprise", &p.Surprise, nil},
		{"surprisal", &p.Surprisal, nil},
		{"habituation", &p.Habituation, nil},
		{"decay", &p.Decay, nil},
		{"window", nil, &p.Attention.Window},
		{"mix", &p.Attention.Mix, nil},
		{"half-life", &p.Attention.HalfLife, nil},
		{"power", nil, &p.Attention.Power},
		{"max-tokens", nil, &p.Attention.MaxTokens},
		{"horizon", nil, &p.Horizon},
		{"sinks", nil, &p.Shape.Sinks},
		{"smooth", nil, &p.Shape.Smooth},
		{"floor", &p.Shape.Floor, nil},
		{"temper", &p.Shape.Temper, nil},
		{"temperature", &p.Temperature, nil},
		{"min", &p.Min, nil},
		{"max", &p.Max, nil},
	}
}

// String writes the fields that are not zero as "relevance=1,window=64": ParseWeighting reads it
// back exactly. The zero Weighting is "none".
func (p Weighting) String() string {
	var parts []string
	for _, f := range p.fields() {
		switch {
		case f.f != nil && *f.f != 0:
			parts = append(parts, f.name+"="+strconv.FormatFloat(*f.f, 'g', -1, 64))
		case f.i != nil && *f.i != 0:
			parts = append(parts, f.name+"="+strconv.Itoa(*f.i))
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ",")
}

// ParseWeighting reads the text that String writes. Fields that are not named are zero; "default" stands for
// the default, and may be followed by fields that differ.
//
// Errors: quant.ErrShape, naming the field.
func ParseWeighting(text string) (Weighting, error) {
	var p Weighting
	if text == "none" {
		return p, nil
	}
	known := p.fields()
	var named []string
	for i, part := range strings.Split(text, ",") {
		if part == "default" && i == 0 {
			p = defaultWeighting()
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		at := slices.IndexFunc(known, func(f field) bool { return f.name == name })
		if !ok || at < 0 {
			return Weighting{}, shapeErr("parse weighting: %q is none of its fields", short(part))
		}
		if slices.Contains(named, name) {
			return Weighting{}, shapeErr("parse weighting: %s is given twice", name)
		}
		named = append(named, name)
		var err error
		if f := known[at]; f.f != nil {
			*f.f, err = strconv.ParseFloat(value, 64)
		} else {
			*f.i, err = strconv.Atoi(value)
		}
		if err != nil {
			return Weighting{}, shapeErr("parse weighting: %s is %q, want a number", name, short(value))
		}
	}
	if err := p.validate(); err != nil {
		return Weighting{}, err
	}
	return p, nil
}

// short keeps hostile text out of messages.
func short(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// validate checks the ranges of all fields.
//
// Errors: quant.ErrShape.
func (p Weighting) validate() error {
	for _, e := range p.exponents() {
		if !(e.exponent >= -4 && e.exponent <= 4) {
			return shapeErr("weighting: exponent %v of %v, want -4 to 4", e.exponent, e.signal)
		}
	}
	lo, hi := p.limits()
	switch {
	case !(p.Decay >= 0 && p.Decay <= maxAlpha):
		return shapeErr("weighting: decay %v, want 0 to %v", p.Decay, maxAlpha)
	case p.Horizon < 0 || p.Horizon > 1<<30:
		return shapeErr("weighting: horizon of %d queries, want 0 to %d", p.Horizon, 1<<30)
	case !(p.Temperature >= 0 && p.Temperature <= 16):
		return shapeErr("weighting: temperature %v, want 0 to 16", p.Temperature)
	case !(lo > 0 && lo <= 1) || !(hi >= 1 && hi <= math.MaxFloat32):
		return shapeErr("weighting: weights from %v to %v, want a range around 1 above 0", lo, hi)
	}
	if err := p.Attention.validate(); err != nil {
		return fmt.Errorf("kvist/importance: weighting: %w", err)
	}
	if err := p.Shape.validate(); err != nil {
		return fmt.Errorf("kvist/importance: weighting: %w", err)
	}
	return nil
}

func (p Weighting) limits() (lo, hi float64) {
	lo, hi = p.Min, p.Max
	if lo == 0 {
		lo = 1.0 / 64
	}
	if hi == 0 {
		hi = 64
	}
	return lo, hi
}

// signal names a signal.
type signal uint8

// The signals.
const (
	signalRelevance signal = iota
	signalExpected
	signalValueNorm
	signalSurprise
	signalSurprisal
	signalHabituation
	signalDecay

	numSignals
)

var signalNames = [numSignals]string{"relevance", "expected", "value-norm", "surprise", "surprisal",
	"habituation", "decay"}

// String returns the signal's name in a weighting.
func (s signal) String() string {
	if s < numSignals {
		return signalNames[s]
	}
	return "Signal(" + strconv.Itoa(int(s)) + ")"
}

type exponent struct {
	signal   signal
	exponent float64
}

// exponents lists the signals that are raised to a power; decay has its exponent within.
func (p Weighting) exponents() [numSignals]exponent {
	on := 0.0
	if p.Decay != 0 {
		on = 1
	}
	return [numSignals]exponent{{signalRelevance, p.Relevance},
		{signalExpected, p.Expected}, {signalValueNorm, p.ValueNorm},
		{signalSurprise, p.Surprise}, {signalSurprisal, p.Surprisal},
		{signalHabituation, p.Habituation}, {signalDecay, on}}
}

// uses reports whether a signal takes part in the weights.
func (p Weighting) uses(s signal) bool {
	return s < numSignals && p.exponents()[s].exponent != 0
}
