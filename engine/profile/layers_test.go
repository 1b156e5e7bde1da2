// SPDX-License-Identifier: Apache-2.0

package profile_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// layered is geometry with a window in the first two layers and another base in the third.
func layered() quant.Geometry {
	g := geometry()
	local, wide := quant.LayerAttention{Rope: g.Rope, Window: 5}, quant.LayerAttention{Rope: g.Rope}
	wide.Rope.Theta = 1e6
	wide.Rope.InvFreq = []float32{1, 0.5, 0.25, 0.125}
	g.PerLayer = []quant.LayerAttention{local, local, wide}
	return g
}

func TestProfile_LayersThatDiffer(t *testing.T) {
	p := must[*profile.Profile](t)(profile.New("golden", layered()))
	p = must[*profile.Profile](t)(p.WithSensitivity(sensitivity(), nil))
	var b bytes.Buffer
	must[int64](t)(p.WriteTo(&b))
	q := must[*profile.Profile](t)(profile.Read("p", bytes.NewReader(b.Bytes()), int64(b.Len()), profile.Limits{}))
	require.Equal(t, layered().Canonical(), q.Geometry())
	require.Equal(t, p.ID(), q.ID())
	require.NoError(t, q.Check("golden", layered()))
	q.Geometry().PerLayer[2].Rope.InvFreq[0] = 3
	require.Equal(t, float32(1), q.Geometry().PerLayer[2].Rope.InvFreq[0], "callers get copies")

	ids := map[profile.ID]bool{p.ID(): true}
	for what, change := range map[string]func(a []quant.LayerAttention){
		"layer 0": func(a []quant.LayerAttention) { a[0].Window = 6 },
		"layer 1": func(a []quant.LayerAttention) { a[1].Scale = 0.5 },
		"layer 2": func(a []quant.LayerAttention) {
			a[2].Rope.InvFreq = []float32{1, 0.5, 0.25, 0.0625}
		},
	} {
		g := layered()
		change(g.PerLayer)
		err := p.Check("golden", g)
		var m *profile.MismatchError
		require.ErrorAs(t, err, &m)
		require.ErrorIs(t, err, quant.ErrShape)
		require.Equal(t, what, m.What)
		other := must[*profile.Profile](t)(profile.New("golden", g))
		id := must[*profile.Profile](t)(other.WithSensitivity(sensitivity(), nil)).ID()
		require.False(t, ids[id], what)
		ids[id] = true
	}
	require.Error(t, p.Check("golden", geometry()), "a model of layers that are alike")
	require.Error(t, whole(t).Check("golden", layered()))

	// Layers that are alike are the model that says so.
	g := geometry()
	plain := quant.LayerAttention{Rope: g.Rope}
	g.PerLayer = []quant.LayerAttention{plain, plain, plain}
	require.NoError(t, whole(t).Check("golden", g))
	a := must[*profile.Profile](t)(profile.New("golden", g))
	require.Equal(t, must[*profile.Profile](t)(profile.New("golden", geometry())).ID(), a.ID())

	g.PerLayer[1].Window = -1
	_, err := profile.New("golden", g)
	require.ErrorIs(t, err, quant.ErrShape)
}
