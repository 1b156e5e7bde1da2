// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Params are settings by name, of importance, planner and menus. Keys are 1 to 64 of a-z, 0-9 and
// "-"; values are printable without spaces, at most 4 KiB. The reader defines the keys: those of
// its Config that set how to compress, not how much. A key that the reader does not know is an error.
type Params map[string]string

const (
	paramsText    = "text"
	maxParamKey   = 64
	maxParamValue = 1 << 12
	maxParams     = 256
)

// String writes the settings as "key=value" joined by spaces, sorted by key.
func (p Params) String() string {
	var s strings.Builder
	for i, k := range slices.Sorted(maps.Keys(p)) {
		if i > 0 {
			s.WriteByte(' ')
		}
		s.WriteString(k + "=" + p[k])
	}
	return s.String()
}

// Validate checks names and values.
//
// Errors: quant.ErrShape.
func (p Params) Validate() error {
	if len(p) > maxParams {
		return shapef("params: %d settings, want at most %d", len(p), maxParams)
	}
	for _, k := range slices.Sorted(maps.Keys(p)) {
		if !validName(k, maxParamKey, "-") {
			return shapef("params: key %q, want 1 to %d of a-z, 0-9 and -", short(k), maxParamKey)
		}
		v := p[k]
		if len(v) == 0 || len(v) > maxParamValue || !utf8.ValidString(v) ||
			strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return shapef("params: %s of %d bytes, want 1 to %d without spaces", k, len(v), maxParamValue)
		}
	}
	return nil
}

// parseParams reads the text that String writes, and nothing else: keys ascend, one space between.
//
// Errors: quant.ErrShape, naming the setting.
func parseParams(text string) (Params, error) {
	p := Params{}
	if text == "" {
		return p, nil
	}
	last := ""
	for part := range strings.SplitSeq(text, " ") {
		k, v, ok := strings.Cut(part, "=")
		if !ok || k <= last {
			return nil, shapef("params: %q, want key=value with keys ascending", short(part))
		}
		if len(p) == maxParams {
			return nil, shapef("params: more than %d settings", maxParams)
		}
		last, p[k] = k, v
	}
	return p, p.Validate()
}

// Params returns the settings; empty where the profile has none.
//
// Errors: quant.ErrShape; not for a profile that was read or made by With.
func (p *Profile) Params() (Params, error) {
	t, ok := p.Tensor(SectionParams, paramsText)
	if !ok {
		if len(p.sections[SectionParams]) > 0 {
			return nil, shapef("section params lacks the tensor %q", paramsText)
		}
		return Params{}, nil
	}
	if t.DType != "U8" || len(t.Shape) != 1 {
		return nil, shapef("tensor %q is %s %v, want U8 [-1]", t.Name, t.DType, t.Shape)
	}
	return parseParams(string(t.Data))
}

// WithParams returns a profile with these settings in place of its own; none removes the section.
//
// Errors: quant.ErrShape.
func (p *Profile) WithParams(params Params, meta Meta) (*Profile, error) {
	if err := params.Validate(); err != nil {
		return nil, err
	}
	if len(params) == 0 {
		return p.With(SectionParams, nil)
	}
	text := []byte(params.String())
	return p.With(SectionParams, meta, Tensor{Name: paramsText, DType: "U8",
		Shape: []int64{int64(len(text))}, Data: text})
}

// Sensitivity holds the factors of heads on the squared error of K and of V: how much the damage of a
// head counts against that of the others. Each is [layers, kv_heads], from 2^-20 to 2^20; 1 changes
// nothing. It covers all layers of the model, even where a cache holds only some.
type Sensitivity struct {
	K, V []float32
}

// maxFactor bounds the factors, so that their products with damages stay finite.
const maxFactor = 1 << 20

// At returns the factors of a head.
func (s *Sensitivity) At(layer, kvHead, kvHeads int) (k, v float64) {
	i := layer*kvHeads + kvHead
	return float64(s.K[i]), float64(s.V[i])
}

// Power returns the factors raised to x, held within their range: 0 gives ones, 1 the factors
// themselves.
func (s *Sensitivity) Power(x float64) *Sensitivity {
	raise := func(v []float32) []float32 {
		out := make([]float32, len(v))
		for i, f := range v {
			out[i] = float32(min(max(math.Pow(float64(f), x), 1.0/maxFactor), maxFactor))
		}
		return out
	}
	return &Sensitivity{K: raise(s.K), V: raise(s.V)}
}

// Sensitivity returns the factors, or nil where the profile has none.
//
// Errors: quant.ErrShape; not for a profile that was read or made by With.
func (p *Profile) Sensitivity() (*Sensitivity, error) {
	if len(p.sections[SectionSensitivity]) == 0 {
		return nil, nil
	}
	s := &Sensitivity{}
	for _, side := range []struct {
		name string
		dst  *[]float32
	}{{"k", &s.K}, {"v", &s.V}} {
		t, ok := p.Tensor(SectionSensitivity, side.name)
		if !ok {
			return nil, shapef("section sensitivity lacks the tensor %q", side.name)
		}
		v, err := t.floats(int64(p.geo.Layers), int64(p.geo.KVHeads))
		if err != nil {
			return nil, err
		}
		for i, f := range v {
			if !(f >= 1.0/maxFactor && f <= maxFactor) || math.IsInf(float64(f), 0) {
				return nil, shapef("sensitivity of %s, layer %d head %d: %v, want 2^-20 to 2^20", side.name,
					i/p.geo.KVHeads, i%p.geo.KVHeads, f)
			}
		}
		*side.dst = v
	}
	return s, nil
}

// WithSensitivity returns a profile with these factors in place of its own; nil removes them.
//
// Errors: quant.ErrShape.
func (p *Profile) WithSensitivity(s *Sensitivity, meta Meta) (*Profile, error) {
	if s == nil {
		return p.With(SectionSensitivity, nil)
	}
	l, h := int64(p.geo.Layers), int64(p.geo.KVHeads)
	return p.With(SectionSensitivity, meta, ofFloats("k", s.K, l, h), ofFloats("v", s.V, l, h))
}
