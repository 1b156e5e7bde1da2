// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// rope is a model's rotary embedding: position p rotates pair i by p*invFreq[i], and both components
// are multiplied by mscale, which is 1 except with YaRN.
type rope struct {
	dim     int // components that rotate
	theta   float64
	invFreq []float64 // [dim/2], scaling applied
	scaled  bool      // invFreq is not theta^(-2i/dim)
	mscale  float64
}

// ropeScaling is how a model file extends its context, with the defaults of llama.cpp.
type ropeScaling struct {
	kind               string // "none", "linear", "yarn"
	factor             float64
	origContext        float64
	extFactor          float64
	attnFactor         float64
	betaFast, betaSlow float64
	freqFactors        []float32 // [dim/2], divisors of the angles (llama 3); nil: none
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

// readScaling reads the rope.scaling keys of the architecture.
//
// Errors: *gguf.FileError wrapping ErrUnsupported or ErrCorrupt.
func readScaling(f *gguf.File, dim, context int) (ropeScaling, error) {
	s := ropeScaling{kind: "none"}
	m := metaReader{f: f}
	s.kind = m.str("llama.rope.scaling.type", "none")
	s.factor = m.float("llama.rope.scaling.factor", 0)
	if old := m.float("llama.rope.scale_linear", 0); s.factor == 0 && old != 0 {
		s.factor = old // early files have this key and no scaling.type
		if _, ok := f.Meta("llama.rope.scaling.type"); !ok {
			s.kind = "linear"
		}
	} else if s.factor != 0 {
		if _, ok := f.Meta("llama.rope.scaling.type"); !ok {
			s.kind = "linear" // llama.cpp's default
		}
	}
	if s.factor == 0 {
		s.factor = 1
	}
	s.origContext = m.float("llama.rope.scaling.original_context_length", float64(context))
	s.attnFactor = m.float("llama.rope.scaling.attn_factor", 1)
	s.attnFactor *= m.float("llama.rope.scaling.yarn_attn_factor", 1)
	s.extFactor = m.float("llama.rope.scaling.yarn_ext_factor", 1)
	s.betaFast = m.float("llama.rope.scaling.yarn_beta_fast", 32)
	s.betaSlow = m.float("llama.rope.scaling.yarn_beta_slow", 1)
	if m.err != nil {
		return s, m.err
	}
	if v, ok := f.Meta("llama.rope.scaling.yarn_log_multiplier"); ok && !v.IsZero() {
		return s, f.KeyError("llama.rope.scaling.yarn_log_multiplier", unsupportedf("it is %s", v))
	}
	switch s.kind {
	case "none", "linear", "yarn":
	default:
		return s, f.KeyError("llama.rope.scaling.type",
			unsupportedf("%q; this version knows none, linear and yarn", s.kind))
	}
	for _, p := range []struct {
		key string
		v   float64
	}{
		{"llama.rope.scaling.factor", s.factor}, {"llama.rope.scaling.attn_factor", s.attnFactor},
		{"llama.rope.scaling.original_context_length", s.origContext},
		{"llama.rope.scaling.yarn_beta_fast", s.betaFast},
		{"llama.rope.scaling.yarn_beta_slow", s.betaSlow},
	} {
		if !(p.v > 0) {
			return s, f.KeyError(p.key, corruptf("%v, want a positive number", p.v))
		}
		if p.v >= 1e12 {
			return s, f.KeyError(p.key, unsupportedf("%v, want less than 1e12", p.v))
		}
	}
	if !(s.extFactor >= 0 && s.extFactor <= 1) {
		return s, f.KeyError("llama.rope.scaling.yarn_ext_factor", corruptf("%v, want 0 to 1", s.extFactor))
	}
	err := readFreqFactors(f, dim, &s)
	return s, err
}

// readFreqFactors reads rope_freqs.weight, with which llama 3 models extend their context.
func readFreqFactors(f *gguf.File, dim int, s *ropeScaling) error {
	t, ok := f.Tensor("rope_freqs.weight")
	if !ok {
		return nil
	}
	if len(t.Dims) != 1 || t.Cols() != int64(dim/2) {
		return f.TensorError(t, corruptf("dimensions %v, want [%d]", t.Dims, dim/2))
	}
	var err error
	if s.freqFactors, err = f.Floats(t); err != nil {
		return err
	}
	for i, v := range s.freqFactors {
		if !(v > 0 && v < math.MaxFloat32) {
			return f.TensorError(t, corruptf("value %d is %v, want a positive number", i, v))
		}
	}
	return nil
}

// metaReader reads typed metadata and keeps the first error.
type metaReader struct {
	f   *gguf.File
	err error
}

func (m *metaReader) fail(key string, v gguf.Value, want string) {
	if m.err == nil && v.Type == gguf.TypeArray {
		m.err = m.f.KeyError(key, unsupportedf("%s: a value for each layer; "+
			"this version runs models whose layers are alike", v))
	}
	if m.err == nil {
		m.err = m.f.KeyError(key, corruptf("%s of type %s, want %s", v, v.Type, want))
	}
}

func (m *metaReader) float(key string, def float64) float64 {
	v, ok := m.f.Meta(key)
	if !ok {
		return def
	}
	x, ok := v.Float()
	if !ok || math.IsNaN(x) || math.IsInf(x, 0) {
		m.fail(key, v, "a number")
	}
	return x
}

func (m *metaReader) str(key, def string) string {
	v, ok := m.f.Meta(key)
	if !ok {
		return def
	}
	s, ok := v.Str()
	if !ok {
		m.fail(key, v, "a string")
	}
	return s
}

// int reads an integer within [lo, hi]. It returns def if the key is missing; a negative def makes
// that an error.
func (m *metaReader) int(key string, def, lo, hi int) int {
	v, ok := m.f.Meta(key)
	if !ok {
		if def < 0 && m.err == nil {
			m.err = m.f.KeyError(key, corruptf("the key is missing"))
		}
		return max(def, lo)
	}
	n, ok := v.Int()
	if ok && n > int64(hi) && m.err == nil {
		m.err = m.f.KeyError(key, unsupportedf("%d, want at most %d", n, hi))
	}
	if !ok || n < int64(lo) || n > int64(hi) {
		m.fail(key, v, fmt.Sprintf("an integer of [%d, %d]", lo, hi))
		return lo
	}
	return int(n)
}
