// SPDX-License-Identifier: Apache-2.0

package engine

import (
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
