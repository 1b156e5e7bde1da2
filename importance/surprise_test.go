// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

func surpriseOf(t require.TestingT, dim int) *surprise {
	s, err := newSurprise(dim, surpriseConfig{})
	require.NoError(t, err)
	return s
}

func surpriseAll(t require.TestingT, s *surprise, x quant.Rows) []float64 {
	out := make([]float64, x.Len())
	require.NoError(t, s.Add(out, x))
	return out
}

// drift is a slowly moving row around a large mean, as K without RoPE is.
func drift(rng *rand.Rand, rows, dim int) quant.Rows {
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	state := make([]float64, dim)
	for r := range rows {
		for d := range dim {
			state[d] = 0.9*state[d] + 0.3*rng.NormFloat64()
			x.Data[r*dim+d] = float32(1.5*math.Sin(float64(d)) + state[d])
		}
	}
	return x
}

func mean(x []float64) (m float64) {
	for _, v := range x {
		m += v / float64(len(x))
	}
	return m
}

func TestSurprise_NeedleStandsOut(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	const rows, dim, at = 400, 32, 300
	x := drift(rng, rows, dim)
	copy(x.Row(at), randomRows(rng, 1, dim, 1.5).Data)
	out := surpriseAll(t, surpriseOf(t, dim), x)
	require.InDelta(t, 1, out[0], 1e-12, "nothing is known of the first row")
	usual := mean(out[100:at])
	require.Less(t, usual, 0.35)
	require.Greater(t, out[at], 0.8)
	for i, v := range out[1:] {
		if i+1 != at {
			require.Less(t, v, out[at], "row %d", i+1)
		}
	}
	t.Logf("usual %.3f, needle %.3f", usual, out[at])
}

func TestSurprise_LinearLearnsARotation(t *testing.T) {
	// Every row is a fixed combination of the two before: x[t] = 2cos(w) x[t-1] - x[t-2].
	x := quant.Rows{Dim: 8, Data: make([]float32, 8*300)}
	for r := range 300 {
		for d := range 8 {
			x.Row(r)[d] = float32(math.Sin(0.3*float64(r) + float64(d)))
		}
	}
	out := surpriseAll(t, surpriseOf(t, 8), x)
	require.Less(t, mean(out[200:]), 0.01)
}

func TestSurprise_MemoryLearnsARecurringSet(t *testing.T) {
	// Eight rows in random order: no line through the past helps, having seen them does.
	rng := rand.New(rand.NewPCG(13, 14))
	set := randomRows(rng, 8, 32, 1)
	x := quant.Rows{Dim: 32}
	for range 300 {
		x.Data = append(x.Data, set.Row(rng.IntN(8))...)
	}
	out := surpriseAll(t, surpriseOf(t, 32), x)
	require.Less(t, mean(out[100:]), 0.05)
}

func TestSurprise_NoiseIsNotPredicted(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	out := surpriseAll(t, surpriseOf(t, 64), randomRows(rng, 500, 64, 1))
	require.InDelta(t, 1, mean(out[100:]), 0.15)
}

func TestSurprise_StreamingCausalScale(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 18))
	x := drift(rng, 120, 16)
	whole := surpriseAll(t, surpriseOf(t, 16), x)
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.IntRange(0, 120).Draw(t, "cut")
		s := surpriseOf(t, 16)
		first := surpriseAll(t, s, part(x, 0, cut))
		fork := s.Clone()
		require.Equal(t, whole, append(first, surpriseAll(t, s, part(x, cut, 120))...))
		// Another future, and the past as it was.
		surpriseAll(t, fork, randomRows(rng, 5, 16, 3))
		require.Equal(t, whole[:cut], first)
		exp := rapid.IntRange(-40, 40).Draw(t, "exponent")
		factor := float32(math.Ldexp(1, exp))
		require.Equal(t, whole, surpriseAll(t, surpriseOf(t, 16), scaled(x, factor)))
	})
}

func TestSurprise_AnyRowsGiveNumbersInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dim := rapid.IntRange(1, 9).Draw(t, "dim")
		vals := []float32{0, 0, 1, -1, 1e-45, -1e-40, math.MaxFloat32, -math.MaxFloat32, 1e20, 3e-20}
		x := quant.Rows{Dim: dim, Data: make([]float32, dim*rapid.IntRange(0, 60).Draw(t, "rows"))}
		for i := range x.Data {
			x.Data[i] = rapid.SampledFrom(vals).Draw(t, "x")
		}
		s, err := newSurprise(dim, surpriseConfig{
			Order: rapid.IntRange(1, 8).Draw(t, "order"), Entries: rapid.IntRange(1, 5).Draw(t, "n"),
			HalfLife: rapid.Float64Range(1, 1e6).Draw(t, "half-life")})
		require.NoError(t, err)
		for _, v := range surpriseAll(t, s, x) {
			require.True(t, v >= 0 && v <= 2, "%v", v)
		}
	})
}

func TestSurprise_Edges(t *testing.T) {
	s := surpriseOf(t, 4)
	require.NoError(t, s.Add(nil, quant.Rows{Dim: 4}))
	require.Equal(t, []float64{0, 0}, surpriseAll(t, s, quant.Rows{Dim: 4, Data: make([]float32, 8)}))
	before := s.Clone()
	bad := quant.Rows{Dim: 4, Data: []float32{1, 2, 3, 4, 5, 6, float32(math.NaN()), 8}}
	err := s.Add(make([]float64, 2), bad)
	require.ErrorIs(t, err, quant.ErrRange)
	require.Contains(t, err.Error(), "row 1")
	require.Equal(t, before, s, "a refused call leaves the state alone")
	room := make([]float64, 2)
	require.ErrorIs(t, s.Add(room[:1], quant.Rows{Dim: 4, Data: make([]float32, 8)}), quant.ErrShape)
	require.ErrorIs(t, s.Add(room, quant.Rows{Dim: 2, Data: make([]float32, 4)}), quant.ErrShape)
	require.ErrorIs(t, s.Add(nil, quant.Rows{Dim: -4, Data: make([]float32, 4)}), quant.ErrShape)
	for _, cfg := range []surpriseConfig{{Order: 9}, {Order: -1}, {Entries: -1},
		{Entries: 1 << 20}, {HalfLife: 0.1}, {HalfLife: math.NaN()}, {HalfLife: math.Inf(1)}} {
		_, err := newSurprise(4, cfg)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = newSurprise(0, surpriseConfig{})
	require.ErrorIs(t, err, quant.ErrShape)
	require.Less(t, surpriseOf(t, 64).StateBytes(), int64(8<<10))
}

func TestSurprisalWeight_IsMonotone(t *testing.T) {
	last := 0.0
	for _, s := range []float64{math.Inf(-1), -1e-9, 0, 1e-300, 0.5, 3, 12, 24, 1000, math.Inf(1)} {
		w, err := surprisalWeight(s)
		require.NoError(t, err)
		require.True(t, w >= last && w >= 1 && w <= 9)
		last = w
	}
	w, _ := surprisalWeight(3)
	require.Equal(t, 2.0, w)
	_, err := surprisalWeight(math.NaN())
	require.ErrorIs(t, err, quant.ErrRange)
}

func TestDeviation_MeasuresFromThePastMean(t *testing.T) {
	rng := rand.New(rand.NewPCG(19, 20))
	x := randomRows(rng, 50, 8, 1)
	d, err := newDeviation(8)
	require.NoError(t, err)
	got := make([]float64, 50)
	require.NoError(t, d.Add(got[:20], part(x, 0, 20)))
	require.NoError(t, d.Clone().Add(make([]float64, 5), randomRows(rng, 5, 8, 9)))
	require.NoError(t, d.Add(got[20:], part(x, 20, 50)))
	want := make([]float64, 50)
	for r := range want {
		var e float64
		for c := range 8 {
			var m float64
			for p := range r {
				m += float64(x.Row(p)[c]) / float64(r)
			}
			e += (float64(x.Row(r)[c]) - m) * (float64(x.Row(r)[c]) - m)
		}
		want[r] = math.Sqrt(e)
	}
	close32(t, want, got, 1e-12)
	require.ErrorIs(t, d.Add(got, withNaN(x)), quant.ErrRange)
	require.ErrorIs(t, d.Add(got[:3], x), quant.ErrShape)
	_, err = newDeviation(0)
	require.ErrorIs(t, err, quant.ErrShape)
}
