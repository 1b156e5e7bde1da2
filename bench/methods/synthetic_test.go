// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
)

func TestSynthetic_Deterministic(t *testing.T) {
	o := syntheticOptions{Layers: 2, KVHeads: 1, GQA: 2, HeadDim: 32, Tokens: 64, Next: 8, Seed: 3}
	c1, n1, err := synthetic(o)
	require.NoError(t, err)
	c2, n2, err := synthetic(o)
	require.NoError(t, err)
	require.Equal(t, c1, c2)
	require.Equal(t, n1, n2)
	o.Seed = 4
	c3, _, err := synthetic(o)
	require.NoError(t, err)
	require.NotEqual(t, c1.Layers[0].K, c3.Layers[0].K)
	for _, bad := range []syntheticOptions{{Tokens: 31}, {HeadDim: 12}, {Layers: -1}, {GQA: 65},
		{Next: 1 << 21}} {
		_, _, err := synthetic(bad)
		require.ErrorIs(t, err, quant.ErrShape)
	}
}

// TestSynthetic_Statistics tests the statistics that the comment of synthetic states.
func TestSynthetic_Statistics(t *testing.T) {
	f := syntheticFamily(t, syntheticOptions{Tokens: 768, Next: 64})
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	require.NoError(t, err)
	j := &job{shapeOf: f.future.shapeOf, c: f.c, engine: engine}
	for layer := range f.c.Layers {
		var sinks, near, far, spread float64
		queries := 0
		for h := range j.kvHeads {
			require.NoError(t, j.attention(layer, h, 256, func(query int, p []float32) {
				queries++
				var mean, square float64
				for i, x := range p {
					switch {
					case i < synSinks:
						sinks += float64(x)
						continue
					case i > query-64:
						near += float64(x)
					default:
						far += float64(x)
					}
					s := math.Log(max(float64(x), 1e-30))
					mean += s / float64(len(p)-synSinks)
					square += s * s / float64(len(p)-synSinks)
				}
				spread += math.Sqrt(square - mean*mean)
			}))
		}
		n := float64(queries)
		t.Logf("layer %d: attention to sinks %.2f, last 64 %.2f, before %.2f; "+
			"scores vary by %.2f nats", layer, sinks/n, near/n, far/n, spread/n)
		require.InDelta(t, 0.35, sinks/n, 0.3)
		require.Greater(t, near/n, 64.0/500*0.5)
		require.Greater(t, far/n, 0.1)
		require.InDelta(t, 2, spread/n, 1)

		massive, kurtosis := 0, 0.0
		k, v := j.k(f.c.Layers[layer].K, 0), j.v(f.c.Layers[layer].V, 0)
		for i := range k.Dim {
			var a, m2, m4 float64
			for r := synSinks; r < k.Len(); r++ {
				a += math.Abs(float64(k.Row(r)[i])) / float64(k.Len())
				x := float64(v.Row(r)[i])
				m2 += x * x / float64(k.Len())
				m4 += x * x * x * x / float64(k.Len())
			}
			if a > 6 {
				massive++
			}
			kurtosis += m4 / (m2 * m2) / float64(k.Dim)
		}
		t.Logf("layer %d: %d channels of K above 6, kurtosis of V %.1f", layer, massive, kurtosis)
		require.Greater(t, massive, 0)
		require.Less(t, massive, 8)
		require.Greater(t, kurtosis, 5.0)
		require.Less(t, norm(v.Row(0)), 0.2*norm(v.Row(10)))
	}
}

// TestFuture_ByDefinition compares with a plain implementation of attention.
func TestFuture_ByDefinition(t *testing.T) {
	o := syntheticOptions{Layers: 1, KVHeads: 2, GQA: 2, HeadDim: 16, Tokens: 40, Next: 70, Seed: 2}
	c, next, err := synthetic(o)
	require.NoError(t, err)
	cache := compress(t, KIVI{Bits: 2}, c)
	l := &cache.Layers[0]
	l.Keep, l.Bias = make([]bool, 80), make([]float32, 80)
	for i := range l.Keep {
		l.Keep[i], l.Bias[i] = i%5 != 3, float32(i%3)/4
	}
	l.K[3*16] = float32(math.NaN()) // row 3 is not kept
	out := func(k, v []float32, keep []bool, bias []float32, head, query int) []float64 {
		h := head / 2
		q := next.Layers[0].Q[(head*70+query)*16 : (head*70+query+1)*16]
		y, sum := make([]float64, 16), 0.0
		add := func(k, v []float32, bias float64) {
			p := math.Exp(dot(q, k)/4 + bias)
			sum += p
			addScaled(y, p, v)
		}
		for r := h * 40; r < (h+1)*40; r++ {
			if keep == nil {
				add(k[r*16:(r+1)*16], v[r*16:(r+1)*16], 0)
			} else if keep[r] {
				add(k[r*16:(r+1)*16], v[r*16:(r+1)*16], float64(bias[r]))
			}
		}
		for r := h * 70; r <= h*70+query; r++ {
			add(next.Layers[0].K[r*16:(r+1)*16], next.Layers[0].V[r*16:(r+1)*16], 0)
		}
		for i := range y {
			y[i] /= sum
		}
		return y
	}
	var diff, ref float64
	for head := range 4 {
		for query := range 70 {
			want := out(c.Layers[0].K, c.Layers[0].V, nil, nil, head, query)
			got := out(l.K, l.V, l.Keep, l.Bias, head, query)
			for i := range want {
				diff += (got[i] - want[i]) * (got[i] - want[i])
				ref += want[i] * want[i]
			}
		}
	}
	require.InEpsilon(t, diff/ref, futureError(c, cache, next), 1e-4)

	exact := &Cache{Layers: []CacheLayer{{K: c.Layers[0].K, V: c.Layers[0].V}}}
	require.Zero(t, futureError(c, exact, next))
}

func TestFuture_Refusals(t *testing.T) {
	f := smallFamily(t)
	good := compress(t, FP8{}, f.c)
	_, err := f.future.Error(context.Background(), good)
	require.NoError(t, err)
	_, err = newFuture(f.c, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = newFuture(f.c, &nextRows{Layers: make([]Layer, 3)})
	require.ErrorIs(t, err, quant.ErrShape)
	require.True(t, math.IsNaN(futureError(f.c, good, nil)))
	for _, spoil := range []func(c *Cache){
		func(c *Cache) { c.Layers = c.Layers[1:] },
		func(c *Cache) { c.Layers[1].K = c.Layers[1].K[1:] },
		func(c *Cache) { c.Layers[1].Keep = make([]bool, 3) },
		func(c *Cache) { c.Layers[1].Bias = make([]float32, 3) },
	} {
		bad := compress(t, FP8{}, f.c)
		spoil(bad)
		_, err := f.future.Error(context.Background(), bad)
		require.ErrorIs(t, err, quant.ErrShape)
		require.True(t, math.IsNaN(futureError(f.c, bad, f.future.next)))
	}
}
