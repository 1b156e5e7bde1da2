// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// attentionValue returns the field that says how each layer attends. g is in its canonical form,
// which gives every geometry one value.
func attentionValue(g quant.Geometry) []byte {
	if g.PerLayer == nil {
		return nil
	}
	le := binary.LittleEndian
	kinds, of := g.Kinds()
	v := le.AppendUint32(nil, uint32(g.Layers))
	v = le.AppendUint32(v, uint32(len(kinds)))
	for _, a := range kinds {
		v = append(v, byte(a.Rope.Layout), 0, 0, 0)
		v = le.AppendUint32(v, uint32(a.Rope.RotaryDim))
		v = le.AppendUint64(v, math.Float64bits(a.Rope.Theta))
		v = le.AppendUint64(v, uint64(a.Window))
		v = le.AppendUint64(v, math.Float64bits(a.Scale))
		v = le.AppendUint64(v, math.Float64bits(a.Softcap))
		v = le.AppendUint32(v, uint32(len(a.Rope.InvFreq)))
		v = le.AppendUint32(v, 0)
		for _, f := range a.Rope.InvFreq {
			v = le.AppendUint32(v, math.Float32bits(f))
		}
	}
	for _, i := range of {
		v = le.AppendUint16(v, uint16(i))
	}
	return v
}

// parseAttention reads what attentionValue writes, and refuses any other spelling of the same. What it
// allocates is bounded by the bytes of the field: layers of a kind share their frequencies.
func parseAttention(g *quant.Geometry, c *cursor) {
	raw := c.b
	layers, n := c.size(), c.size()
	if layers != g.Layers || n < 1 || n > layers || n > len(c.b)/attentionBytes {
		c.fail("attention: layers, kinds of layers", g.Layers, []int{layers, n})
		return
	}
	kinds := make([]quant.LayerAttention, n)
	for i := range kinds {
		kinds[i] = parseKind(c)
	}
	if c.err == nil && len(c.b) != 2*layers {
		c.fail("attention: bytes for the kind of each layer", 2*layers, len(c.b))
	}
	if c.err != nil {
		return
	}
	g.PerLayer = make([]quant.LayerAttention, layers)
	for l := range g.PerLayer {
		k := int(c.uint(2))
		if k >= n {
			c.fail("attention: kind of a layer", n-1, k)
			g.PerLayer = nil
			return
		}
		g.PerLayer[l] = kinds[k]
	}
	one := g.Canonical()
	if !bytes.Equal(attentionValue(one), raw) || !(quant.LayerAttention{Rope: one.Rope}).Equal(
		quant.LayerAttention{Rope: g.Rope}) {
		c.fail("attention: kinds ascend by their first layers, each once, and the rope of the geometry "+
			"is that of layer 0", nil, nil)
		return
	}
	g.Rope = g.PerLayer[0].Rope
}

func parseKind(c *cursor) (a quant.LayerAttention) {
	a.Rope.Layout = quant.RopeLayout(c.uint(1))
	c.zero(3)
	a.Rope.RotaryDim = c.size()
	a.Rope.Theta = math.Float64frombits(c.uint(8))
	window := c.uint(8)
	if window > quant.MaxTokens {
		c.fail("attention: window", int64(quant.MaxTokens), window)
	}
	a.Window = int64(window)
	a.Scale, a.Softcap = math.Float64frombits(c.uint(8)), math.Float64frombits(c.uint(8))
	freqs := c.size()
	c.zero(4)
	if freqs > len(c.b)/4 {
		c.fail("attention: frequencies", len(c.b)/4, freqs)
	}
	if c.err == nil && freqs > 0 {
		a.Rope.InvFreq = c.floats(freqs)
	}
	return a
}

// validateAttention checks of each kind of layer what quant.Geometry lets pass.
func validateAttention(g quant.Geometry) error {
	kinds, _ := g.Kinds()
	for _, a := range kinds {
		if err := validateFreqs(a.Rope.InvFreq); err != nil {
			return err
		}
		if t := a.Rope.Theta; !(t >= 0) || math.IsInf(t, 0) {
			return shapef("header: rope theta %v, want a positive number, or 0 with inv_freq", t)
		}
	}
	return nil
}
