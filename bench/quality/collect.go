// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// collector is an observer that keeps K, V and the queries of every layer.
type collector struct {
	geo    quant.Geometry
	n      int // number of tokens that fit
	layers []methods.Layer
}

func newCollector(g quant.Geometry, tokens int) *collector {
	c := &collector{geo: g, n: tokens, layers: make([]methods.Layer, g.Layers)}
	for l := range c.layers {
		c.layers[l] = methods.Layer{
			K: make([]float32, g.KVHeads*tokens*g.HeadDim),
			V: make([]float32, g.KVHeads*tokens*g.HeadDimV),
			Q: make([]float32, g.Heads*tokens*g.HeadDim),
		}
	}
	return c
}

// observe is the model.Observer. It ignores tokens beyond n.
func (c *collector) observe(layer, pos, n int, q, k, v []float32) error {
	if layer < 0 || layer >= len(c.layers) {
		return shapef("collect context", "layer %d of %d", layer, len(c.layers))
	}
	g, l := c.geo, &c.layers[layer]
	c.scatter(l.Q, q, pos, n, g.Heads, g.HeadDim)
	c.scatter(l.K, k, pos, n, g.KVHeads, g.HeadDim)
	c.scatter(l.V, v, pos, n, g.KVHeads, g.HeadDimV)
	return nil
}

// scatter writes src [n, heads, dim] to positions pos.. of dst [heads, tokens, dim].
func (c *collector) scatter(dst, src []float32, pos, n, heads, dim int) {
	for t := 0; t < n && pos+t < c.n; t++ {
		for h := range heads {
			copy(dst[(h*c.n+pos+t)*dim:], src[(t*heads+h)*dim:(t*heads+h+1)*dim])
		}
	}
}

// context returns the tokens [0, n) as a method sees them. It shares memory if n is all tokens.
func (c *collector) context(tokens []int32, n int) *methods.Context {
	ctx := &methods.Context{Geometry: c.geo, Tokens: tokens[:n:n], Layers: c.layers}
	if n == c.n {
		return ctx
	}
	g := c.geo
	ctx.Layers = make([]methods.Layer, len(c.layers))
	for l, x := range c.layers {
		ctx.Layers[l] = methods.Layer{K: c.cut(x.K, g.KVHeads, g.HeadDim, 0, n),
			V: c.cut(x.V, g.KVHeads, g.HeadDimV, 0, n), Q: c.cut(x.Q, g.Heads, g.HeadDim, 0, n)}
	}
	return ctx
}

// cut copies the tokens [from, to) of x [heads, tokens, dim].
func (c *collector) cut(x []float32, heads, dim, from, to int) []float32 {
	out := make([]float32, 0, heads*(to-from)*dim)
	for h := range heads {
		out = append(out, x[(h*c.n+from)*dim:(h*c.n+to)*dim]...)
	}
	return out
}

// compressChecked calls a method and checks its result. fill checks the lengths of rows.
func compressChecked(ctx context.Context, method methods.Method, c *methods.Context) (*methods.Cache, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	left, err := method.Compress(ctx, c)
	switch {
	case err != nil:
		return nil, err
	case left == nil:
		return nil, shapef("compress", "no cache")
	case len(left.Layers) != c.Geometry.Layers:
		return nil, shapef("compress", "%d layers, want %d", len(left.Layers), c.Geometry.Layers)
	case left.Bytes < 0:
		return nil, shapef("compress", "%d bytes", left.Bytes)
	}
	return left, nil
}

// fill appends the rows of a method's cache of n tokens to every layer of an empty cache.
func fill(kv *model.ExactKV, c *methods.Cache, n int) error {
	for l, x := range c.Layers {
		rows := model.ContextRows{K: x.K, V: x.V, Bias: x.Bias, Keep: x.Keep}
		if err := kv.AppendRows(l, n, rows); err != nil {
			return fmt.Errorf("kvist/quality: fill cache: %w", err)
		}
	}
	return nil
}
