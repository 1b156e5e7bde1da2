// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// tinyModel loads a random model of the tests of package model: gemma3 has four layers, of which three
// have a window of 8 positions and RoPE of their own; gemma2 has soft caps.
func tinyModel(t testing.TB, name string) *model.Model {
	t.Helper()
	f, err := gguf.Open(filepath.Join("..", "..", "engine", "model", "testdata", "models", name+".gguf"))
	require.NoError(t, err)
	defer f.Close()
	m, err := model.Load(f, model.Options{})
	require.NoError(t, err)
	return m
}

func randomInput(m *model.Model, n int) Input {
	rng := rand.New(rand.NewPCG(7, 9))
	in := Input{Name: "random"}
	for range n {
		in.Tokens = append(in.Tokens, int32(rng.IntN(m.Vocab)))
	}
	return in
}

// TestLayered_WindowsCostNothing: methods get only the rows that a later query of a layer sees, rows
// that they keep exactly give the logits of the whole cache, and bytes are counted over what they got.
func TestLayered_WindowsCostNothing(t *testing.T) {
	m := tinyModel(t, "gemma3")
	o := Options{Context: 40, Next: 12, Window: 10, Chunk: 7}
	r, err := NewRun(context.Background(), m, randomInput(m, 52), o)
	require.NoError(t, err)
	got := map[int]int{} // layers of a part by its tokens
	method := fake{"exact", func(c *methods.Context) *methods.Cache {
		got[len(c.Tokens)] = c.Geometry.Layers
		require.Len(t, c.Layers, c.Geometry.Layers)
		require.Equal(t, quant.RopeHalf, c.Geometry.Rope.Layout)
		return identity(c)
	}}
	s, err := r.Measure(context.Background(), method)
	require.NoError(t, err)
	require.Equal(t, map[int]int{40: 1, 7: 3}, got) // of a window of 8 positions the query takes one
	require.InDelta(t, 0, s.KL, 1e-9)
	require.Equal(t, int64(4*(40+3*7)*2*(16+16)), s.Bytes)
	require.InDelta(t, 32, s.BitsPerValue, 1e-9)

	// Decoding in chunks agrees too; rows leave the window as the run goes on.
	s, err = r.decoded(context.Background(), method)
	require.NoError(t, err)
	require.InDelta(t, 0, s.KL, 1e-9)
	require.Less(t, s.BitsPerValue, 32.0) // the recent rows count with 16 bits

	// A row that a method drops is missed.
	s, err = r.Measure(context.Background(), fake{"drops", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		for l := range out.Layers {
			out.Layers[l].Keep = make([]bool, c.Geometry.KVHeads*len(c.Tokens))
		}
		return out
	}})
	require.NoError(t, err)
	require.Greater(t, s.KL, 1e-3)
}

func TestLayered_UniformModelsStayWhole(t *testing.T) {
	m := tinyModel(t, "qwen2")
	r, err := NewRun(context.Background(), m, randomInput(m, 20), Options{Context: 16, Next: 4})
	require.NoError(t, err)
	_, err = r.Measure(context.Background(), fake{"exact", func(c *methods.Context) *methods.Cache {
		require.Same(t, r.Context, c)
		return identity(c)
	}})
	require.NoError(t, err)
}

// TestLayered_OneFile: kvist compresses layers that attend in different ways as one file. Its budget is of the
// values that a later query sees, and rows that none sees are not kept.
func TestLayered_OneFile(t *testing.T) {
	for _, name := range []string{"gemma3", "gemma2"} { // gemma2 has soft caps
		m := tinyModel(t, name)
		r, err := NewRun(context.Background(), m, randomInput(m, 60), Options{Context: 48, Next: 12})
		require.NoError(t, err)
		for _, config := range []string{"bits=16 levels=full", "share=1.25 levels=full"} {
			k, err := methods.NewKvist(config)
			require.NoError(t, err)
			s, err := r.Measure(context.Background(), k)
			require.NoError(t, err, "%s %s", name, config)
			require.LessOrEqual(t, s.BitsPerValue, k.Config.Bits+16*k.Config.Share)
			require.Greater(t, s.BitsPerValue, 0.9*(k.Config.Bits+16*k.Config.Share))
			require.Less(t, s.KL, 0.01)
		}
	}
	// While decoding, queries are further from the compressed rows. Those that a method keeps are what they see.
	m := tinyModel(t, "gemma3")
	k, err := methods.NewKvist("k=f16 v=f16 sinks=0")
	require.NoError(t, err)
	r, err := NewRun(context.Background(), m, randomInput(m, 60), Options{Context: 48, Next: 12, Window: 5, Chunk: 3})
	require.NoError(t, err)
	s, err := r.decoded(context.Background(), k)
	require.NoError(t, err)
	require.Less(t, s.KL, 1e-5)
	c := newCollector(m.Geometry(), 60).context(make([]int32, 60), 40)
	x, err := newLayered(m, c, 45)
	require.NoError(t, err)
	g := x.perLayer.Geometry
	require.EqualValues(t, 45-8+1, g.Outside(0, 40))
	x, err = newLayered(m, c, 60)
	require.NoError(t, err)
	require.EqualValues(t, 40, x.perLayer.Geometry.Outside(0, 40))
}

func TestLayered_Refuses(t *testing.T) {
	m := tinyModel(t, "gemma2")
	r, err := NewRun(context.Background(), m, randomInput(m, 20), Options{Context: 16, Next: 4})
	require.NoError(t, err)
	_, err = r.Measure(context.Background(), fake{"any", identity})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorContains(t, err, "soft cap 4")

	m = tinyModel(t, "gemma3")
	r, err = NewRun(context.Background(), m, randomInput(m, 20), Options{Context: 16, Next: 4})
	require.NoError(t, err)
	_, err = r.Measure(context.Background(), fake{"short", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		out.Layers[0].K = out.Layers[0].K[1:]
		return out
	}})
	require.ErrorIs(t, err, quant.ErrShape)
	require.False(t, math.IsNaN(r.ref.lse[0]))
}
