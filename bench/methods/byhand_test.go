// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// one returns a context of one layer and head with these rows of K and V, and queries of 0.
func one(dim int, k, v []float32) *Context {
	g := quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: dim, HeadDimV: dim}
	return &Context{Geometry: g, Layers: []Layer{{K: k, V: v, Q: make([]float32, len(k))}}}
}

func TestKIVI_ByHand(t *testing.T) {
	// Channel 0 of K runs 0, 1, 2, 6: at 2 bits scale 2, codes 0, 0 (a half goes to even), 1, 3.
	// Channel 1 is constant. Rows of V are groups of their own: 0, 3 and 4, 1 and 5, 5 and -3, 0.
	c := one(2, []float32{0, 7, 1, 7, 2, 7, 6, 7}, []float32{0, 3, 4, 1, 5, 5, -3, 0})
	cache := compress(t, KIVI{Bits: 2}, c)
	require.Equal(t, []float32{0, 7, 0, 7, 2, 7, 6, 7}, cache.Layers[0].K)
	require.Equal(t, c.Layers[0].V, cache.Layers[0].V, "two values of a group are its ends")
	require.EqualValues(t, 2+2*4+2+4*4, cache.Bytes)

	// Per channel and per token: with the two swapped, a massive channel would give large errors.
	rng := rand.New(rand.NewPCG(1, 2))
	k := make([]float32, 64*8)
	for i := range k {
		k[i] = float32(rng.NormFloat64())
		if i%8 == 3 {
			k[i] += 1000
		}
	}
	cache = compress(t, KIVI{Bits: 4}, one(8, k, k))
	errAt := func(got []float32, channel int) (worst float64) {
		for i := channel; i < len(k); i += 8 {
			worst = max(worst, math.Abs(float64(got[i]-k[i])))
		}
		return worst
	}
	require.Less(t, errAt(cache.Layers[0].K, 0), 0.25)
	require.Greater(t, errAt(cache.Layers[0].V, 0), 0.5)
}

func TestFP8_ByHand(t *testing.T) {
	for x, want := range map[float32]float32{
		0: 0, 1: 1, 1.0625: 1, 1.0626: 1.125, 1.1875: 1.25, 448: 448, 1000: 448, -17: -16, -19: -20,
		0x1p-6: 0x1p-6, 0x1p-9: 0x1p-9, 0x1p-10: 0, 0x1.8p-10: 0x1p-9, -0x1.8p-9: -0x1p-8,
		0x1.fp-7: 0x1p-6,
	} {
		require.Equal(t, want, roundFP8(x), "%g", x)
	}
	// All 256 codes but NaN are fixed points. Halfway points round to the even code.
	for e := range 16 {
		for m := range 8 {
			x := math.Ldexp(float64(8+m), e-10)
			if e == 0 {
				x = math.Ldexp(float64(m), -9)
			}
			if e == 15 && m == 7 {
				continue // NaN
			}
			require.Equal(t, float32(x), roundFP8(float32(x)))
			require.Equal(t, float32(-x), roundFP8(float32(-x)))
		}
	}
	// 896 is twice the largest: the scale is 2, and 3 becomes 1.5 * 2.
	cache := compress(t, FP8{}, one(2, []float32{896, 3}, []float32{0, 0}))
	require.Equal(t, []float32{896, 3}, cache.Layers[0].K)
	require.Equal(t, []float32{0, 0}, cache.Layers[0].V)
}

func TestTurboQuantProd_Unbiased(t *testing.T) {
	// Over many rows the estimate of <q, k> has slope 1; that of mse at the same width shrinks.
	rng := rand.New(rand.NewPCG(3, 4))
	const rows, dim = 2048, 64
	k := make([]float32, rows*dim)
	for i := range k {
		k[i] = float32(rng.NormFloat64())
	}
	c := one(dim, k, k)
	slope := func(got []float32) float64 { return dot(got, k) / dot(k, k) }
	prod := compress(t, TurboQuantProd{Bits: 2}, c).Layers[0].K
	mse := compress(t, method(t, "tqmse2"), c).Layers[0].K
	require.InDelta(t, 1, slope(prod), 0.01)
	require.Less(t, slope(mse), 0.93)
}

func TestGEAR_LowRank(t *testing.T) {
	// A matrix of rank 2 is exact up to binary16; a third factor is 0.
	rng := rand.New(rand.NewPCG(5, 6))
	const rows, dim = 90, 24
	x := make([]float32, rows*dim)
	for _, strength := range []float32{1, 0.4} {
		u, v := make([]float32, rows), make([]float32, dim)
		for i := range u {
			u[i] = float32(rng.NormFloat64())
		}
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		for i := range x {
			x[i] += strength * u[i/dim] * v[i%dim]
		}
	}
	for _, rank := range []int{1, 2, 3} {
		a, b, err := lowRank(x, rows, dim, rank)
		require.NoError(t, err)
		var s, all float64
		for i, want := range x {
			got := 0.0
			for k := range rank {
				got += float64(a[k][i/dim]) * float64(b[k][i%dim])
			}
			s += (got - float64(want)) * (got - float64(want))
			all += float64(want) * float64(want)
		}
		if rank == 1 {
			// What is left is the weaker direction: about 0.16 parts of 1.16.
			require.Greater(t, s/all, 0.05)
			require.Less(t, s/all, 0.25)
		} else {
			require.Less(t, s/all, 1e-6, "rank %d", rank)
		}
	}
}

func TestGEAR_Outliers(t *testing.T) {
	f := smallFamily(t)
	skip, bytes := GEAR{Share: 0.02}.outliersK(f.future.shapeOf, f.c.Layers[0].K)
	require.EqualValues(t, 2*64*4*4, bytes)
	k := f.future.k(f.c.Layers[0].K, 1)
	for ch := range 64 {
		var column []float32
		marked := 0
		for r := range k.Len() {
			column = append(column, k.Row(r)[ch])
		}
		slices.Sort(column)
		for r := range k.Len() {
			if skip[len(k.Data)+r*64+ch] {
				marked++
				x := k.Row(r)[ch]
				require.True(t, x <= column[1] || x >= column[len(column)-2])
			}
		}
		require.Equal(t, 4, marked)
	}
	// They do not change.
	cache := compress(t, GEAR{Bits: 2}, f.c)
	for i, s := range skip {
		if s {
			require.Equal(t, f.c.Layers[0].K[i], cache.Layers[0].K[i])
		}
	}
}
