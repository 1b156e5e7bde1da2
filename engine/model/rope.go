// SPDX-License-Identifier: Apache-2.0

package model

import (
	"errors"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// rope is a model's rotary embedding: position p rotates pair i by p*invFreq[i], and both components
// are multiplied by mscale, which is 1 except with YaRN and longrope.
type rope struct {
	dim     int // components that rotate
	theta   float64
	invFreq []float64 // [dim/2], scaling applied
	scaled  bool      // invFreq is not theta^(-2i/dim)
	mscale  float64
}

// ropeScaling is how a model file extends its context, with the defaults of llama.cpp.
type ropeScaling struct {
	kind               string // "none", "linear", "yarn", "longrope"
	factor             float64
	origContext        float64
	extFactor          float64
	attnFactor         float64
	betaFast, betaSlow float64
	freqFactors        []float32 // [dim/2], divisors of the angles (llama 3, longrope); nil: none
}

// newRope computes the frequencies as ggml's ggml_rope_yarn does.
//
// Source: Peng et al., YaRN (2023, arXiv 2309.00071), section 3; Chen et al., position
// interpolation (2023, arXiv 2306.15595) for "linear".
func newRope(dim int, theta float64, s ropeScaling) *rope {
	r := &rope{dim: dim, theta: theta, invFreq: make([]float64, dim/2), mscale: s.attnFactor}
	interpolate := 1.0
	if s.kind != "none" {
		interpolate = 1 / s.factor
	}
	ext := 0.0
	var low, high float64
	if s.kind == "yarn" {
		ext = s.extFactor
		// The pair that rotates n times over the original context.
		pair := func(n float64) float64 {
			return float64(dim) * math.Log(s.origContext/(n*2*math.Pi)) / (2 * math.Log(theta))
		}
		low = math.Max(0, math.Floor(pair(s.betaFast)))
		high = math.Min(float64(dim-1), math.Ceil(pair(s.betaSlow)))
		if ext != 0 {
			r.mscale *= 1 + 0.1*math.Log(s.factor)
		}
	}
	for i := range r.invFreq {
		extrapolated := math.Pow(theta, -2*float64(i)/float64(dim))
		if s.freqFactors != nil {
			extrapolated /= float64(s.freqFactors[i])
		}
		// Fast pairs keep their frequency, slow pairs are interpolated; between them is a ramp.
		ramp := 1 - math.Min(1, math.Max(0, (float64(i)-low)/math.Max(0.001, high-low)))
		mix := ramp * ext
		r.invFreq[i] = extrapolated*interpolate*(1-mix) + extrapolated*mix
	}
	r.scaled = interpolate != 1 || s.freqFactors != nil
	return r
}

// geometry describes the embedding for quant.Geometry.
func (r *rope) geometry() quant.Rope {
	g := quant.Rope{Layout: quant.RopeHalf, RotaryDim: r.dim, Theta: r.theta}
	if r.scaled {
		g.InvFreq = make([]float32, len(r.invFreq))
		for i, f := range r.invFreq {
			g.InvFreq[i] = float32(f)
		}
	}
	return g
}

// angles writes cosine and sine, mscale included, of n positions from pos: [n, dim/2] each.
func (r *rope) angles(pos, n int, cos, sin []float32) {
	half := r.dim / 2
	for t := range n {
		for i, f := range r.invFreq {
			s, c := math.Sincos(float64(pos+t) * f)
			cos[t*half+i] = float32(c * r.mscale)
			sin[t*half+i] = float32(s * r.mscale)
		}
	}
}

// apply rotates one row of a head in place, half-split layout: component i with i + dim/2.
func (r *rope) apply(row, cos, sin []float32) {
	half := r.dim / 2
	a, b := row[:half:half], row[half:2*half:2*half]
	cos, sin = cos[:half], sin[:half]
	for i := range a {
		x, y := a[i], b[i]
		a[i] = x*cos[i] - y*sin[i]
		b[i] = y*cos[i] + x*sin[i]
	}
}

// readRopes sets the embeddings of the layers. positions is Options.Context: a longrope model has one
// set of frequencies up to its original context, and another one beyond.
func (c *Config) readRopes(m *metaReader, positions int) error {
	dim := m.int("rope.dimension_count", c.HeadDim, 2, quant.MaxDim)
	if m.err == nil && (dim%2 != 0 || dim > c.HeadDim) {
		return m.wrong("rope.dimension_count", corruptf("%d, want an even number of [2, head_dim %d]", dim,
			c.HeadDim))
	}
	theta := m.base("rope.freq_base", 10000)
	s, err := readScaling(m, dim, c.Context)
	if err != nil {
		return err
	}
	if err := c.readLongrope(m, dim, positions, &s); err != nil {
		return err
	}
	if c.arch.ropeFactors {
		if s.freqFactors, err = readFactors(m.f, "rope_freqs.weight", dim); err != nil {
			return err
		}
	}
	c.ropes = []*rope{newRope(dim, theta, s)}
	c.layerRope = make([]int, c.Layers)
	if c.arch.finetunedRope {
		if v, ok := m.meta("rope.scaling.finetuned"); ok && v.IsZero() {
			c.ropes = nil
		}
	}
	for l := range c.layerRope {
		if c.ropes == nil || !c.arch.hasRope(l) {
			c.layerRope[l] = -1
		}
	}
	if c.arch.windowedRope {
		return c.readWindowedRope(m, dim, theta)
	}
	return m.err
}

// readWindowedRope gives the layers with a window an embedding of their own, which no scaling extends:
// they need not see far.
func (c *Config) readWindowedRope(m *metaReader, dim int, theta float64) error {
	base := c.arch.windowedBase
	if base == 0 {
		base = theta
	}
	base = m.base("rope.freq_base_swa", base)
	windows, err := c.arch.windows(m, c.Layers, math.MaxInt)
	if err != nil || m.err != nil {
		return errors.Join(err, m.err)
	}
	for l, w := range windows {
		if w > 0 {
			c.layerRope[l] = len(c.ropes)
		}
	}
	if slices.Contains(c.layerRope, len(c.ropes)) {
		none := ropeScaling{kind: "none", factor: 1, attnFactor: 1}
		c.ropes = append(c.ropes, newRope(dim, base, none))
	}
	if c.Layers > 0 && !slices.Contains(c.layerRope, 0) { // every layer has a window
		c.ropes = c.ropes[1:]
		clear(c.layerRope)
	}
	return nil
}

// readLongrope chooses the factors of a longrope model and bounds its context by their range.
//
// Source: Ding et al., LongRoPE (2024, arXiv 2402.13753).
func (c *Config) readLongrope(m *metaReader, dim, positions int, s *ropeScaling) error {
	const long, short = "rope_factors_long.weight", "rope_factors_short.weight"
	if !c.arch.longrope {
		if s.kind == "longrope" {
			return m.wrong("rope.scaling.type", unsupportedf("longrope in a model of architecture %q", c.Arch))
		}
		return nil
	}
	_, hasLong := m.f.Tensor(long)
	_, hasShort := m.f.Tensor(short)
	if !hasLong && !hasShort {
		if s.kind == "longrope" {
			return m.wrong("rope.scaling.type", corruptf("longrope without %s and %s", long, short))
		}
		return nil
	}
	l, err := readFactors(m.f, long, dim)
	if err != nil {
		return err
	}
	sh, err := readFactors(m.f, short, dim)
	if err != nil {
		return err
	}
	if l == nil || sh == nil {
		return m.wrong("rope.scaling.original_context_length", corruptf("%s or %s is missing", long, short))
	}
	s.kind, s.freqFactors = "none", l
	if original := s.origContext; float64(c.Context) <= original || float64(positions) <= original {
		s.freqFactors, c.Context = sh, int(min(float64(c.Context), original))
	}
	return nil
}

// readScaling reads the rope.scaling keys of the architecture.
//
// Errors: *gguf.FileError wrapping ErrUnsupported or ErrCorrupt.
func readScaling(m *metaReader, dim, context int) (ropeScaling, error) {
	s := ropeScaling{kind: m.str("rope.scaling.type", "none")}
	_, typed := m.meta("rope.scaling.type")
	s.factor = m.float("rope.scaling.factor", 0)
	if old := m.float("rope.scale_linear", 0); s.factor == 0 && old != 0 {
		s.factor = old // early files have this key and no scaling.type
		if !typed {
			s.kind = "linear"
		}
	} else if s.factor != 0 && !typed {
		s.kind = "linear" // llama.cpp's default
	}
	if s.factor == 0 {
		s.factor = 1
	}
	s.origContext = m.float("rope.scaling.original_context_length", float64(context))
	s.attnFactor = m.float("rope.scaling.attn_factor", 1)
	s.attnFactor *= m.float("rope.scaling.yarn_attn_factor", 1)
	s.extFactor = m.float("rope.scaling.yarn_ext_factor", 1)
	s.betaFast = m.float("rope.scaling.yarn_beta_fast", 32)
	s.betaSlow = m.float("rope.scaling.yarn_beta_slow", 1)
	if m.err != nil {
		return s, m.err
	}
	return s, s.check(m)
}

func (s *ropeScaling) check(m *metaReader) error {
	if v, ok := m.meta("rope.scaling.yarn_log_multiplier"); ok && !v.IsZero() {
		return m.wrong("rope.scaling.yarn_log_multiplier", unsupportedf("it is %s", v))
	}
	switch s.kind {
	case "none", "linear", "yarn", "longrope":
	default:
		return m.wrong("rope.scaling.type",
			unsupportedf("%q; this version knows none, linear, yarn and longrope", s.kind))
	}
	for _, p := range []struct {
		key string
		v   float64
	}{
		{"factor", s.factor}, {"attn_factor", s.attnFactor}, {"original_context_length", s.origContext},
		{"yarn_beta_fast", s.betaFast}, {"yarn_beta_slow", s.betaSlow},
	} {
		if !(p.v > 0) {
			return m.wrong("rope.scaling."+p.key, corruptf("%v, want a positive number", p.v))
		}
		if p.v >= 1e12 {
			return m.wrong("rope.scaling."+p.key, unsupportedf("%v, want less than 1e12", p.v))
		}
	}
	if !(s.extFactor >= 0 && s.extFactor <= 1) {
		return m.wrong("rope.scaling.yarn_ext_factor", corruptf("%v, want 0 to 1", s.extFactor))
	}
	return nil
}

// readFactors reads divisors of the angles, [dim/2]: rope_freqs.weight, with which llama 3 models
// extend their context, or those of longrope. They are nil if there is no such tensor.
func readFactors(f *gguf.File, name string, dim int) ([]float32, error) {
	t, ok := f.Tensor(name)
	if !ok {
		return nil, nil
	}
	if len(t.Dims) != 1 || t.Cols() != int64(dim/2) {
		return nil, f.TensorError(t, corruptf("dimensions %v, want [%d]", t.Dims, dim/2))
	}
	factors, err := f.Floats(t)
	if err != nil {
		return nil, err
	}
	for i, v := range factors {
		if !(v > 0 && v < math.MaxFloat32) {
			return nil, f.TensorError(t, corruptf("value %d is %v, want a positive number", i, v))
		}
	}
	return factors, nil
}
