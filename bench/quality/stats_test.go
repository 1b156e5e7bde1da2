// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestWilson_KnownIntervals(t *testing.T) {
	// Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
	for _, c := range []struct {
		k, n      int
		low, high float64
	}{{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061,
		0.1718}} {
		got := Wilson(c.k, c.n)
		require.InDelta(t, float64(c.k)/float64(c.n), got.Mean, 1e-12)
		require.InDelta(t, c.low, got.Low, 6e-5)
		require.InDelta(t, c.high, got.High, 6e-5)
	}
	require.True(t, math.IsNaN(Wilson(0, 0).Mean))
}

func TestBootstrap_CoversTheMeanOfNormals(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float64, 400)
	for i := range x {
		x[i] = 5 + 2*r.NormFloat64()
	}
	got := Bootstrap(x)
	require.InDelta(t, mean(x), got.Mean, 1e-12)
	// The standard error of the mean is 0.1: the interval is 1.96 of it to either side.
	require.InDelta(t, 0.196, got.Mean-got.Low, 0.03)
	require.InDelta(t, 0.196, got.High-got.Mean, 0.03)
	require.Equal(t, got, Bootstrap(x), "seeded")
	require.Equal(t, Interval{Mean: 3, Low: 3, High: 3}, Bootstrap([]float64{3}))
}

func TestBootstrapClusters_DrawsWholeClusters(t *testing.T) {
	// Values of a cluster are equal, so 40 clusters of 10 have the interval of 40 values.
	var clusters [][]float64
	var flat, one []float64
	for i := range 40 {
		c := make([]float64, 10)
		for j := range c {
			c[j] = float64(i % 2)
		}
		clusters, flat, one = append(clusters, c), append(flat, c...), append(one, c[0])
	}
	got, naive := BootstrapClusters(clusters), Bootstrap(flat)
	require.Equal(t, 0.5, got.Mean)
	require.InDelta(t, Bootstrap(one).Low, got.Low, 1e-9)
	require.Greater(t, naive.Low-got.Low, 0.08)
	// Clusters of unequal size: the mean is over values.
	require.InDelta(t, 0.25, BootstrapClusters([][]float64{{1}, {0, 0, 0}, {}}).Mean, 1e-12)
}

func TestPairKL_RatioIsGeometric(t *testing.T) {
	diff, ratio := pairKL([]float64{1, 4}, []float64{2, 2})
	require.InDelta(t, 0.5, diff.Mean, 1e-12)
	require.InDelta(t, 1, ratio.Mean, 1e-12)
	require.InDelta(t, 0.5, ratio.Low, 1e-9)
	require.InDelta(t, 2, ratio.High, 1e-9)
	_, ratio = pairKL([]float64{0, 4}, []float64{2, 2})
	require.Zero(t, ratio, "no ratio where a divergence is zero")
}

func TestFamily_Names(t *testing.T) {
	for name, want := range map[string]string{
		"f16": "f16", "u8": "u8", "fp8": "fp8", "kivi4": "kivi",
		"kivi2:window=128": "kivi window=128",
		"ggml-q8_0":        "ggml", "ggml-q4_0:sinks=4": "ggml sinks=4", "snapkv:12.5%": "snapkv",
		"tqmse3:sinks=4": "tqmse sinks=4", "kvist:2.75": "kvist",
		"kvist:bits=3,sinks=8": "kvist sinks=8",
		"lm3+len+s8:sinks=4":   "uniform sinks=4", "lm2": "uniform",
		"uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4": "uniform sinks=4",
	} {
		require.Equal(t, want, family(name), name)
	}
}

func TestSignificant_TwoDigits(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.000036: "0.000036", 0.0123: "0.012",
		12.34: "12",
		1.26:  "1.3", 3e-8: "3.0e-08", -0.00046: "-0.00046"} {
		require.Equal(t, want, Significant(x))
	}
}

func TestComparePairs_BestRivalAtTheSameBytes(t *testing.T) {
	m := func(name string, bits, kl float64) MethodResult {
		texts := []NamedScore{{"a", Score{KL: kl, BitsPerValue: bits}}, {"b", Score{KL: 2 * kl,
			BitsPerValue: bits}}}
		return MethodResult{Name: name, Family: family(name), Texts: texts}
	}
	r := Results{Methods: []MethodResult{m("kvist:3", 3, 0.01), m("kivi2", 3, 0.2), m("tqmse3",
		3.25, 0.03),
		m("kivi4", 5, 0.004), m("kvist:1", 1, 0.5)}}
	r.finish()
	require.NoError(t, r.ComparePairs("kvist"))
	require.Len(t, r.Pairs, 1, "kvist:1 has no rival so small")
	require.Equal(t, "tqmse3", r.Pairs[0].B)
	require.InDelta(t, 1.0/3, r.Pairs[0].Ratio.Mean, 1e-9)
	require.InDelta(t, -0.03, r.Pairs[0].KL.Mean, 1e-9)
	require.InDelta(t, 16.0/3.25, r.Methods[2].Ratio, 1e-9)
}

// Parts of a table merge only if they are of the same measurement.
func TestResults_Merge(t *testing.T) {
	part := func(names ...string) *Results {
		r := &Results{Model: "m", Context: 8, Next: 4, Command: "first",
			Exact: ExactResult{Texts: []NamedScore{{"a", Score{Surprisal: 3}}}}}
		for _, n := range names {
			r.Methods = append(r.Methods, MethodResult{Name: n, Texts: []NamedScore{{"a", Score{}}}})
			r.Pairs = append(r.Pairs, Pair{A: n, B: "x"})
		}
		return r
	}
	r, o := part("f16", "kivi4"), part("kivi4", "kivi2")
	o.Command = "second"
	require.NoError(t, r.Merge(o))
	require.Len(t, r.Methods, 3)
	require.Equal(t, "kivi2", r.Methods[2].Name)
	require.Len(t, r.Pairs, 3)
	require.Contains(t, r.Command, "second")
	for name, change := range map[string]func(*Results){
		"model":     func(o *Results) { o.Model = "n" },
		"context":   func(o *Results) { o.Context = 9 },
		"texts":     func(o *Results) { o.Exact.Texts = nil },
		"name":      func(o *Results) { o.Exact.Texts[0].Text = "b" },
		"surprisal": func(o *Results) { o.Exact.Texts[0].Surprisal = 3.1 },
		"questions": func(o *Results) { o.Exact.Retrieval = &RetrievalResult{} },
	} {
		o := part("new")
		change(o)
		r := part("f16")
		require.ErrorIs(t, r.Merge(o), quant.ErrShape, name)
		require.Len(t, r.Methods, 1, name)
	}
}

// Texts that are measured apart make the table that they make together.
func TestResults_MergeTexts(t *testing.T) {
	of := func(kl ...float64) *Results {
		r := &Results{Format: ResultsFormat, Model: "m", Command: "c"}
		for _, name := range []string{"kvist:2", "tqmse2"} {
			r.Methods = append(r.Methods, MethodResult{Name: name, Family: family(name)})
		}
		for i, v := range kl {
			name := string(rune('a' + int(10*v)))
			r.Exact.Texts = append(r.Exact.Texts, NamedScore{name, Score{Surprisal: v}})
			for j := range r.Methods {
				r.Methods[j].Texts = append(r.Methods[j].Texts, NamedScore{name, Score{KL: v * float64(1+j*(i+1)),
					BitsPerValue: 2, Surprisal: v}})
			}
		}
		r.finish()
		require.NoError(t, r.Compare("kvist:2", "tqmse2"))
		return r
	}
	want := of(0.1, 0.2, 0.3)
	got, last := of(0.1, 0.2), of(0.3)
	last.Methods[1].Texts[0].KL = want.Methods[1].Texts[2].KL
	require.NoError(t, got.Merge(last))
	require.Equal(t, want, got)
	require.ErrorIs(t, got.Merge(of(0.3)), quant.ErrShape, "a text twice")
}
