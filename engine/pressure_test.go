// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// A conversation far longer than the budget goes on for ever within it, and what is near stays near
// exact.
func TestPressure_KeepsTheBudget(t *testing.T) {
	g := quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 64, HeadDimV: 64}
	cfg := testConfig()
	cfg.Budget = 1150 << 10 // of 1 KiB a token and layer in f16
	r := newRig(t, g, cfg)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	for s.Len() < 8000 {
		r.step(s, 1, 40, 40)
		if s.Len()%1000 == 0 {
			r.audit()
			require.NotEqual(t, starts[0], r.c.start)
		}
	}
	t.Log(levels(s), r.c.stats)
	require.NotZero(t, r.c.stats.Dropped)
	require.NoError(t, s.Close())
	r.audit()
	r.closeAll()
}

// levels counts the sides of blocks at each rung.
func levels(s *Sequence) (n [rungs]int) {
	for _, seg := range s.segs {
		for i := range seg.blocks {
			for side := range sides {
				n[seg.blocks[i].rung[side]]++
			}
		}
	}
	return n
}

// Sequences that decode together under pressure never find the budget used up: what a step takes beside
// slots is taken before slabs take the rest.
func TestPressure_ManySequences(t *testing.T) {
	g := quant.Geometry{Layers: 2, Heads: 3, KVHeads: 3, HeadDim: 64, HeadDimV: 64}
	cfg := Config{Budget: 8 << 20, Seed: 3}
	r := newRig(t, g, cfg)
	rows := make([]Row, 8)
	for i := range rows {
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		rows[i].Seq = s
	}
	k, v := values(8*64*g.KVHeads*g.HeadDim, 1, 1, 1), values(8*64*g.KVHeads*g.HeadDimV, 1, 1, 2)
	for n, tokens := 0, 64; n < 1600; n += tokens {
		if n >= 1400 {
			tokens = 1
		}
		for i := range rows {
			rows[i].Tokens = tokens
		}
		st, err := r.c.Begin(context.Background(), rows)
		require.NoError(t, err)
		for l := range g.Layers {
			require.NoError(t, st.Append(l, k[:8*tokens*g.KVHeads*g.HeadDim], v[:8*tokens*g.KVHeads*g.HeadDimV]))
		}
		require.NoError(t, st.Commit(tokens))
	}
	r.audit()
	require.NotEqual(t, starts[0], r.c.start)
	r.closeAll()
}

// A large demand takes from what is worth least, as many small ones do, and not from all alike.
func TestDemote_SpreadsByWorth(t *testing.T) {
	g := quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 64, HeadDimV: 64}
	r := newRig(t, g, testConfig())
	defer r.closeAll()
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	for s.Len() < 1000 {
		r.step(s, 1, 50, 50)
	}
	units := maxUnits
	_, err = fold(s, &units)
	require.NoError(t, err)
	for i := range s.segs[1].blocks { // some are read a hundred times as much as others
		s.segs[1].blocks[i].mass *= []float32{0.01, 1, 100, 10000}[i%4]
	}
	s.stale = 0
	require.NoError(t, s.Demote(0.8))
	used, all := 0, levels(s)
	for _, n := range all[lm1:] {
		if n > 4 {
			used++
		}
	}
	require.Greater(t, used, 3, "%v", all)
	r.audit()
}
