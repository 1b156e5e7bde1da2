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

var everything = Weighting{Relevance: 0.5, Expected: 0.5, ValueNorm: 0.5,
	Surprise: 0.5, Surprisal: 0.5, Habituation: 1, Decay: 0.3,
	Attention: RelevanceConfig{Window: 16, Mix: 0.2, HalfLife: 50},
	Shape:     ShapeConfig{Sinks: 2, Smooth: 3, Floor: 0.1}}

var someRope = quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}

type history struct {
	k, v, q   quant.Rows
	surprisal []float32
	att       [][]float64
}

func newHistory(seed uint64, n int) *history {
	rng := rand.New(rand.NewPCG(seed, 41))
	h := &history{k: randomRows(rng, n, 16, 1), v: drift(rng, n, 12), q: randomRows(rng, n, 16, 1)}
	for range n {
		h.surprisal = append(h.surprisal, float32(rng.ExpFloat64()*3))
	}
	h.att = attention(h.q, h.k, 0.25)
	return h
}

// play appends tokens [from, to) and lets their queries look back, step tokens at a time.
func (h *history) play(t require.TestingT, tr *Tracker, from, to, step int) {
	for i := from; i < to; {
		n := min(step, tr.Room(), to-i)
		require.NoError(t, tr.Append(part(h.k, i, i+n), part(h.v, i, i+n), h.surprisal[i:i+n]))
		sum := make([]float32, i+n)
		for tok := range sum {
			var s float64
			for _, row := range h.att[i : i+n] {
				s += row[tok] * row[tok]
			}
			sum[tok] = float32(s)
		}
		require.NoError(t, tr.Observe(Queries{First: int64(i), N: n, Group: 1},
			RowSums{Sum: sum}))
		require.NoError(t, tr.ObserveQueries(int64(i), part(h.q, i, i+n), part(h.k, i, i+n)))
		i += n
	}
}

func newTracker(t require.TestingT, p Weighting) *Tracker {
	tr, err := NewTracker(p, 16, 12, someRope)
	require.NoError(t, err)
	return tr
}

func weights(t require.TestingT, tr *Tracker, k quant.Rows) []float64 {
	w := make([]float32, tr.Tokens())
	if len(k.Data) > 0 {
		k = part(k, 0, tr.Tokens())
	}
	_, err := tr.Weights(w, k)
	require.NoError(t, err)
	out := make([]float64, len(w))
	for i, x := range w {
		out[i] = float64(x)
	}
	return out
}

func TestTracker_StreamingEqualsWholeAndIsCausal(t *testing.T) {
	const n = 150
	h, other := newHistory(1, n), newHistory(2, n)
	whole := newTracker(t, everything)
	h.play(t, whole, 0, n, n)
	want := weights(t, whole, h.k)
	require.InDelta(t, 1, mean(want), 1e-5)
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.IntRange(1, n-1).Draw(t, "cut")
		tr := newTracker(t, everything)
		h.play(t, tr, 0, cut, rapid.IntRange(1, 20).Draw(t, "step"))
		fork := tr.Clone()
		before := weights(t, fork, h.k)
		h.play(t, tr, cut, n, rapid.IntRange(1, 20).Draw(t, "step"))
		close32(t, want, weights(t, tr, h.k), 1e-4)
		require.Equal(t, before, weights(t, fork, h.k), "one branch does not show on the other")
		other.play(t, fork, cut, n, 20)
	})
}

func TestTracker_HeadsAreIndependent(t *testing.T) {
	// Whichever order heads are worked on in, each gets the weights of its own history.
	a, b := newHistory(3, 80), newHistory(4, 80)
	t1, t2, t3, t4 := newTracker(t, everything), newTracker(t, everything), newTracker(t, everything),
		newTracker(t, everything)
	a.play(t, t1, 0, 80, 10)
	b.play(t, t2, 0, 80, 10)
	for i := 0; i < 80; i += 5 {
		b.play(t, t4, i, i+5, 5)
		a.play(t, t3, i, i+5, 5)
	}
	close32(t, weights(t, t1, a.k), weights(t, t3, a.k), 1e-4)
	close32(t, weights(t, t2, b.k), weights(t, t4, b.k), 1e-4)
	require.Less(t, spearman(weights(t, t1, a.k), weights(t, t2, b.k)), 0.9)
}

func TestTracker_KeepsOnlyWhatItsWeightingUses(t *testing.T) {
	h := newHistory(5, 64)
	tr := newTracker(t, Weighting{Decay: 0.5})
	require.Equal(t, math.MaxInt32, tr.Room())
	h.play(t, tr, 0, 64, 64)
	require.Less(t, tr.StateBytes(), int64(1024))
	w := weights(t, tr, h.k)
	require.InEpsilon(t, math.Pow(64, 0.5), w[63]/w[0], 0.05)
	full := newTracker(t, everything)
	h.play(t, full, 0, 64, 64)
	require.Greater(t, full.StateBytes(), tr.StateBytes())

	none := newTracker(t, Weighting{})
	require.NoError(t, none.Append(h.k, h.v, nil))
	for _, v := range weights(t, none, h.k) {
		require.Equal(t, 1.0, v)
	}
}

func TestTracker_FallsBackWhenAttentionCollapsed(t *testing.T) {
	h := newHistory(6, 64)
	tr := newTracker(t, defaultWeighting())
	require.NoError(t, tr.Append(h.k, h.v, nil))
	sum := make([]float32, 64)
	sum[20] = 1
	require.NoError(t, tr.Observe(Queries{First: 64, N: 1, Group: 1},
		RowSums{Sum: sum}))
	w := make([]float32, 64)
	c, err := tr.Weights(w, quant.Rows{})
	require.NoError(t, err)
	require.True(t, c.Collapsed)
	require.Contains(t, c.Reason, "of 60 rows", "sinks are left out")
	for _, v := range w {
		require.Equal(t, float32(1), v)
	}
}

func TestTracker_Truncate(t *testing.T) {
	h := newHistory(7, 120)
	tr := newTracker(t, everything)
	h.play(t, tr, 0, 100, 10)
	require.NoError(t, tr.Truncate(50))
	require.Equal(t, 50, tr.Tokens())
	require.Len(t, weights(t, tr, h.k), 50)
	h.play(t, tr, 50, 120, 10)
	require.Len(t, weights(t, tr, h.k), 120)
	require.ErrorIs(t, tr.Truncate(121), quant.ErrShape)
	require.ErrorIs(t, tr.Truncate(-1), quant.ErrShape)
	require.NoError(t, tr.Truncate(0))
	require.Empty(t, weights(t, tr, h.k))
}

func TestTracker_RefusedCallsLeaveItAlone(t *testing.T) {
	h := newHistory(8, 40)
	tr := newTracker(t, everything)
	h.play(t, tr, 0, 20, 10)
	before := weights(t, tr, h.k)
	k, v, s := part(h.k, 20, 40), part(h.v, 20, 40), h.surprisal[20:40]
	nan := append([]float32(nil), s...)
	nan[3] = float32(math.NaN())
	huge := scaled(v, 1)
	huge.Data[50] = math.MaxFloat32
	for name, c := range map[string]struct {
		k, v quant.Rows
		s    []float32
		want error
	}{
		"nan in k":         {withNaN(k), v, s, quant.ErrRange},
		"nan in v":         {k, withNaN(v), s, quant.ErrRange},
		"nan in surprisal": {k, v, nan, quant.ErrRange},
		"huge v":           {k, huge, s, quant.ErrRange},
		"rows":             {k, part(v, 0, 3), s, quant.ErrShape},
		"surprisal":        {k, v, nil, quant.ErrShape},
		"head_dim":         {quant.Rows{Dim: 12, Data: v.Data}, v, s, quant.ErrShape},
		"head_dim_v":       {k, quant.Rows{Dim: 16, Data: k.Data}, s, quant.ErrShape},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, tr.Append(c.k, c.v, c.s), c.want)
			require.Equal(t, before, weights(t, tr, h.k))
		})
	}
	fresh := newTracker(t, everything)
	h.play(t, fresh, 0, 20, 10)
	h.play(t, fresh, 20, 40, 10)
	h.play(t, tr, 20, 40, 10)
	require.Equal(t, weights(t, fresh, h.k), weights(t, tr, h.k), "refused rows taught nothing")

	p := everything
	p.Attention.MaxTokens = 30
	limited := newTracker(t, p)
	require.ErrorIs(t, limited.Append(h.k, h.v, h.surprisal), quant.ErrTooLarge)
	_, err := tr.Weights(make([]float32, 3), h.k)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewTracker(everything, 0, 12, someRope)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewTracker(Weighting{Relevance: 9}, 16, 12, someRope)
	require.ErrorIs(t, err, quant.ErrShape)
}
