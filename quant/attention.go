// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// LayerAttention is how one layer of a model attends.
type LayerAttention struct {
	Rope Rope // that K contains in this layer; RopeNone where the layer has no position embedding
	// Window is the number of tokens that a query sees, its own included: one at position p sees
	// the positions (p-Window, p]. 0: all up to p.
	Window int64
	// Scale is the factor on q.k, float32 in every backend. 0: 1/sqrt(head_dim).
	Scale float64
	// Softcap bounds scores: score = Softcap*tanh(score/Softcap). 0: scores stay as they are.
	// Source: Gemma 2 (2024, arXiv 2408.00118), section 2.
	Softcap float64
}

// MaxFrequencies bounds Layers times the longest InvFreq of PerLayer: captures hold a row of frequencies for
// each layer, which a header tells in a few bytes.
const MaxFrequencies = 1 << 21

// Limits of LayerAttention: far beyond those of any model, and far inside float32, in which backends
// compute with scale and soft cap.
const (
	minScale, maxScale     = 1.0 / (1 << 40), 1 << 20
	minSoftcap, maxSoftcap = 1.0 / (1 << 20), 1 << 30
)

// Validate checks a against a head_dim.
//
// Errors: ErrShape; ErrUnsupported from its Rope and for a scale or a soft cap out of range.
func (a LayerAttention) Validate(headDim int) error {
	switch {
	case a.Window < 0 || a.Window > MaxTokens:
		return fmt.Errorf("kvist/quant: window of %d tokens, want 0 (all) to %d: %w", a.Window,
			int64(MaxTokens), ErrShape)
	case !(a.Scale >= 0) || math.IsInf(a.Scale, 0):
		return fmt.Errorf("kvist/quant: attention scale %v, want a positive number, or 0 for "+
			"1/sqrt(head_dim): %w", a.Scale, ErrShape)
	case !(a.Softcap >= 0) || math.IsInf(a.Softcap, 0):
		return fmt.Errorf("kvist/quant: soft cap %v, want a positive number, or 0 for none: %w",
			a.Softcap, ErrShape)
	case a.Scale > 0 && (a.Scale < minScale || a.Scale > maxScale):
		return fmt.Errorf("kvist/quant: %w: attention scale %v; 2^-40 to 2^20 is", ErrUnsupported, a.Scale)
	case a.Softcap > 0 && (a.Softcap < minSoftcap || a.Softcap > maxSoftcap):
		return fmt.Errorf("kvist/quant: %w: soft cap %v; 2^-20 to 2^30 is", ErrUnsupported, a.Softcap)
	}
	return a.Rope.Validate(headDim)
}

// Equal reports whether a and b are the same, the bits of every number included.
func (a LayerAttention) Equal(b LayerAttention) bool { return a.content() == b.content() }

// plain reports whether nothing but the rope sets a apart from the attention of Vaswani et al.
// (2017, arXiv 1706.03762).
func (a LayerAttention) plain() bool { return a.Window == 0 && a.Scale == 0 && a.Softcap == 0 }

// AttentionOf returns how a layer attends, as the geometry states it: a Scale of 0 stands for
// 1/sqrt(head_dim), which ScaleOf computes. layer is the model's number, in [0, Layers).
func (g Geometry) AttentionOf(layer int) LayerAttention {
	if g.PerLayer == nil {
		return LayerAttention{Rope: g.Rope}
	}
	return g.PerLayer[layer]
}

// RopeOf returns the rotary embedding that K of a layer contains.
func (g Geometry) RopeOf(layer int) Rope { return g.AttentionOf(layer).Rope }

// WindowOf returns the number of tokens that a query of a layer sees, its own included; 0: all.
func (g Geometry) WindowOf(layer int) int64 { return g.AttentionOf(layer).Window }

// ScaleOf returns the factor on q.k of a layer.
func (g Geometry) ScaleOf(layer int) float64 {
	if s := g.AttentionOf(layer).Scale; s > 0 {
		return s
	}
	return 1 / math.Sqrt(float64(g.HeadDim))
}

// ScoreDivisor returns head_dim / scale^2 of a layer: for q and k of unrelated directions the
// squared score is |q|^2 |k|^2 / ScoreDivisor. With the scale 1/sqrt(head_dim) it is head_dim^2, exactly.
func (g Geometry) ScoreDivisor(layer int) float64 {
	dim := float64(g.HeadDim)
	if s := g.AttentionOf(layer).Scale; s > 0 {
		return dim / (s * s)
	}
	return dim * dim
}

// SoftcapOf returns the bound on scores of a layer; 0: none.
func (g Geometry) SoftcapOf(layer int) float64 { return g.AttentionOf(layer).Softcap }

// Outside returns how many of the first tokens of a context no query behind it can see in a layer:
// those at positions up to tokens - window, counted from the first token.
func (g Geometry) Outside(layer int, tokens int64) int64 {
	w := g.WindowOf(layer)
	if w == 0 {
		return 0
	}
	return min(max(0, tokens-w+1), tokens)
}

// Windowed reports whether some layer of g has a window.
func (g Geometry) Windowed() bool {
	return slices.ContainsFunc(g.PerLayer, func(a LayerAttention) bool { return a.Window > 0 })
}

// Kinds returns the distinct entries of PerLayer in the order of their first layers, and the index
// of each layer's; one entry where all layers are alike.
func (g Geometry) Kinds() (kinds []LayerAttention, of []int) {
	of = make([]int, g.Layers)
	if g.PerLayer == nil {
		return []LayerAttention{g.AttentionOf(0)}, of
	}
	byContent := map[string]int{}
	byAddress := map[attentionKey]int{} // most layers of a kind share their frequencies
	for l, a := range g.PerLayer {
		k := a.key()
		i, ok := byAddress[k]
		if !ok {
			text := a.content()
			if i, ok = byContent[text]; !ok {
				i = len(kinds)
				kinds = append(kinds, a)
				byContent[text] = i
			}
			byAddress[k] = i
		}
		of[l] = i
	}
	return kinds, of
}

// attentionKey tells entries apart whose frequencies are not the same memory.
type attentionKey struct {
	freq                  *float32
	n, dim                int
	window                int64
	theta, scale, softcap uint64
	layout                RopeLayout
}

func (a LayerAttention) key() attentionKey {
	k := attentionKey{window: a.Window, layout: a.Rope.Layout, dim: a.Rope.RotaryDim,
		n: len(a.Rope.InvFreq), theta: math.Float64bits(a.Rope.Theta),
		scale: math.Float64bits(a.Scale), softcap: math.Float64bits(a.Softcap)}
	if k.n > 0 {
		k.freq = &a.Rope.InvFreq[0]
	}
	return k
}

// content tells entries apart that differ.
func (a LayerAttention) content() string {
	k := a.key()
	le := binary.LittleEndian
	b := append(make([]byte, 0, 64+4*k.n), byte(k.layout), b2u8(a.Rope.InvFreq != nil))
	for _, v := range []uint64{uint64(k.dim), uint64(k.window), k.theta, k.scale, k.softcap} {
		b = le.AppendUint64(b, v)
	}
	for _, f := range a.Rope.InvFreq {
		b = le.AppendUint32(b, math.Float32bits(f))
	}
	return string(b)
}

func b2u8(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Canonical returns g in the one form that files state it in: without PerLayer where all layers are
// alike and attend plainly, else with the Rope of layer 0 as its Rope; without rope's other fields where
// the layout is RopeNone. Slices are shared with g, and layers of a kind share theirs.
func (g Geometry) Canonical() Geometry {
	if g.PerLayer == nil {
		g.Rope = g.Rope.canonical()
		return g
	}
	all := make([]LayerAttention, len(g.PerLayer))
	for l, a := range g.PerLayer {
		a.Rope = a.Rope.canonical()
		all[l] = a
	}
	g.PerLayer = all
	kinds, of := g.Kinds()
	for l := range all {
		all[l] = kinds[of[l]]
	}
	if g.Rope = (Rope{}); len(kinds) > 0 {
		g.Rope = kinds[0].Rope
	}
	if len(kinds) == 1 && kinds[0].plain() {
		g.PerLayer = nil
	}
	return g
}

func (r Rope) canonical() Rope {
	if r.Layout == RopeNone {
		return Rope{}
	}
	return r
}

// Clone returns a copy that shares no memory with g. Layers that share their frequencies in g share
// them in the copy.
func (g Geometry) Clone() Geometry {
	copies := map[*float32][]float32{}
	clone := func(f []float32) []float32 {
		if len(f) == 0 {
			return slices.Clone(f)
		}
		if _, ok := copies[&f[0]]; !ok || len(copies[&f[0]]) != len(f) {
			copies[&f[0]] = slices.Clone(f)
		}
		return copies[&f[0]]
	}
	g.Rope.InvFreq = clone(g.Rope.InvFreq)
	g.PerLayer = slices.Clone(g.PerLayer)
	for l := range g.PerLayer {
		r := &g.PerLayer[l].Rope
		r.InvFreq = clone(r.InvFreq)
	}
	return g
}

// validatePerLayer checks the attention of each layer.
func (g Geometry) validatePerLayer() error {
	if len(g.PerLayer) != g.Layers {
		return fmt.Errorf("kvist/quant: attention of %d layers, the model has %d: %w", len(g.PerLayer),
			g.Layers, ErrShape)
	}
	kinds, of := g.Kinds()
	for i, a := range kinds {
		if n := len(a.Rope.InvFreq); int64(n)*int64(g.Layers) > MaxFrequencies {
			return fmt.Errorf("kvist/quant: %w: inv_freq of %d values in a model of %d layers that differ; up to "+
				"%d in all are", ErrUnsupported, n, g.Layers, MaxFrequencies)
		}
		if err := a.Validate(g.HeadDim); err != nil {
			return fmt.Errorf("kvist/quant: layer %d: %w", slices.Index(of, i), err)
		}
	}
	return nil
}
