// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// seenOnly masks an attention matrix to a window and normalises its rows again.
func seenOnly(a [][]float64, sees int) [][]float64 {
	for i, row := range a {
		var sum float64
		for t := range row {
			if t <= i-sees {
				row[t] = 0
			}
			sum += row[t]
		}
		for t := range row {
			row[t] /= sum
		}
	}
	return a
}

// In a layer with a window, the relevance of a token is the root mean square attention over the
// queries that could see it, by the whole matrix.
func TestRelevance_OverTheQueriesThatSaw(t *testing.T) {
	rng := rand.New(rand.NewPCG(71, 72))
	const n, dim, window = 203, 8, 16
	q, k := randomRows(rng, n, dim, 1), randomRows(rng, n, dim, 1)
	for _, sees := range []int{1, 2, 15, 16, 17, 40, 150, 202, 203, 1000} {
		a := seenOnly(attention(q, k, 0.4), sees)
		r, err := NewRelevance(RelevanceConfig{Window: window, Mix: 1, Sees: int64(sees)})
		require.NoError(t, err)
		for first := 0; first < n; {
			m := min(r.room(), n-first, 1+rng.IntN(9))
			sum := make([]float32, n)
			for _, row := range a[first : first+m] {
				for x, p := range row {
					sum[x] += float32(p * p)
				}
			}
			require.NoError(t, r.Add(Queries{First: int64(first), N: m, Group: 1}, RowSums{Sum: sum[:first+m]}))
			first += m
		}
		got := make([]float64, n)
		require.NoError(t, r.Values(got))
		for x := range n {
			var sum float64
			last := min(n-1, x+sees-1)
			for i := x; i <= last; i++ {
				sum += a[i][x] * a[i][x]
			}
			// Where some queries of a far window saw the token, it counts the share of them that did.
			require.InDelta(t, math.Sqrt(sum/float64(last-x+1)), got[x], 1e-4, "sees %d token %d", sees, x)
		}
	}
}

// A window that reaches behind all tokens changes no bit.
func TestRelevance_WideWindowIsNone(t *testing.T) {
	rng := rand.New(rand.NewPCG(73, 74))
	const n = 90
	values := func(sees int64) []float64 {
		rng := rand.New(rand.NewPCG(75, 76))
		r, err := NewRelevance(RelevanceConfig{Window: 16, Mix: 0.3, HalfLife: 20, Sees: sees})
		require.NoError(t, err)
		for first := 0; first < n; {
			m := min(r.room(), n-first)
			sum := make([]float32, first+m)
			for i := range sum {
				sum[i] = rng.Float32()
			}
			require.NoError(t, r.Add(Queries{First: int64(first), N: m, Group: 2}, RowSums{Sum: sum}))
			first += m
		}
		out := make([]float64, n)
		require.NoError(t, r.Values(out))
		return out
	}
	want := values(0)
	for i, v := range values(int64(n + rng.IntN(5))) {
		require.InEpsilon(t, want[i], v, 1e-12)
	}
	_, err := NewRelevance(RelevanceConfig{Sees: -1})
	require.ErrorIs(t, err, quant.ErrShape)
}

// Expected attention of a layer with a window lies on the rows that the next queries see, as if there
// were no others.
func TestTracker_ExpectedWithinTheWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(77, 78))
	const n, dim, sees = 60, 8, 20
	q, k := skewed(rng, n, dim), randomRows(rng, n, dim, 1)
	weights := func(w Weighting, k quant.Rows, from int) []float32 {
		tr, err := NewTracker(w, dim, dim, quant.Rope{})
		require.NoError(t, err)
		require.NoError(t, tr.Append(k, k, nil))
		require.NoError(t, tr.ObserveQueries(0, q))
		out := make([]float32, k.Len())
		_, err = tr.Weights(out, k)
		require.NoError(t, err)
		return out[from:]
	}
	w := Weighting{Expected: 1, Scale: 0.3, Softcap: 20, Min: 1e-9, Max: 1e9}
	seen := sees - 1 // the next query takes a place of its own
	w.Shape.Sinks = n - seen
	windowed := w
	windowed.Attention.Sees = sees
	got := weights(windowed, k, n-seen)
	w.Shape.Sinks = 0
	want := weights(w, quant.Rows{Dim: dim, Data: k.Data[(n-seen)*dim:]}, 0)
	f := float64(got[0]) / float64(want[0]) // normalised over all tokens, or those seen
	for i := range want {
		require.InEpsilon(t, f*float64(want[i]), float64(got[i]), 1e-5)
	}

	// A short window leaves nothing to weigh, and no row of K too few is read.
	windowed.Attention.Sees = 1
	windowed.Shape.Sinks = n
	for _, v := range weights(windowed, k, 0) {
		require.Equal(t, float32(1), v)
	}
}

// A soft cap bounds what is expected of a score, and a wide one changes nothing.
func TestScores_Capped(t *testing.T) {
	rng := rand.New(rand.NewPCG(79, 80))
	const dim = 8
	s, err := newQueryStats(dim, quant.Rope{}, false)
	require.NoError(t, err)
	require.NoError(t, s.Add(skewed(rng, 100, dim), upTo(100)))
	f, err := s.Future(0, 1)
	require.NoError(t, err)
	k := randomRows(rng, 40, dim, 3)
	plain, wide, tight := make([]float64, 40), make([]float64, 40), make([]float64, 40)
	require.NoError(t, f.LogScores(plain, k, scores{scale: 1}))
	require.NoError(t, f.LogScores(wide, k, scores{scale: 1, softcap: 1e7}))
	require.NoError(t, f.LogScores(tight, k, scores{scale: 1, softcap: 2}))
	for i := range plain {
		require.InDelta(t, plain[i], wide[i], 1e-6*(1+math.Abs(plain[i])))
		require.LessOrEqual(t, math.Abs(tight[i]), 2.0)
	}
}
