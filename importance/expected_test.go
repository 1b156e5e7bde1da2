// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// skewed are queries with a mean and with components that depend on each other.
func skewed(rng *rand.Rand, n, dim int) quant.Rows {
	x := randomRows(rng, n, dim, 0.5)
	for r := range n {
		row := x.Row(r)
		for d := range row {
			row[d] += float32(math.Cos(float64(d))) + 0.7*row[(d+dim-1)%dim]
		}
	}
	return x
}

func turned(x quant.Rows, rope quant.Rope, at func(i int) float64) quant.Rows {
	out := scaled(x, 1)
	for r := range x.Len() {
		row := out.Row(r)
		for i, f := range rope.Frequencies() {
			a, b := i, i+rope.RotaryDim/2
			if rope.Layout == quant.RopeInterleaved {
				a, b = 2*i, 2*i+1
			}
			sin, cos := math.Sincos(f * at(r))
			u, v := float64(row[a]), float64(row[b])
			row[a], row[b] = float32(u*cos-v*sin), float32(u*sin+v*cos)
		}
	}
	return out
}

// gaussian is log E[exp(scale*q.k)] by the formula, from the moments of the rows q themselves.
func gaussian(q, k quant.Rows, scale float64, full bool) []float64 {
	n, dim := float64(q.Len()), q.Dim
	mu := make([]float64, dim)
	for r := range q.Len() {
		for d, v := range q.Row(r) {
			mu[d] += float64(v) / n
		}
	}
	out := make([]float64, k.Len())
	for t := range out {
		var quad, lin float64
		for d, v := range k.Row(t) {
			lin += mu[d] * float64(v)
		}
		for r := range q.Len() {
			if full {
				var s float64
				for d, v := range q.Row(r) {
					s += (float64(v) - mu[d]) * float64(k.Row(t)[d])
				}
				quad += s * s / n
				continue
			}
			for d, v := range q.Row(r) {
				s := (float64(v) - mu[d]) * float64(k.Row(t)[d])
				quad += s * s / n
			}
		}
		out[t] = scale*lin + scale*scale/2*quad
	}
	return out
}

func TestExpected_IsTheGaussianOfTheQueriesSeen(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	const dim, n = 8, 200
	q, k := skewed(rng, n, dim), randomRows(rng, 30, dim, 1)
	for _, full := range []bool{false, true} {
		s, err := newQueryStats(dim, quant.Rope{}, full)
		require.NoError(t, err)
		require.NoError(t, s.Add(part(q, 0, 77), upTo(77)))
		require.NoError(t, s.Add(part(q, 77, n), upTo(n-77)))
		require.Equal(t, n, s.Len())
		f, err := s.Future(500, 100)
		require.NoError(t, err)
		got := make([]float64, 30)
		require.NoError(t, f.LogScores(got, k, scores{scale: 0.6}))
		close32(t, gaussian(q, k, 0.6, full), got, 1e-9)
	}
}

func TestExpected_AgreesWithManyGaussianQueries(t *testing.T) {
	rng := rand.New(rand.NewPCG(53, 54))
	const dim = 6
	k, q := randomRows(rng, 12, dim, 1), skewed(rng, 200000, dim)
	s, err := newQueryStats(dim, quant.Rope{}, true)
	require.NoError(t, err)
	require.NoError(t, s.Add(q, make([]int64, q.Len())))
	f, err := s.Future(0, 1)
	require.NoError(t, err)
	got := make([]float64, 12)
	require.NoError(t, f.LogScores(got, k, scores{scale: 0.3}))
	for r := range got {
		var e float64
		for i := range q.Len() {
			var sc float64
			for d, v := range q.Row(i) {
				sc += float64(v) * float64(k.Row(r)[d])
			}
			e += math.Exp(0.3*sc) / float64(q.Len())
		}
		require.InDelta(t, math.Log(e), got[r], 0.03)
	}
}

func TestExpected_TurnsToFuturePositions(t *testing.T) {
	rng := rand.New(rand.NewPCG(55, 56))
	const dim, n, ahead = 8, 60, 16
	for _, layout := range []quant.RopeLayout{quant.RopeHalf, quant.RopeInterleaved} {
		rope := quant.Rope{Layout: layout, RotaryDim: 6, Theta: 50}
		q, k := skewed(rng, n, dim), randomRows(rng, 20, dim, 1)
		s, err := newQueryStats(dim, rope, true)
		require.NoError(t, err)
		require.NoError(t, s.Add(turned(q, rope, func(i int) float64 { return float64(i) }), upTo(n)))
		f, err := s.Future(100, ahead)
		require.NoError(t, err)
		var all []quant.Rows // every query at every future position
		for p := range ahead {
			all = append(all, turned(q, rope, func(int) float64 { return float64(100 + p) }))
		}
		got := make([]float64, 20)
		require.NoError(t, f.LogScores(got, k, scores{scale: 0.6}))
		want := gaussian(join(all...), k, 0.6, true)
		for i := range want {
			require.InDelta(t, want[i], got[i], 1e-5)
		}
	}
}

func TestQueryStats_CloneAndState(t *testing.T) {
	rng := rand.New(rand.NewPCG(57, 58))
	s, err := newQueryStats(8, someRope, false)
	require.NoError(t, err)
	require.NoError(t, s.Add(randomRows(rng, 5, 8, 1), upTo(5)))
	before, err := s.Future(9, 3)
	require.NoError(t, err)
	require.NoError(t, s.Clone().Add(randomRows(rng, 5, 8, 1), upTo(5)))
	after, err := s.Future(9, 3)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, int64(8*(8+8+16)), s.StateBytes())
}

func TestExpected_EdgesAndRefusals(t *testing.T) {
	rng := rand.New(rand.NewPCG(59, 60))
	x := []float64{math.Inf(-1), 0, 700, 700}
	require.NoError(t, expectedAttention(x))
	require.InDelta(t, 0.5, x[2], 1e-9)
	require.Zero(t, x[0])
	none := []float64{math.Inf(-1)}
	require.NoError(t, expectedAttention(none))
	require.Equal(t, []float64{0}, none)
	require.NoError(t, expectedAttention(nil))
	require.ErrorIs(t, expectedAttention([]float64{math.NaN()}), quant.ErrRange)
	require.ErrorIs(t, expectedAttention([]float64{math.Inf(1)}), quant.ErrRange)

	s, err := newQueryStats(8, someRope, true)
	require.NoError(t, err)
	_, err = s.Future(0, 1)
	require.ErrorIs(t, err, quant.ErrShape, "no queries")
	q := randomRows(rng, 4, 8, 1)
	require.ErrorIs(t, s.Add(withNaN(q), upTo(4)), quant.ErrRange)
	require.ErrorIs(t, s.Add(q, upTo(3)), quant.ErrShape)
	require.ErrorIs(t, s.Add(randomRows(rng, 4, 4, 1), upTo(4)), quant.ErrShape)
	require.Zero(t, s.Len())
	huge := quant.Rows{Dim: 8, Data: make([]float32, 16)}
	for i := range huge.Data {
		huge.Data[i] = math.MaxFloat32 * float32(1-i%2*2)
	}
	require.NoError(t, s.Add(huge, upTo(2)))
	f, err := s.Future(0, 1)
	require.NoError(t, err)
	got := make([]float64, 2)
	require.NoError(t, f.LogScores(got, huge, scores{scale: 1}))
	require.NoError(t, expectedAttention(got))
	require.False(t, math.IsNaN(got[0]+got[1]))
	require.ErrorIs(t, f.LogScores(got, withNaN(huge), scores{scale: 1}), quant.ErrRange)
	require.ErrorIs(t, f.LogScores(got[:1], huge, scores{scale: 1}), quant.ErrShape)
	require.ErrorIs(t, f.LogScores(got, huge, scores{scale: math.NaN()}), quant.ErrShape)
	for _, c := range []struct{ first, n int64 }{{0, 0}, {-1, 1}, {1 << 50, 1}} {
		_, err = s.Future(c.first, int(c.n))
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = newQueryStats(0, quant.Rope{}, true)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = newQueryStats(8, quant.Rope{Layout: quant.RopeHalf, RotaryDim: 9}, true)
	require.ErrorIs(t, err, quant.ErrShape)
}

// Moments that a profile holds give the weights that their queries give.
func TestTracker_Expect(t *testing.T) {
	const dim, tokens = 16, 60
	rng := rand.New(rand.NewPCG(5, 5))
	draw := func(rows int) quant.Rows {
		x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
		for i := range x.Data {
			x.Data[i] = float32(rng.NormFloat64() + float64(i%3))
		}
		return x
	}
	rope := quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 1e4}
	p, err := ParseWeighting("expected=1")
	require.NoError(t, err)
	k, v := draw(tokens), draw(tokens)
	q := []quant.Rows{draw(40), draw(40)}
	weights := func(see func(tr *Tracker) error) []float32 {
		tr, err := NewTracker(p, dim, dim, rope)
		require.NoError(t, err)
		require.NoError(t, tr.Append(k, v, nil))
		require.NoError(t, see(tr))
		require.True(t, tr.Observed())
		w := make([]float32, tokens)
		_, err = tr.Weights(w, k)
		require.NoError(t, err)
		return w
	}
	pos := make([]int64, 40)
	for i := range pos {
		pos[i] = int64(i)
	}
	var moments []QueryMoments
	for _, x := range q {
		c, err := NewQueryCounter(dim, rope)
		require.NoError(t, err)
		require.NoError(t, c.Add(x, pos))
		moments = append(moments, c.Moments())
	}
	want := weights(func(tr *Tracker) error { return tr.ObserveQueries(0, q...) })
	got := weights(func(tr *Tracker) error { return tr.Expect(moments...) })
	require.InDeltaSlice(t, want, got, 1e-6)
	require.Greater(t, slices.Max(want), 2*slices.Min(want))

	tr, err := NewTracker(p, dim, dim, rope)
	require.NoError(t, err)
	require.ErrorIs(t, tr.Expect(), quant.ErrShape)
	require.ErrorIs(t, tr.Expect(QueryMoments{}), quant.ErrShape)
	moments[1].Variance[3] = -1
	require.ErrorIs(t, tr.Expect(moments...), quant.ErrRange)
}
