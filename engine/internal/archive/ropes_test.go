// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// layered has layers 0 and 2 with one base, 1 without a rope and 3, that of cache's segment, with another.
func layered() quant.Geometry {
	local := quant.LayerAttention{Window: 5, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 1e4}}
	other := local
	other.Window = 0
	return quant.Geometry{Layers: 4, Heads: 2, KVHeads: 2, HeadDim: 16, HeadDimV: 16,
		PerLayer: []quant.LayerAttention{local, {}, other, {
			Rope: quant.Rope{Layout: quant.RopeInterleaved, RotaryDim: 8, InvFreq: []float32{1, 0.5, 0.25, 2}}}}}
}

func TestRopes_EachLayerItsOwn(t *testing.T) {
	g := layered()
	r := NewRopes(g)
	require.Len(t, r.kinds, 3, "layers 0 and 2 differ in their windows only")
	for l := range g.Layers {
		require.Equal(t, NewRope(g.RopeOf(l)), r.Of(l))
	}
	alike := NewRopes(quant.Geometry{Layers: 4, Rope: g.RopeOf(0)})
	require.Nil(t, alike.of)
	require.Equal(t, NewRope(g.RopeOf(0)), alike.Of(3))
}

// A layer is coded behind its own rope, and the parameters carry it.
func TestRopes_CodedWithTheLayersOwn(t *testing.T) {
	c, seg := cache(t, 90, 1)
	before := c.Ropes.Of(seg.Layer)
	p := *c.Params
	p.Ropes = NewRopes(layered())
	own := p.Ropes.Of(seg.Layer)
	for i := 0; i < len(seg.Rows); i += 2 { // the same rows, turned otherwise
		before.Undo(seg.Rows[i], 16, seg.Pos)
		own.Redo(seg.Rows[i], 16, seg.Pos)
	}
	q, err := ParseParams(p.Append(nil))
	require.NoError(t, err)
	require.Equal(t, p.Ropes, q.Ropes)
	with, err := NewCodec(q, true)
	require.NoError(t, err)
	got := emptyLike(seg)
	payload := encode(t, with, seg)
	require.NoError(t, with.Decode(got, payload, nil))
	e := relativeError(seg.Rows[0], got.Rows[0])
	require.Less(t, e, 0.02)

	// With the rope of another layer, the payload is longer and rows come out wrong.
	p.Ropes.of[seg.Layer] = p.Ropes.of[0]
	wrong, err := NewCodec(&p, true)
	require.NoError(t, err)
	require.Greater(t, len(encode(t, wrong, seg)), len(payload))
	require.NoError(t, wrong.Decode(got, payload, nil))
	require.Greater(t, relativeError(seg.Rows[0], got.Rows[0]), 0.5)
}

func relativeError(want, got []float32) float64 {
	var e, ref float64
	for i, v := range want {
		d := float64(got[i]) - float64(v)
		e, ref = e+float64(d*d), ref+float64(v)*float64(v)
	}
	return e / ref
}

func TestRopes_RefusedWhereTheyCannotBe(t *testing.T) {
	c, seg := cache(t, 9, 1)
	payload := encode(t, c, seg)
	for name, change := range map[string]func(r *Ropes){
		"more than the row":     func(r *Ropes) { r.kinds[0].Freqs = make([]float64, 9) },
		"of no layout":          func(r *Ropes) { r.kinds[0].Layout = quant.RopeNone },
		"none of the layer":     func(r *Ropes) { r.of = []uint16{0, 0, 0} },
		"of a layer before all": func(r *Ropes) { r.of = []uint16{} },
	} {
		t.Run(name, func(t *testing.T) {
			p := *c.Params
			p.Ropes = Ropes{kinds: []Rope{c.Ropes.kinds[0]}}
			change(&p.Ropes)
			with, err := NewCodec(&p, false)
			require.NoError(t, err)
			err = with.Decode(emptyLike(seg), payload, nil)
			require.ErrorIs(t, err, quant.ErrCorrupt)
			require.ErrorContains(t, err, "parameters")
		})
	}
	p := *c.Params
	p.Ropes = NewRopes(layered())
	good := p.Append(nil)
	require.Equal(t, byte(3), good[0])
	for at := range good {
		b := append([]byte(nil), good...)
		b[at] ^= 0xff
		if q, err := ParseParams(b); err != nil {
			require.True(t, isTyped(err), "%v", err)
		} else {
			require.NotNil(t, q.Ropes.kinds)
		}
		_, err := ParseParams(good[:at])
		require.True(t, isTyped(err), "%v", err)
	}
	good[0] = 5
	_, err := ParseParams(good)
	require.ErrorIs(t, err, quant.ErrVersion)
}
