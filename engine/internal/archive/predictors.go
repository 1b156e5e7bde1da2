// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"slices"
)

const (
	predictorsVersion = 1
	mostScale         = 1 << 100
)

// AppendPredictors appends the predictors, little-endian: u8 1, u8 sides, u16 heads, u32 layers, then for each layer
// u32 number and for each lane u8: 0, or 1 and u32 dim, u32 context, i16 deviations, f32 scales, i8 weights.
func (s *Set) AppendPredictors(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, predictorsVersion, byte(s.Sides))
	dst = le.AppendUint16(dst, uint16(s.Heads))
	dst = le.AppendUint32(dst, uint32(len(s.Layers)))
	for i, n := range s.Layers {
		dst = le.AppendUint32(dst, uint32(n))
		for _, p := range s.Predictors[i] {
			if p == nil {
				dst = append(dst, 0)
				continue
			}
			dst = le.AppendUint32(le.AppendUint32(append(dst, 1), uint32(p.Dim)), uint32(p.Context))
			for _, v := range p.Std8 {
				dst = le.AppendUint16(dst, uint16(v))
			}
			for _, v := range p.Scale {
				dst = le.AppendUint32(dst, math.Float32bits(v))
			}
			for _, v := range p.Weights {
				dst = append(dst, byte(v))
			}
		}
	}
	return dst
}

// WithPredictors returns the set with the predictors that AppendPredictors wrote of a set of these transforms. It
// allocates no more than a small multiple of their length.
//
// Errors: *CorruptError; quant.ErrVersion; quant.ErrShape for predictors of other transforms.
func (s *Set) WithPredictors(b []byte) (*Set, error) {
	r := &setReader{b: b}
	if v := r.uint(1); r.err == nil && v != predictorsVersion {
		return nil, versionf("predictors", v, predictorsVersion)
	}
	sides, heads, layers := int(r.uint(1)), int(r.uint(2)), int(r.uint(4))
	if r.err == nil && (sides != s.Sides || heads != s.Heads || layers != len(s.Layers)) {
		return nil, shapef("predictors of %d sides, %d heads and %d layers, the transforms are of %d, %d and %d", sides,
			heads, layers, s.Sides, s.Heads, len(s.Layers))
	}
	var all [][]*Predictor
	for i, n := range s.Layers {
		if number := r.uint(4); r.err == nil && number != uint64(n) {
			r.fail("layer %d in the place of layer %d", number, n)
		}
		ps := make([]*Predictor, len(s.Transforms[i]))
		for lane := range ps {
			ps[lane] = r.predictor(s.Transforms[i], lane, s.Sides)
		}
		if r.err != nil {
			return nil, r.err
		}
		all = append(all, ps)
	}
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return s.WithThese(all), r.err
}

// WithThese returns the set with predictors, [layers][heads*sides].
func (s *Set) WithThese(predictors [][]*Predictor) *Set {
	return &Set{Tables: s.Tables, Heads: s.Heads, Sides: s.Sides, Layers: s.Layers, Transforms: s.Transforms, plain: s,
		Predictors: predictors}
}

// ContextOf returns the components of the lanes that are coded before a lane of a layer with these transforms.
func ContextOf(ts []*Transform, lane, sides int) (n int) {
	order := Lanes(len(ts)/sides, sides)
	for _, i := range order[:slices.Index(order, lane)] {
		n += ts[i].Dim
	}
	return n
}

func (r *setReader) predictor(ts []*Transform, lane, sides int) *Predictor {
	switch kind := r.uint(1); {
	case r.err != nil || kind == 0:
		return nil
	case kind != 1:
		r.fail("a predictor of kind %d", kind)
		return nil
	}
	p := &Predictor{Dim: int(r.uint(4)), Context: int(r.uint(4))}
	if want := ContextOf(ts, lane, sides); r.err == nil && (p.Dim != ts[lane].Dim || p.Context != want || want == 0) {
		r.fail("a predictor of %d components by %d, the transforms have %d and %d", p.Dim, p.Context, ts[lane].Dim, want)
	}
	std8, scale := r.take(2*p.Dim), r.take(4*p.Context)
	weights := r.take(p.Context * p.Dim)
	if r.err != nil {
		return nil
	}
	p.Std8, p.Scale = make([]int16, p.Dim), make([]float32, p.Context)
	for i := range p.Std8 {
		p.Std8[i] = int16(binary.LittleEndian.Uint16(std8[2*i:]))
		if p.Std8[i] < minStd8 || p.Std8[i] > maxStd8 {
			r.fail("component %d: deviation %d", i, p.Std8[i])
		}
	}
	for i := range p.Scale {
		p.Scale[i] = math.Float32frombits(binary.LittleEndian.Uint32(scale[4*i:]))
		if s := float64(p.Scale[i]); !(s >= 0 && s <= mostScale) { // products with weights stay finite
			r.fail("scale %d is %v, want 0 to 2^100", i, s)
		}
	}
	p.Weights = make([]int8, len(weights))
	for i, v := range weights {
		p.Weights[i] = int8(v)
	}
	return p
}
