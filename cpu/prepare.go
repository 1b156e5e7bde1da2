// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// layouts is the number of layouts that a query may have.
const layouts = int(attend.Quads) + 1

// variant is a unit's queries as some of its blocks meet them: turned by their offset, then through
// their metric. It says in which forms they are needed.
type variant struct {
	angles  *angles // nil: no offset
	metric  *frame.Metric
	unit    int
	at      int // index of its first head in the arrays of prepared
	vecs    [2][layouts]bool
	cut     bool
	centred bool // some block has a mean of K
}

// prepared is a batch of queries with everything that is computed once per call. It is reused; its
// slices grow as needed. Its arrays hold the heads of all variants, one after the other.
type prepared struct {
	*backend.Queries
	kern       *attend.Kernels
	codec      *codec.Kernels
	padK, padV int     // values per row of a tile
	seeds      []seeds // per query
	units      []unit
	variants   []variant
	energy     []float32             // [heads]: |q|^2, in the metric
	vecs       [2][layouts][]float32 // [heads, padK], in each basis
	cut        []byte                // [heads], in digits, for K sides that are unpacked to bytes
	plain      []float32             // [heads, padK]: turned and not in the metric, for means of K
	hasCut     bool                  // whether some variant has the form
	rots       []namedRotation
	ropeLayout quant.RopeLayout
}

type rotKey struct {
	seed uint64
	dim  int
}

type namedRotation struct {
	rotKey
	r *codec.Rotation
}

// index returns 1 for true and 0 for false.
func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// plainLayout is the layout of a mean of K.
func (p *prepared) plainLayout() attend.Layout { return p.kern.LayoutK(quant.F32) }

// cutBytes is the size of a query in digits.
func (p *prepared) cutBytes() int { return attend.QueryBytes(p.HeadDim) }

// begin starts a call on a checked batch; c.seeds is set.
func (c *call) begin(ctx context.Context, q *backend.Queries, v *view) {
	b, p := c.b, &c.prepared
	c.ctx, c.view = ctx, v
	p.Queries, p.kern, p.codec = q, b.kern, b.codec
	p.padK, p.padV = b.kern.PadDim(q.HeadDim), b.kern.PadDim(q.HeadDimV)
	if r := v.Shape().Rope; r != nil {
		p.ropeLayout = r.Layout
	}
}

// prepare finds the variants of the units, then turns, rotates and arranges the queries of each.
func (c *call) prepare(op backend.Op) error {
	p := &c.prepared
	p.rots = p.rots[:0]
	for i := range p.seeds {
		if err := p.addRotations(c.b, p.seeds[i]); err != nil {
			return err
		}
	}
	p.variants, p.hasCut = p.variants[:0], false
	heads, centred := 0, false
	var has [2][layouts]bool
	for i := range p.units {
		c.addVariants(i)
		u := &p.units[i]
		for j := u.v0; j < u.v1; j++ {
			v := &p.variants[j]
			v.at = heads
			heads += len(u.qs) * p.Group
			p.hasCut = p.hasCut || v.cut
			centred = centred || v.centred
			for r := range has {
				for l := range has[r] {
					has[r][l] = has[r][l] || v.vecs[r][l]
				}
			}
		}
	}
	p.energy = grow(p.energy, heads)
	if p.hasCut {
		p.cut = grow(p.cut, heads*p.cutBytes())
	}
	if centred {
		p.plain = grow(p.plain, heads*p.padK)
	}
	for r := range has {
		for l := range has[r] {
			if has[r][l] {
				p.vecs[r][l] = grow(p.vecs[r][l], heads*p.padK)
			}
		}
	}
	return c.b.workers.run(c.ctx, op, len(p.variants), c.doPrepare)
}

// addVariants appends the variants of unit i, and finds out whether it keeps masses.
func (c *call) addVariants(i int) {
	p := &c.prepared
	u := &p.units[i]
	u.v0 = len(p.variants)
	var v *variant
	var last, group uint32
	for _, b := range u.list {
		e := c.view.At(int(b))
		if e.Form == last && e.Group == group {
			continue
		}
		last, group = e.Form, e.Group
		f := c.view.Form(e.Form)
		if v == nil || !v.meets(f) {
			v = p.variantOf(u.v0, len(p.variants), f)
			if v == nil {
				p.variants = append(p.variants, variant{angles: f.Own.angles, metric: f.Key.Metric, unit: i})
				v = &p.variants[len(p.variants)-1]
			}
		}
		if k := &f.Own.k; k.cut {
			v.cut = true
		} else {
			v.vecs[k.rotated][k.layout] = true
		}
		g := &c.view.Group(e.Group).Key
		v.centred = v.centred || g.MeanK.Slab != 0
		u.means = u.means || g.MeanV.Slab != 0
	}
	u.v1 = len(p.variants)
	u.tallies = index(u.means) + index(c.to.Mass != nil)
}

// meets reports whether blocks of a form are met in this variant.
func (v *variant) meets(f *form) bool { return v.angles == f.Own.angles && v.metric == f.Key.Metric }

// variantOf returns the variant of a form among variants [from, to), or nil.
func (p *prepared) variantOf(from, to int, f *form) *variant {
	for i := from; i < to; i++ {
		if v := &p.variants[i]; v.meets(f) {
			return v
		}
	}
	return nil
}

// prepareOne prepares the queries of variant i.
func (c *call) prepareOne(i int) error {
	s := c.b.scratch.Get().(*scratch)
	s.one, s.two = grow(s.one, c.HeadDim), grow(s.two, c.HeadDim)
	p := &c.prepared
	v := &p.variants[i]
	at := v.at
	for _, q := range p.units[v.unit].qs {
		for h := range p.Group {
			p.arrange(v, at, p.Q[(int(q)*p.Group+h)*p.HeadDim:][:p.HeadDim], p.rotK(int(q)), s.one, s.two)
			at++
		}
	}
	c.b.scratch.Put(s)
	return nil
}

// arrange prepares one head of a variant at index h of the arrays. x and y are [head_dim].
func (p *prepared) arrange(v *variant, h int, src []float32, rot *codec.Rotation, x, y []float32) {
	if v.angles != nil {
		copy(x, src)
		turn(x, p.ropeLayout, v.angles)
		src = x
	}
	if v.centred {
		attend.Arrange(p.plain[h*p.padK:(h+1)*p.padK], src, p.plainLayout())
	}
	if v.metric != nil {
		v.metric.Query(y, src)
		src = y
	}
	p.energy[h] = energyOf(src)
	for rotated, forms := range v.vecs {
		if rotated == 1 {
			if rot == nil || !v.cut && forms == [layouts]bool{} {
				break
			}
			copy(x, src)
			p.codec.Forward(rot, x, 1, p.HeadDim)
			src = x
			if v.cut {
				p.kern.CutQuery(p.cut[h*p.cutBytes():], src)
			}
		}
		for l, has := range forms {
			if has {
				attend.Arrange(p.vecs[rotated][l][h*p.padK:(h+1)*p.padK], src, attend.Layout(l))
			}
		}
	}
}

// energyOf returns |q|^2.
func energyOf(q []float32) float32 {
	var e [4]float64 // one sum would wait for itself
	for ; len(q) >= 4; q = q[4:] {
		for i, x := range q[:4] {
			e[i] += float64(float64(x) * float64(x))
		}
	}
	for _, x := range q {
		e[0] += float64(float64(x) * float64(x))
	}
	return float32((e[0] + e[1]) + (e[2] + e[3]))
}

func (p *prepared) addRotations(b *Backend, s seeds) error {
	add := func(has bool, seed uint64, dim int) error {
		key := rotKey{seed, dim}
		if !has || p.find(key) != nil {
			return nil
		}
		r, err := b.rotation(dim, seed)
		p.rots = append(p.rots, namedRotation{key, r})
		return err
	}
	if err := add(s.HasK, s.K, p.HeadDim); err != nil {
		return err
	}
	return add(s.HasV, s.V, p.HeadDimV)
}

func (p *prepared) find(key rotKey) *codec.Rotation {
	for i := range p.rots {
		if p.rots[i].rotKey == key {
			return p.rots[i].r
		}
	}
	return nil
}

// rotK returns the rotation of query i's K sides, or nil if none is rotated.
func (p *prepared) rotK(i int) *codec.Rotation {
	if s := p.seeds[i]; s.HasK {
		return p.find(rotKey{s.K, p.HeadDim})
	}
	return nil
}

// rotV returns the rotation of query i's V sides, or nil if none is rotated.
func (p *prepared) rotV(i int) *codec.Rotation {
	if s := p.seeds[i]; s.HasV {
		return p.find(rotKey{s.V, p.HeadDimV})
	}
	return nil
}

// turn rotates q by an offset: each component pair (x, y) by the angle of the pair.
func turn(q []float32, layout quant.RopeLayout, by *angles) {
	half := len(by.sin)
	sin, cos := by.sin[:half], by.cos[:half]
	if layout == quant.RopeInterleaved {
		for i, s := range sin {
			p := q[2*i : 2*i+2]
			x, y, c := p[0], p[1], cos[i]
			p[0], p[1] = x*c-y*s, x*s+y*c
		}
		return
	}
	a, b := q[:half], q[half:2*half]
	for i, s := range sin {
		x, y, c := a[i], b[i], cos[i]
		a[i], b[i] = x*c-y*s, x*s+y*c
	}
}
