// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// tightRig has room for some 1,000 tokens in f16.
func tightRig(t *testing.T, cfg Config) *rig {
	g := quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 64, HeadDimV: 64}
	cfg.Budget = 1150 << 10
	return newRig(t, g, cfg)
}

// near counts the exact rows of the last tokens of a sequence, over all layers and heads.
func near(t *testing.T, s *Sequence, tokens int) (n int) {
	info, err := s.Tokens(nil)
	require.NoError(t, err)
	for _, x := range info[len(info)-tokens:] {
		if x.Bits == 16 {
			n++
		}
	}
	return n
}

// The window of a sequence that rests fades under pressure, that of a live one never does.
func TestRest_WindowsFade(t *testing.T) {
	for _, how := range []string{"hint", "steps", "neither"} {
		t.Run(how, func(t *testing.T) {
			cfg := testConfig()
			cfg.IdleSteps = -1
			if how == "steps" {
				cfg.IdleSteps = 8
			}
			r := tightRig(t, cfg)
			defer r.closeAll()
			idle, err := r.c.NewSequence()
			require.NoError(t, err)
			for range 5 {
				r.step(idle, 1, 40, 40)
			}
			live, err := r.c.NewSequence()
			require.NoError(t, err)
			if how == "hint" {
				require.NoError(t, idle.Rest())
			}
			require.Equal(t, 32, near(t, idle, 32), "without pressure a hint changes nothing")
			for live.Len() < 3000 {
				r.step(live, 2, 40, 40)
			}
			r.audit()
			require.Equal(t, 32, near(t, live, 32))
			if how == "neither" {
				require.Equal(t, 32, near(t, idle, 32))
				require.Zero(t, r.c.Stats().Folded)
				return
			}
			require.Less(t, near(t, idle, 32), 8)
			require.EqualValues(t, 1, r.c.Stats().Folded)
			r.step(idle, 1, 1, 1)
			for range 3 {
				r.step(idle, 1, 40, 40)
				require.Equal(t, 32, near(t, idle, 32), "a conversation that goes on has a window again")
			}
			require.NoError(t, idle.Close())
			require.NoError(t, live.Close())
			r.audit()
		})
	}
}

// What closes early loses nothing by that, wherever it ends, in layers with and without windows.
func TestRest_FoldingIsExact(t *testing.T) {
	for _, n := range []int{1, 4, 5, 33, 36, 67, 68, 69, 100, 131, 165} {
		cfg := testConfig()
		cfg.LayerWindow = []int{0, 50}
		r := newRig(t, testGeometry(), cfg)
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		for left := n; left > 0; left -= 23 {
			r.step(s, 1, min(left, 23), 23)
		}
		before := s.rowBytes()
		units := maxUnits
		open := !folded(s)
		did, err := fold(s, &units)
		require.NoError(t, err)
		require.Equal(t, open, did)
		require.True(t, folded(s))
		require.GreaterOrEqual(t, s.rowBytes(), before)
		r.audit()
		f, err := s.Fork()
		require.NoError(t, err)
		require.Equal(t, r.state(s), r.state(f))
		for _, x := range []*Sequence{s, f} {
			for range 3 {
				at := x.n
				out := r.step(x, 1, 40, 40)
				for l := range out {
					w := r.geo.Heads * r.geo.HeadDimV
					for _, i := range []int{0, 39} {
						require.Less(t, distance(out[l][i*w:(i+1)*w], r.want(1, at+int64(i), l)), 1e-9, "%d tokens, then %d", n, i)
					}
				}
			}
		}
		r.audit()
		r.closeAll()
	}
}

// A step that begins does not lose the segments that it was planned with.
func TestRest_EndsWithAStep(t *testing.T) {
	r := tightRig(t, testConfig())
	defer r.closeAll()
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	for s.Len() < 3000 {
		require.NoError(t, s.Rest())
		r.step(s, 1, 40, 40)
	}
	require.Equal(t, 32, near(t, s, 32))
	require.NotZero(t, r.c.Stats().Units)
	require.Zero(t, r.c.Stats().Folded)
	st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: 1}})
	require.NoError(t, err)
	require.ErrorIs(t, s.Rest(), quant.ErrShape)
	require.NoError(t, st.Rollback())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Rest(), quant.ErrClosed)
}

// A sequence that was folded is saved and loaded as it is, and others find its tokens.
func TestRest_FoldedIsFoundAndSaved(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	defer r.closeAll()
	ids := make([]int32, 400)
	for i := range ids {
		ids[i] = int32(i * 7)
	}
	s, err := r.c.MatchPrefix(nil, ids)
	require.NoError(t, err)
	add := func(n int) {
		st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: n, IDs: ids[s.n : s.n+int64(n)]}})
		require.NoError(t, err)
		for l := range r.geo.Layers {
			k, v, _ := r.tokens(1, s.n, s.n+int64(n), l)
			require.NoError(t, st.Append(l, k, v))
		}
		require.NoError(t, st.Commit(n))
	}
	add(75)
	units := maxUnits
	for _, n := range []int{5, 90, 150} { // a short segment that ends no 64 tokens, then longer ones
		_, err = fold(s, &units)
		require.NoError(t, err)
		r.audit()
		add(n)
	}
	var w bytes.Buffer
	require.NoError(t, s.Save(context.Background(), &w))
	x, err := r.load(w.Bytes())
	require.NoError(t, err)
	require.Equal(t, r.state(s), r.state(x))
	require.NoError(t, x.Close())
	other, err := r.c.MatchPrefix(nil, ids)
	require.NoError(t, err)
	require.EqualValues(t, 192, other.Len(), "the short segment is found by those after it")
	r.audit()
}

// The same calls fade the same rows.
func TestRest_IsDeterministic(t *testing.T) {
	var states [2][]byte
	for i := range states {
		cfg := testConfig()
		cfg.IdleSteps = 8
		r := tightRig(t, cfg)
		var all []*Sequence
		for text := range uint64(4) {
			s, err := r.c.NewSequence()
			require.NoError(t, err)
			for s.Len() < 600 {
				r.step(s, text, 40, 40)
			}
			all = append(all, s)
		}
		require.NotZero(t, r.c.Stats().Folded)
		for _, s := range all {
			states[i] = append(states[i], r.state(s)...)
		}
		r.closeAll()
	}
	require.Equal(t, states[0], states[1])
}

// The weights of the last tokens count the queries that came after them.
func TestLevel(t *testing.T) {
	w := &closing{pos: []int64{103, 103, 107, 107}}
	weight := []float32{4, 4, 4, 4, 2, 2, 2, 2, 0, 0}
	w.level(weight, 100, 2, 2)
	require.Equal(t, []float32{4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, weight)
	w.level(weight, 100, 0, 2)
	require.Equal(t, []float32{4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, weight)
}

// An idle sequence that is cut goes on as if the tokens behind the cut had never been, wherever it was folded.
func TestRest_FoldedIsTruncated(t *testing.T) {
	for _, sinks := range []int{-1, 4} {
		for _, n := range []int64{1, 31, 49, 63, 64, 65, 69, 96, 130} {
			cfg := testConfig()
			cfg.Sinks = sinks
			r := newRig(t, testGeometry(), cfg)
			s, err := r.c.NewSequence()
			require.NoError(t, err)
			units := maxUnits
			for _, more := range []int{69, 45, 50} {
				r.step(s, 1, more, more)
				_, err = fold(s, &units)
				require.NoError(t, err)
			}
			require.NoError(t, s.Truncate(n))
			r.audit()
			for range 3 {
				at := s.n
				out := r.step(s, 1, 31, 31)
				for l := range out {
					w := r.geo.Heads * r.geo.HeadDimV
					require.Less(t, distance(out[l][30*w:], r.want(1, at+30, l)), 1e-9, "cut to %d, then at %d", n, at)
				}
				require.NoError(t, s.Truncate(s.n-7))
				r.audit()
			}
			r.closeAll()
		}
	}
}
