// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"
	"math"
	"reflect"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// part is some layers of a model that attend alike, and the first token of a context that a query of
// theirs after it sees. Rows before it cost nothing and are kept by nobody.
type part struct {
	layers []int
	from   int
	rope   quant.Rope
}

// firstSeen returns the first position that a query at position at sees.
func firstSeen(a model.LayerAttention, at int) int {
	if a.Window > 0 {
		return max(0, at-a.Window+1)
	}
	return 0
}

// partsOf groups the layers by RoPE and by what queries from position at on see of n tokens. err is
// quant.ErrUnsupported for a model whose attention the methods of parts cannot be told of.
func partsOf(m *model.Model, n, at int) (parts []part, err error) {
	dim := m.Geometry().HeadDim
	for l, a := range m.Attention() {
		if err == nil && (a.Softcap != 0 || float32(a.Scale) != float32(1/math.Sqrt(float64(dim)))) {
			err = fmt.Errorf("kvist/quality: layer %d has scale %v and soft cap %v; the method measures "+
				"attention with scale 1/sqrt(head_dim) and without a cap: %w", l, a.Scale, a.Softcap,
				quant.ErrUnsupported)
		}
		from, found := min(n, firstSeen(a, at)), false
		for i := range parts {
			if p := &parts[i]; p.from == from && reflect.DeepEqual(p.rope, a.Rope) {
				p.layers, found = append(p.layers, l), true
			}
		}
		if !found {
			parts = append(parts, part{layers: []int{l}, from: from, rope: a.Rope})
		}
	}
	return parts, err
}

// seen returns the number of values of K and V in the rows [from, n) that a query at position at sees.
func seen(m *model.Model, from, n, at int) int64 {
	g, rows := m.Geometry(), int64(0)
	for _, a := range m.Attention() {
		rows += int64(max(0, n-max(from, firstSeen(a, at))))
	}
	return rows * int64(g.KVHeads) * int64(g.HeadDim+g.HeadDimV)
}

// layered is a context as methods compress it: whole where all layers attend alike, and for a
// methods.PerLayer; for others a context for each part. A part's tokens are those that later queries see, so
// no method stores or weighs others.
type layered struct {
	whole    *methods.Context
	perLayer *methods.Context // whole, with how each layer attends
	parts    []part
	split    []*methods.Context // nil: whole
	refused  error              // that methods of parts cannot compress it
}

// newLayered prepares a context before a query at position at.
//
// Errors: those of model.Config.CacheGeometry.
func newLayered(m *model.Model, c *methods.Context, at int) (*layered, error) {
	x := &layered{whole: c}
	x.parts, x.refused = partsOf(m, len(c.Tokens), at)
	if len(x.parts) == 1 && x.parts[0].from == 0 && x.refused == nil {
		return x, nil
	}
	for _, p := range x.parts {
		x.split = append(x.split, p.context(c))
	}
	g, err := m.CacheGeometry()
	if err != nil {
		return nil, err
	}
	// A query that is some tokens behind the context sees as many fewer of it.
	g = g.Clone()
	for l := range g.PerLayer {
		if w := &g.PerLayer[l].Window; *w > 0 {
			*w = max(1, *w-int64(at-len(c.Tokens)))
		}
	}
	per := *c
	per.Geometry = g
	x.perLayer = &per
	return x, nil
}

// context returns the layers and tokens of a part as a context of its own.
func (p *part) context(c *methods.Context) *methods.Context {
	n, g := len(c.Tokens), c.Geometry
	g.Layers, g.Rope = len(p.layers), p.rope
	out := &methods.Context{Geometry: g, Tokens: c.Tokens[p.from:]}
	if c.Surprisal != nil {
		out.Surprisal = c.Surprisal[p.from:]
	}
	cut := func(x []float32, heads, dim int) []float32 {
		var y []float32
		for h := range heads {
			y = append(y, x[(h*n+p.from)*dim:(h+1)*n*dim]...)
		}
		return y
	}
	for _, l := range p.layers {
		x := c.Layers[l]
		out.Layers = append(out.Layers, methods.Layer{K: cut(x.K, g.KVHeads, g.HeadDim),
			V: cut(x.V, g.KVHeads, g.HeadDimV), Q: cut(x.Q, g.Heads, g.HeadDim)})
	}
	return out
}

// compress returns the cache of the whole context, in which rows that nobody sees are not kept. Where a method
// compressed parts, its bytes are those of all parts.
//
// Errors: quant.ErrUnsupported for a model whose attention the method cannot be told of; those of the method.
func (x *layered) compress(ctx context.Context, method methods.Method) (*methods.Cache, error) {
	if x.split == nil {
		return compressChecked(ctx, method, x.whole)
	}
	if _, ok := method.(methods.PerLayer); ok {
		c := *x.perLayer
		c.Memo = x.whole.Memo // callers set it late
		return compressChecked(ctx, method, &c)
	}
	if x.refused != nil {
		return nil, x.refused
	}
	n, g := len(x.whole.Tokens), x.whole.Geometry
	out := &methods.Cache{Layers: make([]methods.CacheLayer, len(x.whole.Layers))}
	for i := range x.parts {
		p, c := &x.parts[i], x.split[i]
		left := &methods.Cache{Layers: make([]methods.CacheLayer, len(p.layers))}
		if len(c.Tokens) > 0 {
			if x.whole.Memo != nil && c.Memo == nil {
				c.Memo = &kvfile.Memo{}
			}
			var err error
			if left, err = compressChecked(ctx, method, c); err != nil {
				return nil, err
			}
		}
		out.Bytes += left.Bytes
		for j, l := range p.layers {
			var err error
			if out.Layers[l], err = p.widen(left.Layers[j], g, n); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// widen returns a layer of all n tokens of which a method compressed those from p.from on.
func (p *part) widen(x methods.CacheLayer, g quant.Geometry, n int) (methods.CacheLayer, error) {
	rows := g.KVHeads * (n - p.from)
	if len(x.K) != rows*g.HeadDim || len(x.V) != rows*g.HeadDimV ||
		x.Keep != nil && len(x.Keep) != rows || x.Bias != nil && len(x.Bias) != rows {
		return x, shapef("compress", "%d values of K, %d of V, %d marks and %d biases, want %d rows",
			len(x.K), len(x.V), len(x.Keep), len(x.Bias), rows)
	}
	out := methods.CacheLayer{K: make([]float32, g.KVHeads*n*g.HeadDim),
		V: make([]float32, g.KVHeads*n*g.HeadDimV), Keep: make([]bool, g.KVHeads*n)}
	if x.Bias != nil {
		out.Bias = make([]float32, g.KVHeads*n)
	}
	m := n - p.from
	for h := range g.KVHeads {
		to := h*n + p.from
		copy(out.K[to*g.HeadDim:], x.K[h*m*g.HeadDim:(h+1)*m*g.HeadDim])
		copy(out.V[to*g.HeadDimV:], x.V[h*m*g.HeadDimV:(h+1)*m*g.HeadDimV])
		for i := range m {
			out.Keep[to+i] = x.Keep == nil || x.Keep[h*m+i]
		}
		if x.Bias != nil {
			copy(out.Bias[to:], x.Bias[h*m:(h+1)*m])
		}
	}
	return out, nil
}
