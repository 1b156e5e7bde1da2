// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// Context is what a method compresses. It holds nothing of the tokens after the context.
type Context struct {
	Geometry quant.Geometry
	Tokens   []int32
	Layers   []Layer // every layer of the model
	// Surprisal is -log p of each token, nats, [tokens]; nil if not computed.
	Surprisal []float32
	// Memo, if set, keeps what kvist measures of this context for its next call.
	Memo *kvfile.Memo
}

// Layer is one layer of a context.
type Layer struct {
	K, V []float32 // [kv_heads, tokens, head_dim], K with RoPE
	Q    []float32 // [heads, tokens, head_dim], RoPE applied
}

// Cache is a compressed context, decoded as attention sees it.
type Cache struct {
	Layers []CacheLayer
	Bytes  int64 // all stored bytes: codes, scales, indices, exact windows, headers
}

// CacheLayer is one layer of a [Cache].
type CacheLayer struct {
	K, V []float32 // [kv_heads, tokens, head_dim] decoded; rows that are not kept are ignored
	Keep []bool    // [kv_heads, tokens], nil: all
	Bias []float32 // [kv_heads, tokens] added to scores (log count of merged rows, row bias), nil: 0
}

// Method compresses contexts: a published method, a plain format, or kvist.
//
// Compress must not change the context. It may run layers in parallel, and must return the same
// cache, bit for bit, each time.
type Method interface {
	Name() string   // "kivi4", "snapkv:25%"; ByName reads it
	Source() string // paper or project, and how the method deviates from it
	Compress(ctx context.Context, c *Context) (*Cache, error)
}

// PerLayer is a Method that reads Geometry.PerLayer: it compresses layers with windows, RoPE, scales and
// soft caps of their own as one context, with one budget for the values that a query after the context
// sees. Rows that none sees are not kept.
type PerLayer interface {
	Method
	PerLayer()
}

// SeenShare returns the share of the values of K and V that a query after the context sees.
func (c *Context) SeenShare() float64 {
	g := c.Geometry
	s := shapeOf{tokens: len(c.Layers[0].K) / (g.KVHeads * g.HeadDim), kvHeads: g.KVHeads, dimK: g.HeadDim,
		dimV: g.HeadDimV}
	return float64(c.seenValues(s)) / float64(s.values(len(c.Layers)))
}

// seenValues returns the number of values of K and V that a query after the context sees.
func (c *Context) seenValues(s shapeOf) int64 {
	var rows int64
	for l := range c.Layers {
		rows += int64(s.tokens) - c.Geometry.Outside(l, int64(s.tokens))
	}
	return rows * int64(s.kvHeads) * int64(s.dimK+s.dimV)
}
