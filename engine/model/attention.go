// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"math"
	"reflect"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// LayerAttention is how one layer attends: everything beside q, K and V that its output depends on.
// A query at position p gives the row at position t the score
//
//	s = Scale * q.k
//	s = Softcap * tanh(s / Softcap)   where Softcap > 0
//
// and sees the rows with t <= p and, where Window > 0, p - t < Window.
type LayerAttention struct {
	Heads, KVHeads int        // query heads, and KV heads that they share
	Rope           quant.Rope // what q and K contain; Layout RopeNone: the layer knows no positions
	RopeScale      float64    // factor of the rotated components of q and K, which include it; 1: none
	Window         int        // positions that a query sees, its own included; 0: all up to its own
	Scale          float64    // usually 1/sqrt(head_dim)
	Softcap        float64    // 0: none
}

// plain is the attention of every layer of a cache of which no more is known.
func plain(g quant.Geometry) LayerAttention {
	return LayerAttention{Heads: g.Heads, KVHeads: g.KVHeads, Rope: g.Rope, RopeScale: 1,
		Scale: 1 / math.Sqrt(float64(g.HeadDim))}
}

// first returns the first position that a query at pos sees.
func (a *LayerAttention) first(pos int) int {
	if a.Window <= 0 {
		return 0
	}
	return max(0, pos-a.Window+1)
}

// softcapped replaces scores s by softcap * tanh(s/softcap).
func softcapped(s []float32, softcap float32) {
	inv := 2 / softcap
	for i, v := range s {
		// tanh(x) = 1 - 2/(e^2x + 1); exp32 saturates, so large scores are +-softcap.
		s[i] = softcap - 2*softcap/(exp32(v*inv)+1)
	}
}

// Attention returns how each layer attends, [layers]. It is where a capture, a cache or an evaluation
// takes RoPE, window, scale and soft cap from. The slices within are the model's: do not write to them.
func (c Config) Attention() []LayerAttention { return slices.Clone(c.layerAttention) }

// Uniform reports whether quant.Geometry says all there is about the attention: every layer has the
// same RoPE, no window, no soft cap, and scale 1/sqrt(head_dim). If not, what names the first layer
// and what is special about it.
func (c Config) Uniform() (what string, ok bool) {
	want := plain(c.geometry())
	want.Rope = c.layerAttention[0].Rope
	for l, a := range c.layerAttention {
		if what := a.differs(want); what != "" {
			return fmt.Sprintf("layer %d has %s", l, what), false
		}
	}
	return "", true
}

// CacheGeometry returns Geometry with what each layer's attention is, as captures and files state it.
//
// Errors: quant.ErrUnsupported for layers that differ in heads, and for what quant.Geometry refuses.
func (c Config) CacheGeometry() (quant.Geometry, error) {
	g := c.geometry()
	usual := float32(plain(g).Scale)
	for l, a := range c.layerAttention {
		if a.Heads != g.Heads || a.KVHeads != g.KVHeads {
			return g, fmt.Errorf("kvist/model: layer %d has %d heads and %d kv_heads, the model %d and %d: %w",
				l, a.Heads, a.KVHeads, g.Heads, g.KVHeads, quant.ErrUnsupported)
		}
		layer := quant.LayerAttention{Rope: a.Rope, Window: int64(a.Window), Softcap: a.Softcap}
		if float32(a.Scale) != usual {
			layer.Scale = a.Scale
		}
		g.PerLayer = append(g.PerLayer, layer)
	}
	g = g.Canonical()
	if err := g.Validate(); err != nil {
		return g, fmt.Errorf("kvist/model: %w", err)
	}
	return g, nil
}

// Interleaved reports whether the file's K and q come in pairs of neighbours that RoPE turns together, as programs
// keep K that run the file as it is. This package puts them into halves when it loads a model.
func (c Config) Interleaved() bool { return c.arch.interleaved }

// differs names the first property in which a is not want. RopeScale is left out: q and K include it.
func (a LayerAttention) differs(want LayerAttention) string {
	switch {
	case a.Heads != want.Heads || a.KVHeads != want.KVHeads:
		return fmt.Sprintf("%d heads and %d kv_heads, others have %d and %d", a.Heads, a.KVHeads,
			want.Heads, want.KVHeads)
	case a.Window != want.Window:
		return fmt.Sprintf("a window of %d positions", a.Window)
	case a.Softcap != want.Softcap:
		return fmt.Sprintf("scores with a soft cap of %v", a.Softcap)
	case float32(a.Scale) != float32(want.Scale):
		return fmt.Sprintf("attention scale %v, want 1/sqrt(head_dim) = %v", float32(a.Scale),
			float32(want.Scale))
	case a.Rope.Layout == quant.RopeNone && want.Rope.Layout != quant.RopeNone:
		return "no RoPE"
	case !reflect.DeepEqual(a.Rope, want.Rope):
		return "a RoPE of its own"
	}
	return ""
}
