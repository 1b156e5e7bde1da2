// SPDX-License-Identifier: Apache-2.0

package spectrum_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/spectrum"
	"github.com/kvist-project/kvist/quant"
)

// measure adds rows in pieces of n.
func measure(t *testing.T, dim int, rows []float32, n int) spectrum.Spectrum {
	t.Helper()
	a, err := spectrum.New(dim)
	require.NoError(t, err)
	for len(rows) > 0 {
		k := min(n*dim, len(rows))
		require.NoError(t, a.Add(rows[:k]))
		rows = rows[k:]
	}
	s, err := a.Result()
	require.NoError(t, err)
	return s
}

func gaussian(n int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func TestSpectrum_KnownRanks(t *testing.T) {
	const dim, rows = 16, 5000
	white := measure(t, dim, gaussian(dim*rows, 1), 100)
	require.InDelta(t, dim, white.EffectiveRank, 0.1)
	require.Equal(t, int64(rows), white.Rows)
	require.Equal(t, dim, white.Components99)
	require.InDelta(t, 15, white.Components90, 1)

	// Along one line, far from the origin: the mean does not count.
	line := make([]float32, dim*rows)
	for r := range rows {
		for i := range dim {
			line[r*dim+i] = 1000 + float32(r%7)*float32(i+1)
		}
	}
	one := measure(t, dim, line, 333)
	require.InDelta(t, 1, one.EffectiveRank, 0.01)
	require.InDelta(t, 1, one.TopShare, 1e-3)
	require.Equal(t, 1, one.Components90)
	require.Equal(t, 1, one.Components99)

	// Two directions with variances 4 and 1: entropy of (0.8, 0.2).
	two := gaussian(dim*rows, 2)
	for r := range rows {
		clear(two[r*dim+2 : (r+1)*dim])
		two[r*dim] *= 2
	}
	got := measure(t, dim, two, rows)
	want := math.Exp(-0.8*math.Log(0.8) - 0.2*math.Log(0.2))
	require.InDelta(t, want, got.EffectiveRank, 0.03)
	require.InDelta(t, 0.8, got.TopShare, 0.01)
	require.Equal(t, 2, got.Components90)
}

func TestSpectrum_PiecesDoNotMatter(t *testing.T) {
	x := gaussian(24*777, 3)
	a, b := measure(t, 24, x, 1), measure(t, 24, x, 500)
	require.Equal(t, a, b)
}

// Few rows take another way to the same numbers.
func TestSpectrum_FewRows(t *testing.T) {
	const dim, rows = 40, 39
	x := gaussian(dim*rows, 5)
	few := measure(t, dim, x, 7)
	twice := measure(t, dim, append(append([]float32(nil), x...), x...), 7) // the same covariance
	require.Equal(t, int64(rows), few.Rows)
	require.InDelta(t, twice.EffectiveRank, few.EffectiveRank, 1e-6)
	require.InDelta(t, twice.TopShare, few.TopShare, 1e-9)
	require.Equal(t, twice.Components90, few.Components90)
	require.Equal(t, twice.Components99, few.Components99)
	require.Equal(t, spectrum.Spectrum{Dim: dim, Rows: 1}, measure(t, dim, x[:dim], 1), "one row")
}

func TestSpectrum_Degenerate(t *testing.T) {
	nan := float32(math.NaN())
	require.Equal(t, spectrum.Spectrum{Dim: 2}, measure(t, 2, nil, 1))
	require.Equal(t, spectrum.Spectrum{Dim: 2, Rows: 3}, measure(t, 2, []float32{5, 6, 5, 6, 5, 6},
		1), "all rows equal")
	s := measure(t, 2, []float32{1, 0, nan, 1, 0, 1, 1, float32(math.Inf(1)), -1, -1}, 2)
	require.Equal(t, int64(3), s.Rows)
	require.Equal(t, int64(2), s.NonFinite)
	require.False(t, math.IsNaN(s.EffectiveRank))
}

func TestSpectrum_Refusals(t *testing.T) {
	_, err := spectrum.New(0)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = spectrum.New(spectrum.MaxDim + 1)
	require.ErrorIs(t, err, quant.ErrTooLarge)
	a, err := spectrum.New(3)
	require.NoError(t, err)
	require.ErrorIs(t, a.Add(make([]float32, 4)), quant.ErrShape)
}
