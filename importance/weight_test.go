// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

func drawWeighting(t *rapid.T) Weighting {
	e := func(name string) float64 {
		return rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(-4, 4)).Draw(t, name)
	}
	u := func(name string) float64 { return rapid.Float64Range(0, 1).Draw(t, name) }
	return Weighting{
		Relevance: e("relevance"), Expected: e("expected"),
		ValueNorm: e("value-norm"), Surprise: e("surprise"),
		Surprisal: e("surprisal"), Habituation: e("habituation"), Decay: 2 * u("decay"),
		Attention: RelevanceConfig{Window: rapid.IntRange(0, 999).Draw(t, "window"),
			Mix: u("mix"), HalfLife: 1e3 * u("half-life"), Power: rapid.IntRange(0, 2).Draw(t, "power"),
			MaxTokens: rapid.IntRange(0, 1e6).Draw(t, "max-tokens")},
		Horizon: rapid.IntRange(0, 999).Draw(t, "horizon"),
		Shape: ShapeConfig{Sinks: rapid.IntRange(0, 9).Draw(t, "sinks"),
			Smooth: 2*rapid.IntRange(0, 9).Draw(t, "smooth") + 1, Floor: u("floor"), Temper: u("temper")},
		Temperature: 16 * u("temperature"),
		Min:         rapid.Float64Range(1e-6, 1).Draw(t, "min"),
		Max:         rapid.Float64Range(1, 1e6).Draw(t, "max"),
	}
}

func TestWeighting_TextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawWeighting(t)
		require.NoError(t, p.validate())
		got, err := ParseWeighting(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	})
	require.Equal(t, "none", Weighting{}.String())
	p, err := ParseWeighting("none")
	require.NoError(t, err)
	require.Equal(t, Weighting{}, p)
	p, err = ParseWeighting("default,smooth=5,surprise=0.25")
	require.NoError(t, err)
	want := defaultWeighting()
	want.Shape.Smooth, want.Surprise = 5, 0.25
	require.Equal(t, want, p)
}

func TestParseWeighting_Refuses(t *testing.T) {
	for _, text := range []string{"", "x", "relevance", "relevance=", "relevance=one", "window=1.5",
		"relevance=5", "relevance=NaN", "decay=-1", "decay=3", "mix=2", "smooth=4", "min=0.5,min=0.6",
		"min=2", "max=0.5", "max=Inf", "temperature=-1", "relevance=1,default", "=1", "relevance=1,",
		"horizon=-1", "window=99999999999999999999", strings.Repeat("a", 1<<16)} {
		_, err := ParseWeighting(text)
		require.ErrorIs(t, err, quant.ErrShape, "%.40q", text)
		require.Less(t, len(err.Error()), 200)
	}
}

func FuzzParseWeighting(f *testing.F) {
	for _, s := range []string{"none", "default", defaultWeighting().String(), "mix=0x1p-3",
		"relevance=-0", "min=1e-300", "window=+7", ",,", "default,default"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseWeighting(text)
		if err != nil {
			require.ErrorIs(t, err, quant.ErrShape)
			return
		}
		again, err := ParseWeighting(p.String())
		require.NoError(t, err)
		require.Equal(t, p.String(), again.String())
		s := signals{}
		for i := range s {
			s[i] = []float64{0, 1, 2}
		}
		for _, w := range combine(t, p, s, 3) {
			require.True(t, w > 0 || p.Min < 1e-37, "%v", w)
		}
	})
}

func TestWeighting_Uses(t *testing.T) {
	p := defaultWeighting()
	require.NoError(t, p.validate())
	require.True(t, p.uses(signalRelevance))
	for s := signalExpected; s <= signalDecay; s++ {
		require.False(t, p.uses(s), "%v is off until it is shown to pay", s)
	}
	require.False(t, p.uses(signal(99)))
	require.Equal(t, "Signal(99)", signal(99).String())
	require.Equal(t, "value-norm", signalValueNorm.String())
}

func combine(t require.TestingT, p Weighting, s signals, n int) []float64 {
	w := make([]float32, n)
	require.NoError(t, combineInto(w, &p, &s))
	out := make([]float64, n)
	for i, v := range w {
		out[i] = float64(v)
	}
	return out
}

func TestCombine_IsTheProductOfPowers(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	const n = 50
	var s signals
	for i := range s {
		s[i] = make([]float64, n)
		for j := range s[i] {
			s[i][j] = 0.5 + rng.Float64()
		}
	}
	p := Weighting{Relevance: 1, Expected: 2, ValueNorm: 0.5, Surprise: 0.25, Surprisal: -0.5,
		Habituation: 1, Decay: 0.5, Temperature: 1.5}
	want := make([]float64, n)
	for j := range want {
		want[j] = math.Pow(s[0][j]*s[1][j]*s[1][j]*math.Sqrt(s[2][j])*math.Pow(s[3][j], 0.25)/
			math.Sqrt(s[4][j])*s[5][j]*s[6][j], 1.5)
	}
	m := mean(want)
	for j := range want {
		want[j] /= m
	}
	close32(t, want, combine(t, p, s, n), 1e-6)
	// A signal that is off is not looked at.
	s[2], p.ValueNorm = nil, 0
	require.NoError(t, combineInto(make([]float32, n), &p, &s))
	require.Equal(t, []float64{1, 1, 1}, combine(t, Weighting{}, signals{}, 3))
	require.Empty(t, combine(t, Weighting{}, signals{}, 0))
}

func TestCombine_Properties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawWeighting(t)
		n := rapid.IntRange(1, 60).Draw(t, "n")
		value := rapid.OneOf(rapid.Float64Range(0, 2), rapid.SampledFrom([]float64{0, 5e-324, 1e-310,
			math.MaxFloat64}))
		var s, turned, up signals
		for i := range s {
			s[i] = rapid.SliceOfN(value, n, n).Draw(t, "signal")
			for j := range s[i] {
				turned[i] = append(turned[i], s[i][(j+1)%n])
				up[i] = append(up[i], s[i][j]/2)
				if s[i][j] < 1e-300 {
					up[i][j] = 0
					s[i][j], turned[i] = 0, append(turned[i][:j], zeroTiny(s[i][(j+1)%n]))
				}
			}
			for j := range turned[i] {
				turned[i][j] = zeroTiny(turned[i][j])
			}
		}
		w := combine(t, p, s, n)
		w2 := combine(t, p, turned, n)
		for i := range w {
			require.True(t, w[i] >= float64(float32(p.Min)) && w[i] <= float64(float32(p.Max)))
			require.InEpsilon(t, w[(i+1)%n], w2[i], 1e-6, "the order of tokens does not matter")
		}
		require.InEpsilonSlice(t, w, combine(t, p, up, n), 1e-5, "nor the scale of a signal")
		// The mean is 1 wherever clipping leaves a choice: all may be raised or lowered.
		require.InDelta(t, 1, mean(w), 1e-5)
	})
}

func zeroTiny(x float64) float64 {
	if x < 1e-300 {
		return 0
	}
	return x
}

func TestCombine_OneTokenTakesAllItMay(t *testing.T) {
	s := signals{make([]float64, 1000)}
	s[0][17] = 1
	w := combine(t, Weighting{Relevance: 1}, s, 1000)
	require.Equal(t, 64.0, w[17])
	require.InDelta(t, 1, mean(w), 1e-5, "the others share the rest, instead of being starved")
	require.InDelta(t, (1000-64)/999.0, w[0], 1e-5)
	require.Equal(t, []float64{1, 1}, combine(t, Weighting{Relevance: 1},
		signals{{0, 0}}, 2))
}

// Every field of Signals is the signal of its name.
func TestCombine_Fields(t *testing.T) {
	given := Signals{Relevance: []float64{0, 1}, Expected: []float64{0, 2}, ValueNorm: []float64{0, 3},
		Surprise: []float64{0, 4}, Surprisal: []float64{0, 5}, Habituation: []float64{0, 6}, Decay: []float64{0, 7}}
	for _, one := range (&Weighting{}).fields()[:numSignals] {
		p, err := ParseWeighting(one.name + "=1")
		require.NoError(t, err)
		w := make([]float32, 2)
		require.NoError(t, Combine(w, &p, &given))
		require.Less(t, w[0], w[1], one.name)
		var other Signals
		require.ErrorContains(t, Combine(w, &p, &other), "combine "+one.name+": ")
	}
}

func TestCombine_Refuses(t *testing.T) {
	p := Weighting{Surprise: 1}
	dst := []float32{7, 7}
	for _, bad := range [][]float64{nil, {1}, {1, math.NaN()}, {1, math.Inf(1)}, {-1, 1}} {
		var s signals
		s[signalSurprise] = bad
		err := combineInto(dst, &p, &s)
		require.ErrorContains(t, err, "combine surprise: ")
		want := quant.ErrShape
		if len(bad) == 2 {
			want = quant.ErrRange
		}
		require.ErrorIs(t, err, want)
	}
	p.Min = 2
	require.ErrorIs(t, combineInto(dst, &p, &signals{}), quant.ErrShape)
	require.Equal(t, []float32{7, 7}, dst)
}
