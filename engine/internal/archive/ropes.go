// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Ropes are the turns of K in each layer of a model. The zero value turns nothing.
type Ropes struct {
	kinds []Rope   // distinct, in the order of their first layers; none: a layer turns nothing
	of    []uint16 // kind of each layer of the model; nil: all have kinds[0]
}

// all returns the kinds, at least one.
func (r *Ropes) all() []Rope {
	if len(r.kinds) == 0 {
		return []Rope{{}}
	}
	return r.kinds
}

// NewRopes returns the turns of a geometry's layers.
func NewRopes(g quant.Geometry) Ropes {
	if g.PerLayer == nil {
		return Ropes{kinds: []Rope{NewRope(g.Rope)}}
	}
	var r Ropes
	attention, of := g.Kinds()
	kind := make([]uint16, len(attention)) // layers may differ in other things
	for i, a := range attention {
		x := NewRope(a.Rope)
		at := slices.IndexFunc(r.kinds, x.equal)
		if at < 0 {
			at = len(r.kinds)
			r.kinds = append(r.kinds, x)
		}
		kind[i] = uint16(at)
	}
	if len(r.kinds) == 1 {
		return r
	}
	for _, i := range of {
		r.of = append(r.of, kind[i])
	}
	return r
}

func (r Rope) equal(o Rope) bool { return r.Layout == o.Layout && slices.Equal(r.Freqs, o.Freqs) }

// Of returns the turns of a layer, by the model's number.
func (r *Ropes) Of(layer int) Rope {
	i, _ := r.kind(layer)
	return r.all()[i]
}

// LayerTurns are the Turns of each layer of a model. Layers that share a rope share them.
type LayerTurns struct {
	ropes *Ropes
	kinds []*Turns
}

// Turns returns the turns of all layers.
func (r *Ropes) Turns() *LayerTurns {
	t := &LayerTurns{ropes: r}
	for _, k := range r.all() {
		t.kinds = append(t.kinds, &Turns{rope: k, most: maxTurns / len(r.all())})
	}
	return t
}

// Of returns the turns of a layer, by the model's number.
func (t *LayerTurns) Of(layer int) *Turns {
	i, _ := t.ropes.kind(layer)
	return t.kinds[i]
}

// kind returns the kind of a layer; false where the model has no such layer.
func (r *Ropes) kind(layer int) (int, bool) {
	switch {
	case r.of == nil:
		return 0, true
	case layer < 0 || layer >= len(r.of):
		return 0, false
	}
	return int(r.of[layer]), true
}

// Match reports whether the ropes are of the layers, the layouts and the rotary dims of a geometry.
func (r *Ropes) Match(g quant.Geometry) bool {
	if r.of != nil && len(r.of) != g.Layers {
		return false
	}
	for l := range g.Layers {
		rope, have := g.RopeOf(l), r.Of(l)
		n := 0
		if rope.Layout != quant.RopeNone {
			n = rope.RotaryDim / 2
		}
		if have.Layout != rope.Layout || len(have.Freqs) != n {
			return false
		}
	}
	return true
}

// check reports whether the turns are those of as many layers, and of rows of dim values.
func (r *Ropes) check(layer, dim int) error {
	i, ok := r.kind(layer)
	if !ok {
		return corrupt("parameters", -1, -1, 0, "no rope of layer %d", layer)
	}
	if k := &r.all()[i]; len(k.Freqs) > dim/2 || k.Layout == quant.RopeNone && len(k.Freqs) > 0 {
		return corrupt("parameters", -1, -1, 0, "%d frequencies of layout %s for rows of %d values",
			len(k.Freqs), k.Layout, dim)
	}
	return nil
}

// append appends what stands for the rope after the steps of classes: u32 n, f64[n] frequencies where all
// layers share one, whose layout the head has; else u16 kinds, and for each u8 layout, u8[3] 0, u32 n,
// f64[n]; then u32 layers, u16[layers] kinds.
func (r *Ropes) append(dst []byte) []byte {
	le := binary.LittleEndian
	freqs := func(f []float64) {
		dst = le.AppendUint32(dst, uint32(len(f)))
		for _, v := range f {
			dst = le.AppendUint64(dst, math.Float64bits(v))
		}
	}
	if r.of == nil {
		freqs(r.all()[0].Freqs)
		return dst
	}
	dst = le.AppendUint16(dst, uint16(len(r.kinds)))
	for _, k := range r.kinds {
		dst = append(dst, byte(k.Layout), 0, 0, 0)
		freqs(k.Freqs)
	}
	dst = le.AppendUint32(dst, uint32(len(r.of)))
	for _, k := range r.of {
		dst = le.AppendUint16(dst, k)
	}
	return dst
}

// parse reads what append wrote of ropes that differ.
func (r *Ropes) parse(b *setReader) {
	n := int(b.uint(2))
	if b.err == nil && n < 2 {
		b.fail("%d kinds of rope, want 2 or more", n)
	}
	for i := 0; i < n && b.err == nil; i++ {
		layout, zero := b.uint(1), b.uint(3)
		if layout > 2 || zero != 0 {
			b.fail("rope layout %d", layout)
		}
		r.kinds = append(r.kinds, Rope{Layout: ropeLayout(layout), Freqs: parseFreqs(b)})
	}
	layers := int(b.uint(4))
	if b.err == nil && (layers < 1 || layers > quant.MaxLayers) {
		b.fail("ropes of %d layers, want 1 to %d", layers, quant.MaxLayers)
	}
	for i := 0; i < layers && b.err == nil; i++ {
		k := b.uint(2)
		if b.err == nil && int(k) >= n {
			b.fail("layer %d has rope %d of %d", i, k, n)
		}
		r.of = append(r.of, uint16(k))
	}
}

func parseFreqs(b *setReader) (freqs []float64) {
	n := int(b.uint(4))
	if b.err == nil && n > len(b.b)/8 {
		b.fail("%d frequencies", n)
	}
	for i := 0; i < n && b.err == nil; i++ {
		f := math.Float64frombits(b.uint(8))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			b.fail("frequency %v", f)
		}
		freqs = append(freqs, f)
	}
	return freqs
}
