// SPDX-License-Identifier: Apache-2.0

package profile

import "math"

// Queries holds what is known of the queries of a model: mean and variance of each component, RoPE taken out,
// [layers, heads, head_dim]. With them tokens of a cache are weighed whose queries are not known.
type Queries struct {
	Mean, Variance []float32
}

// Queries returns the moments, or nil where the profile has none.
//
// Errors: quant.ErrShape; not for a profile that was read or made by With.
func (p *Profile) Queries() (*Queries, error) {
	if len(p.sections[SectionQueries]) == 0 {
		return nil, nil
	}
	q := &Queries{}
	for _, m := range []struct {
		name  string
		dst   *[]float32
		least float64
	}{{"mean", &q.Mean, math.Inf(-1)}, {"variance", &q.Variance, 0}} {
		t, ok := p.Tensor(SectionQueries, m.name)
		if !ok {
			return nil, shapef("section queries lacks the tensor %q", m.name)
		}
		v, err := t.floats(int64(p.geo.Layers), int64(p.geo.Heads), int64(p.geo.HeadDim))
		if err != nil {
			return nil, err
		}
		for i, x := range v {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) || float64(x) < m.least {
				return nil, shapef("%s of queries, value %d: %v, want a finite number, of variances from 0 up", m.name, i, x)
			}
		}
		*m.dst = v
	}
	return q, nil
}

// WithQueries returns a profile with these moments in place of its own; nil removes them.
//
// Errors: quant.ErrShape.
func (p *Profile) WithQueries(q *Queries, meta Meta) (*Profile, error) {
	if q == nil {
		return p.With(SectionQueries, nil)
	}
	l, h, d := int64(p.geo.Layers), int64(p.geo.Heads), int64(p.geo.HeadDim)
	return p.With(SectionQueries, meta, ofFloats("mean", q.Mean, l, h, d), ofFloats("variance", q.Variance, l, h, d))
}

// At returns mean and variance of a query head of dim components.
func (q *Queries) At(layer, head, heads, dim int) (mean, variance []float32) {
	i := (layer*heads + head) * dim
	return q.Mean[i : i+dim], q.Variance[i : i+dim]
}
