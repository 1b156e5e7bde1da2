// SPDX-License-Identifier: Apache-2.0

package quant_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// layered is a geometry of four layers: two that see 5 tokens with a base of their own, one without
// a position embedding, and one with scaled frequencies, a scale and a soft cap.
func layered() quant.Geometry {
	local := quant.LayerAttention{Window: 5,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}}
	wide := quant.LayerAttention{Scale: 0.0625, Softcap: 50,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 4, Theta: 1e6, InvFreq: []float32{1, 0.25}}}
	return quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
		PerLayer: []quant.LayerAttention{local, {}, local, wide}}
}

func TestGeometry_LayersThatDiffer(t *testing.T) {
	g := layered()
	require.NoError(t, g.Validate())
	require.Equal(t, int64(5), g.WindowOf(2))
	require.Equal(t, int64(0), g.WindowOf(1))
	require.Equal(t, 0.25, g.ScaleOf(0))
	require.Equal(t, 0.0625, g.ScaleOf(3))
	require.Equal(t, 256.0, g.ScoreDivisor(0))
	require.Equal(t, 16/(0.0625*0.0625), g.ScoreDivisor(3))
	require.Equal(t, 50.0, g.SoftcapOf(3))
	require.Equal(t, 1e4, g.RopeOf(0).Theta)
	require.Equal(t, quant.RopeNone, g.RopeOf(1).Layout)
	require.True(t, g.Windowed())
	kinds, of := g.Kinds()
	require.Len(t, kinds, 3)
	require.Equal(t, []int{0, 1, 0, 2}, of)

	// A query at position 12, the next after 12 tokens, sees 8 to 12.
	require.Equal(t, int64(8), g.Outside(0, 12))
	require.Equal(t, int64(0), g.Outside(1, 12))
	require.Equal(t, int64(0), g.Outside(0, 4))
	require.Equal(t, int64(1), g.Outside(0, 5))
	g.PerLayer[1].Window = 1 // a query sees itself
	require.Equal(t, int64(12), g.Outside(1, 12))

	alike := quant.Geometry{Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}}
	require.Equal(t, alike.Rope, alike.RopeOf(3))
	require.Equal(t, 0.25, alike.ScaleOf(3))
	require.False(t, alike.Windowed())
}

// Frequencies of the same values are one kind wherever they lie in memory.
func TestGeometry_KindsByContent(t *testing.T) {
	g := layered()
	other := g.PerLayer[3]
	other.Rope.InvFreq = []float32{1, 0.25}
	g.PerLayer[1] = other
	_, of := g.Kinds()
	require.Equal(t, []int{0, 1, 0, 1}, of)
	g.PerLayer[1].Rope.InvFreq[1] = 0.5
	_, of = g.Kinds()
	require.Equal(t, []int{0, 1, 0, 2}, of)
}

func TestGeometry_Canonical(t *testing.T) {
	g := layered()
	g.PerLayer[1].Rope = quant.Rope{RotaryDim: 4, Theta: 3} // of no meaning without a layout
	c := g.Canonical()
	require.Equal(t, layered().PerLayer, c.PerLayer)
	require.Equal(t, g.PerLayer[0].Rope, c.Rope)
	require.Equal(t, c, c.Canonical())

	rope := quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}
	g.PerLayer = []quant.LayerAttention{{Rope: rope}, {Rope: rope}, {Rope: rope}, {Rope: rope}}
	c = g.Canonical()
	require.Nil(t, c.PerLayer)
	require.Equal(t, rope, c.Rope)
	for l := range g.PerLayer {
		g.PerLayer[l].Softcap = 30
	}
	require.NotNil(t, g.Canonical().PerLayer, "alike, but not plain")
}

func TestGeometry_CloneSharesNothing(t *testing.T) {
	g := layered()
	g.PerLayer[1] = g.PerLayer[3]
	c := g.Clone()
	require.Equal(t, g, c)
	c.PerLayer[3].Rope.InvFreq[0] = 7
	c.PerLayer[0].Window = 9
	require.Equal(t, float32(1), g.PerLayer[3].Rope.InvFreq[0])
	require.Equal(t, int64(5), g.PerLayer[0].Window)
	require.Equal(t, float32(7), c.PerLayer[1].Rope.InvFreq[0], "layers of a kind share frequencies")
}

func TestGeometry_LayersThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		change func(g *quant.Geometry)
		want   error
		text   string
	}{
		"too few":     {func(g *quant.Geometry) { g.PerLayer = g.PerLayer[:3] }, quant.ErrShape, "3 layers"},
		"none":        {func(g *quant.Geometry) { g.PerLayer = g.PerLayer[:0] }, quant.ErrShape, "0 layers"},
		"window":      {func(g *quant.Geometry) { g.PerLayer[2].Window = -1 }, quant.ErrShape, "layer 2: "},
		"far window":  {func(g *quant.Geometry) { g.PerLayer[2].Window = 1<<40 + 1 }, quant.ErrShape, "window"},
		"NaN scale":   {func(g *quant.Geometry) { g.PerLayer[1].Scale = math.NaN() }, quant.ErrShape, "scale NaN"},
		"scale below": {func(g *quant.Geometry) { g.PerLayer[1].Scale = -1 }, quant.ErrShape, "scale -1"},
		"Inf scale":   {func(g *quant.Geometry) { g.PerLayer[1].Scale = math.Inf(1) }, quant.ErrShape, "scale +Inf"},
		"huge scale":  {func(g *quant.Geometry) { g.PerLayer[1].Scale = 1e30 }, quant.ErrUnsupported, "scale 1e+30"},
		"tiny scale":  {func(g *quant.Geometry) { g.PerLayer[1].Scale = 1e-30 }, quant.ErrUnsupported, "scale 1e-30"},
		"NaN cap":     {func(g *quant.Geometry) { g.PerLayer[3].Softcap = math.NaN() }, quant.ErrShape, "soft cap NaN"},
		"tiny cap":    {func(g *quant.Geometry) { g.PerLayer[3].Softcap = 1e-30 }, quant.ErrUnsupported, "soft cap 1e-30"},
		"too long": {func(g *quant.Geometry) {
			g.HeadDim, g.Layers = 1<<16, 1<<14
			a := quant.LayerAttention{Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 1 << 16,
				InvFreq: make([]float32, 1<<15)}}
			g.PerLayer = append(make([]quant.LayerAttention, 1<<14-1), a)
		}, quant.ErrUnsupported, "inv_freq of 32768 values in a model of 16384 layers"},
		"rope": {func(g *quant.Geometry) { g.PerLayer[3].Rope.RotaryDim = 18 }, quant.ErrShape, "layer 3: "},
	} {
		t.Run(name, func(t *testing.T) {
			g := layered()
			c.change(&g)
			err := g.Validate()
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}
