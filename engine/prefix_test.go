// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// ids are the ids of positions [lo, hi) of a text.
func ids(text uint64, lo, hi int64) []int32 {
	x := make([]int32, 0, hi-lo)
	for p := lo; p < hi; p++ {
		x = append(x, int32(text)*100000+int32(p))
	}
	return x
}

// with adds positions up to end of a text with their ids, and returns the outputs.
func (r *rig) with(s *Sequence, text uint64, end int64) [][]float32 {
	r.t.Helper()
	lo := s.Len()
	st, err := r.c.Begin(context.Background(), []Row{{s, int(end - lo), ids(text, lo, end)}})
	require.NoError(r.t, err)
	outs := make([][]float32, r.geo.Layers)
	for l := range outs {
		k, v, q := r.tokens(text, lo, end, l)
		outs[l] = make([]float32, int(end-lo)*r.geo.Heads*r.geo.HeadDimV)
		require.NoError(r.t, st.Append(l, k, v))
		require.NoError(r.t, st.Attend(l, q, outs[l]))
	}
	require.NoError(r.t, st.Commit(int(end-lo)))
	return outs
}

func TestMatchPrefix(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	match := func(salt string, tokens []int32) *Sequence {
		s, err := r.c.MatchPrefix([]byte(salt), tokens)
		require.NoError(t, err)
		r.audit()
		return s
	}
	a := match("one", ids(1, 0, 400))
	require.Zero(t, a.Len())
	r.with(a, 1, 400)
	r.audit()
	require.Len(t, r.c.index.nodes, 5) // segments of 64 tokens closed by 400 - 32 + 1 tokens
	require.NoError(t, a.Close())
	r.audit()
	rows := func() int { return r.c.arena.classes[r.c.sizes.class[sideK][f16]].n }
	before := rows()
	// The last segment ends at 4 + 5*64 = 324, the last key in it at 320.
	b := match("one", ids(1, 0, 400))
	require.EqualValues(t, 320, b.Len())
	require.Less(t, rows(), 2*before, "whole segments are charged once")
	for l, out := range r.with(b, 1, 350) {
		require.Less(t, distance(out[:32], r.want(1, 320, l)), 1e-9)
	}
	// One token must be left, and a prompt may go another way inside a segment.
	require.EqualValues(t, 256, match("one", ids(1, 0, 320)).Len())
	require.EqualValues(t, 320, match("one", ids(1, 0, 321)).Len())
	c := match("one", append(ids(1, 0, 140), ids(2, 140, 300)...))
	require.EqualValues(t, 128, c.Len())
	for l, out := range r.step(c, 1, 3, 3) {
		require.Less(t, distance(out[:32], r.want(1, 128, l)), 1e-9)
	}
	// Other salts share nothing, and other models neither.
	require.Zero(t, match("two", ids(1, 0, 400)).Len())
	cfg := r.c.cfg
	cfg.Model = "another"
	require.NotEqual(t, r.c.cfg.rootKey([]byte("one")), cfg.rootKey([]byte("one")))
	require.NotEqual(t, r.c.cfg.rootKey([]byte("one")), r.c.cfg.rootKey([]byte("two")))
	st := r.c.Stats()
	require.Greater(t, st.PrefixQueries, st.PrefixHits)
	require.EqualValues(t, 320+256+320+128, st.PrefixHits)
	r.closeAll()
}

// Truncation and forks keep the keys that still hold; tokens without ids end the sharing.
func TestMatchPrefix_FollowsTheTokens(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	a, err := r.c.MatchPrefix(nil, nil)
	require.NoError(t, err)
	r.with(a, 1, 90)
	require.NoError(t, a.Truncate(64))
	f, err := a.Fork()
	require.NoError(t, err)
	r.with(a, 1, 200)
	r.with(f, 3, 200)
	r.audit()
	found := func(tokens []int32) int64 {
		s, err := r.c.MatchPrefix(nil, tokens)
		require.NoError(t, err)
		defer s.Close()
		return s.Len()
	}
	require.EqualValues(t, 128, found(ids(1, 0, 200)))
	require.EqualValues(t, 128, found(append(ids(1, 0, 64), ids(3, 64, 200)...)))
	require.NoError(t, f.Truncate(70)) // its ids are not known any more
	require.False(t, f.chain.follows)
	r.step(a, 1, 1, 1)
	require.False(t, a.chain.follows)
	r.audit()
	r.closeAll()
}

// What only the index holds goes before any row of a living sequence is recoded.
func TestMatchPrefix_Evicts(t *testing.T) {
	cfg := testConfig()
	cfg.Budget = 1 << 20
	r := newRig(t, testGeometry(), cfg)
	for text := uint64(1); text < 12; text++ {
		s, err := r.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		for n := int64(40); n <= 800; n += 40 {
			r.with(s, text, n)
		}
		r.audit()
		require.NoError(t, s.Close())
		r.audit()
	}
	require.NotEmpty(t, r.c.index.nodes)
	require.Less(t, len(r.c.index.nodes), 11*11)
	r.closeAll()
}

// A segment that has lost a block is found no more, nor is what comes after it. What comes before still is.
// What is found is not freed by making room for the sequence that gets it: with no other memory to give, the
// sequence is refused, or finds all.
func TestMatchPrefix_KeepsWhatItFinds(t *testing.T) {
	for left := int64(0); left < 80000; left += 1000 {
		r := newRig(t, testGeometry(), testConfig())
		a, err := r.c.MatchPrefix(nil, ids(1, 0, 400))
		require.NoError(t, err)
		r.with(a, 1, 400)
		require.NoError(t, a.Close())
		_, err = r.c.pressure.shed()
		require.NoError(t, err)
		require.NoError(t, r.c.arena.shrink(math.MaxInt64))
		taken := r.c.led.left() - left
		require.True(t, r.c.led.take(forState, taken))
		b, err := r.c.MatchPrefix(nil, ids(1, 0, 400))
		r.c.led.give(forState, taken)
		if err != nil {
			require.ErrorIs(t, err, quant.ErrFull)
		} else {
			require.EqualValues(t, 320, b.Len())
			for _, g := range b.segs {
				require.False(t, g.empty(), "%d bytes left", left)
			}
		}
		r.audit()
		r.closeAll()
	}
}

func TestMatchPrefix_FindsNoLostRows(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	a, err := r.c.MatchPrefix(nil, nil)
	require.NoError(t, err)
	r.with(a, 1, 400)
	found := func() int64 {
		s, err := r.c.MatchPrefix(nil, ids(1, 0, 400))
		require.NoError(t, err)
		defer s.Close()
		return s.Len()
	}
	require.EqualValues(t, 320, found())
	keys := r.c.led.by[forIndex]
	g, units, before := a.segs[3], 1, r.c.stats.Dropped // [132, 196)
	require.NoError(t, r.c.pressure.change(g, 2, sideK, gone, &units))
	require.NoError(t, r.c.pressure.reap(before))
	r.audit()
	require.Less(t, r.c.led.by[forIndex], keys)
	require.EqualValues(t, 128, found())
	require.False(t, a.chain.follows)
	f, err := a.Fork() // forks and cuts go on from what there is
	require.NoError(t, err)
	require.NoError(t, f.Truncate(150))
	r.step(f, 1, 200, 200)
	r.with(a, 1, 500)
	require.EqualValues(t, 128, found())
	r.audit()

	// Another sequence that has the same tokens for itself puts its own segments there.
	b, err := r.c.MatchPrefix(nil, ids(1, 0, 400))
	require.NoError(t, err)
	r.with(b, 1, 400)
	require.EqualValues(t, 320, found())
	r.audit()
	r.closeAll()
}

// A cut inside packed rows leaves a segment that is not whole: what comes after it is not found without it.
func TestMatchPrefix_EndsAtACut(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	r.c.start, r.c.pressure.fixed = [sides]rung{lm4, lm4}, true
	a, err := r.c.MatchPrefix(nil, nil)
	require.NoError(t, err)
	r.with(a, 1, 400)
	require.NoError(t, a.Truncate(128)) // of a segment [68, 132)
	st, err := r.c.Begin(context.Background(), []Row{{a, 272, ids(2, 128, 400)}})
	require.NoError(t, err)
	for l := range r.geo.Layers {
		k, v, _ := r.tokens(2, 128, 400, l)
		require.NoError(t, st.Append(l, k, v))
	}
	require.NoError(t, st.Commit(272))
	s, err := r.c.MatchPrefix(nil, append(ids(1, 0, 128), ids(2, 128, 400)...))
	require.NoError(t, err)
	var rows, first int64
	for _, g := range s.segs {
		require.Equal(t, first, g.lo, "tokens before it are missing")
		first = g.hi()
		rows += g.hi() - g.lo
	}
	require.GreaterOrEqual(t, rows, s.Len())
	r.audit()
	r.closeAll()
}

// A hint to demote takes nothing from a fork.
func TestDemote_LeavesForksAlone(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	a, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(a, 1, 500, 500)
	f, err := a.Fork()
	require.NoError(t, err)
	before := r.state(f)
	require.NoError(t, a.Demote(1))
	require.Equal(t, before, r.state(f))
	require.NoError(t, f.Close())
	had := a.rowBytes()
	require.NoError(t, a.Demote(1))
	require.Less(t, a.rowBytes(), had/2)
	r.audit()
	r.closeAll()
}
