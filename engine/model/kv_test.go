// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

// history holds the rows of one layer in the order of captures, with their bias and kept marks.
type history struct {
	g    quant.Geometry
	n    int
	k, v []float32
	bias []float32
	keep []bool
	how  *model.LayerAttention // nil: scale 1/sqrt(head_dim), no window and no cap
}

func randomRows(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func newHistory(rng *rand.Rand, g quant.Geometry, n int) *history {
	h := &history{g: g, n: n, k: randomRows(rng, g.KVHeads*n*g.HeadDim),
		v: randomRows(rng, g.KVHeads*n*g.HeadDimV)}
	for range g.KVHeads * n {
		h.bias = append(h.bias, float32(rng.NormFloat64()))
		h.keep = append(h.keep, rng.IntN(4) > 0)
	}
	return h
}

// attend is the naive float64 attention of one query of one head at position pos.
func (h *history) attend(q []float32, head, pos int) []float64 {
	g := h.g
	kv := head / g.GQARatio()
	out := make([]float64, g.HeadDimV)
	var sum float64
	scale, window, softcap := 1/math.Sqrt(float64(g.HeadDim)), pos+1, 0.0
	if h.how != nil {
		scale, softcap = h.how.Scale, h.how.Softcap
		if h.how.Window > 0 {
			window = h.how.Window
		}
	}
	for t := range pos + 1 {
		if !h.keep[kv*h.n+t] || pos-t >= window {
			continue
		}
		var s float64
		for i := range g.HeadDim {
			s += float64(q[i]) * float64(h.k[(kv*h.n+t)*g.HeadDim+i])
		}
		s *= scale
		if softcap > 0 {
			s = softcap * math.Tanh(s/softcap)
		}
		p := math.Exp(s + float64(h.bias[kv*h.n+t]))
		sum += p
		for i := range out {
			out[i] += p * float64(h.v[(kv*h.n+t)*g.HeadDimV+i])
		}
	}
	for i := range out {
		if sum > 0 {
			out[i] /= sum
		}
	}
	return out
}

func (h *history) rows() model.ContextRows {
	return model.ContextRows{K: h.k, V: h.v, Bias: h.bias, Keep: h.keep}
}

func requireAttend(t *testing.T, h *history, kv *model.ExactKV, rng *rand.Rand, pos, n int) {
	t.Helper()
	g := h.g
	q := randomRows(rng, n*g.Heads*g.HeadDim)
	out := make([]float32, n*g.Heads*g.HeadDimV)
	require.NoError(t, kv.Attend(0, pos, q, n, out))
	for i := range n * g.Heads {
		want := h.attend(q[i*g.HeadDim:(i+1)*g.HeadDim], i%g.Heads, pos+i/g.Heads)
		for c, w := range want {
			if got := float64(out[i*g.HeadDimV+c]); !(math.Abs(got-w) <= 2e-5) {
				t.Fatalf("query %d head %d component %d: got %v, want %v", i/g.Heads, i%g.Heads, c, got, w)
			}
		}
	}
}

var kvGeometries = []quant.Geometry{
	{Layers: 1, Heads: 9, KVHeads: 3, HeadDim: 64, HeadDimV: 64},
	{Layers: 1, Heads: 4, KVHeads: 4, HeadDim: 40, HeadDimV: 24},
	{Layers: 1, Heads: 8, KVHeads: 1, HeadDim: 16, HeadDimV: 80},
	{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 1, HeadDimV: 3},
}

func TestExactKV_BiasAndKeep(t *testing.T) {
	for _, g := range kvGeometries {
		for _, n := range []int{1, 7, 127, 128, 129, 300} {
			t.Run(fmt.Sprintf("head_dim=%d/tokens=%d", g.HeadDim, n), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(g.HeadDim)))
				h := newHistory(rng, g, n)
				kv, err := model.NewExactKV(g, model.KVOptions{Workers: 3})
				require.NoError(t, err)
				require.NoError(t, kv.AppendRows(0, n, h.rows()))
				requireAttend(t, h, kv, rng, n-1, 1)
				requireAttend(t, h, kv, rng, 0, n)
				requireAttend(t, h, kv, rng, n/2, n-n/2)
			})
		}
	}
}

func TestExactKV_Attention(t *testing.T) {
	for _, a := range []model.LayerAttention{{Scale: 0.1}, {Scale: 0.3, Softcap: 2}, {Scale: 0.125, Window: 1},
		{Scale: 0.125, Window: 5}, {Scale: 0.125, Window: 128}, {Scale: 0.2, Window: 130, Softcap: 30},
		{Scale: 0.125, Window: 1000}} {
		for _, g := range kvGeometries[1:3] {
			a.Heads, a.KVHeads = g.Heads, g.KVHeads
			for _, n := range []int{1, 129, 260} {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(a.Window)))
				h := newHistory(rng, g, n)
				h.how = &a
				kv, err := model.NewExactKV(g, model.KVOptions{Workers: 3, Attention: []model.LayerAttention{a}})
				require.NoError(t, err)
				require.NoError(t, kv.AppendRows(0, n, h.rows()))
				requireAttend(t, h, kv, rng, n-1, 1)
				requireAttend(t, h, kv, rng, 0, n)
				requireAttend(t, h, kv, rng, n/2, n-n/2)
			}
		}
	}
	g := kvGeometries[0]
	for _, c := range []struct {
		a    []model.LayerAttention
		want error
	}{
		{[]model.LayerAttention{}, quant.ErrShape},
		{[]model.LayerAttention{{Heads: 9, KVHeads: 3}}, quant.ErrShape},
		{[]model.LayerAttention{{Heads: 9, KVHeads: 3, Scale: 1, Window: -1}}, quant.ErrShape},
		{[]model.LayerAttention{{Heads: 8, KVHeads: 2, Scale: 1}}, quant.ErrUnsupported},
	} {
		_, err := model.NewExactKV(g, model.KVOptions{Attention: c.a})
		require.ErrorIs(t, err, c.want)
	}
}

func TestExactKV_DroppedRowsAreNotThere(t *testing.T) {
	g := kvGeometries[0]
	rng := rand.New(rand.NewPCG(1, 2))
	h := newHistory(rng, g, 200)
	for i := range h.keep {
		h.keep[i] = i%200 >= 150 // the first 150 tokens of each head are gone
	}
	bad := h.rows()
	bad.K, bad.V = append([]float32(nil), h.k...), append([]float32(nil), h.v...)
	for i := range h.keep {
		if !h.keep[i] {
			bad.K[i*64+3] = float32(math.NaN())
			bad.V[i*64+5] = float32(math.Inf(1))
		}
	}
	kv, err := model.NewExactKV(g, model.KVOptions{})
	require.NoError(t, err)
	require.NoError(t, kv.AppendRows(0, 200, bad))
	requireAttend(t, h, kv, rng, 199, 1)
	requireAttend(t, h, kv, rng, 140, 30) // its first ten queries see nothing and get zeros
}

func TestExactKV_ConcurrentClones(t *testing.T) {
	g := kvGeometries[0]
	rng := rand.New(rand.NewPCG(3, 4))
	full := newHistory(rng, g, 290)
	for i := range full.keep {
		full.keep[i] = true
	}
	part := func(lo, hi int) (c model.ContextRows) {
		for h := range g.KVHeads {
			c.K = append(c.K, full.k[(h*290+lo)*64:(h*290+hi)*64]...)
			c.V = append(c.V, full.v[(h*290+lo)*64:(h*290+hi)*64]...)
			c.Bias = append(c.Bias, full.bias[h*290+lo:h*290+hi]...)
		}
		return c
	}
	base, err := model.NewExactKV(g, model.KVOptions{})
	require.NoError(t, err)
	require.NoError(t, base.AppendRows(0, 200, part(0, 200)))

	// Clones and the original continue in parallel and independently.
	var wg sync.WaitGroup
	for i := range 4 {
		c := base.Clone()
		wg.Go(func() {
			noise := rand.New(rand.NewPCG(uint64(i), 5))
			rows := model.ContextRows{K: randomRows(noise, 50*192), V: randomRows(noise, 50*192)}
			if c.AppendRows(0, 50, rows) != nil {
				t.Error("append to clone failed")
			}
			if c.Clone().Truncate(10) != nil || c.Truncate(130) != nil {
				t.Error("truncate of clone failed")
			}
		})
	}
	wg.Wait()
	requireAttend(t, full, base, rng, 150, 50)

	// After truncating and appending, the dropped rows have no effect.
	require.NoError(t, base.AppendRows(0, 60, model.ContextRows{
		K: randomRows(rng, 60*192), V: randomRows(rng, 60*192), Bias: make([]float32, 180)}))
	require.NoError(t, base.Truncate(130))
	require.Equal(t, 130, base.Len())
	require.NoError(t, base.AppendRows(0, 160, part(130, 290)))
	requireAttend(t, full, base, rng, 120, 170)
	k, v, err := base.Rows(0, 100, 290)
	require.NoError(t, err)
	want := part(100, 290)
	require.Equal(t, want.K, k)
	require.Equal(t, want.V, v)
	require.NoError(t, base.Truncate(0))
	require.Zero(t, base.Len())
}

func TestExactKV_F16Rounds(t *testing.T) {
	g := kvGeometries[1]
	rng := rand.New(rand.NewPCG(5, 6))
	kv, err := model.NewExactKV(g, model.KVOptions{F16: true})
	require.NoError(t, err)
	k, v := randomRows(rng, 3*4*40), randomRows(rng, 3*4*24)
	require.NoError(t, kv.Append(0, 0, k, v, 3))
	gotK, gotV, err := kv.Rows(0, 0, 3)
	require.NoError(t, err)
	for tok := range 3 {
		for h := range 4 {
			for c := range 40 {
				require.Equal(t, quant.F16ToF32(quant.F32ToF16(k[(tok*4+h)*40+c])), gotK[(h*3+tok)*40+c])
			}
			for c := range 24 {
				require.Equal(t, quant.F16ToF32(quant.F32ToF16(v[(tok*4+h)*24+c])), gotV[(h*3+tok)*24+c])
			}
		}
	}
}

// TestExactKV_NaNIsSeen: a NaN must not vanish in the softmax.
func TestExactKV_NaNIsSeen(t *testing.T) {
	g := quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 8, HeadDimV: 8}
	kv, err := model.NewExactKV(g, model.KVOptions{})
	require.NoError(t, err)
	k, v := make([]float32, 16), make([]float32, 16)
	k[3] = float32(math.NaN())
	require.NoError(t, kv.Append(0, 0, k, v, 2))
	out := make([]float32, 8)
	require.NoError(t, kv.Attend(0, 1, make([]float32, 8), 1, out))
	require.True(t, math.IsNaN(float64(out[0])))
}

func TestExactKV_Errors(t *testing.T) {
	g := kvGeometries[0]
	_, err := model.NewExactKV(quant.Geometry{}, model.KVOptions{})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = model.NewExactKV(g, model.KVOptions{Workers: -1})
	require.ErrorIs(t, err, quant.ErrShape)
	kv, err := model.NewExactKV(g, model.KVOptions{})
	require.NoError(t, err)
	row := make([]float32, 192)
	require.NoError(t, kv.Append(0, 0, row, row, 1))
	q, out := make([]float32, 576), make([]float32, 576)
	nan := []float32{0, 0, float32(math.NaN())}
	for name, err := range map[string]error{
		"layer":         kv.Append(1, 0, row, row, 1),
		"layer below 0": kv.Append(-1, 0, row, row, 1),
		"again":         kv.Append(0, 0, row, row, 1),
		"gap":           kv.Append(0, 2, row, row, 1),
		"short k":       kv.Append(0, 1, row[:191], row, 1),
		"short v":       kv.Append(0, 1, row, row[:1], 1),
		"negative":      kv.Append(0, 1, nil, nil, -1),
		"future":        kv.Attend(0, 1, q, 1, out),
		"short q":       kv.Attend(0, 0, q[1:], 1, out),
		"short out":     kv.Attend(0, 0, q, 1, out[1:]),
		"attend layer":  kv.Attend(7, 0, q, 1, out),
		"truncate":      kv.Truncate(2),
		"truncate neg":  kv.Truncate(-1),
		"rows":          kv.AppendRows(0, 2, model.ContextRows{K: row, V: row}),
		"rows layer":    kv.AppendRows(3, 1, model.ContextRows{K: row, V: row}),
		"bias":          kv.AppendRows(0, 1, model.ContextRows{K: row, V: row, Bias: row}),
		"keep":          kv.AppendRows(0, 1, model.ContextRows{K: row, V: row, Keep: make([]bool, 1)}),
	} {
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	err = kv.AppendRows(0, 1, model.ContextRows{K: row, V: row, Bias: nan})
	require.ErrorIs(t, err, quant.ErrRange)
	_, _, err = kv.Rows(0, 0, 2)
	require.ErrorIs(t, err, quant.ErrShape)
	require.Equal(t, 1, kv.Len())
}
