// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// K that has a large mean loses no more than K that has none: the mean is taken off before rows are coded,
// in the window's wake, under pressure and when packed rows become exact again.
func TestMean_IsTakenOff(t *testing.T) {
	const n = 300
	distanceOf := func(start [sides]rung, shift float32, demote bool) float64 {
		r := newRig(t, testGeometry(), testConfig())
		r.c.start, r.c.pressure.fixed = start, start != starts[0]
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		add := func(lo, hi int64, keep bool) []float32 {
			st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: int(hi - lo)}})
			require.NoError(t, err)
			out := make([]float32, int(hi-lo)*r.geo.Heads*r.geo.HeadDimV)
			for l := range r.geo.Layers {
				k, v, q := r.tokens(1, lo, hi, l)
				for i := range k {
					k[i] = k[i] + shift*float32(i%r.geo.HeadDim%3-1)
				}
				require.NoError(t, st.Append(l, k, v))
				require.NoError(t, st.Attend(l, q, out))
			}
			if keep {
				require.NoError(t, st.Commit(int(hi-lo)))
			} else {
				require.NoError(t, st.Rollback())
			}
			return out
		}
		add(0, n, true)
		if demote {
			require.NoError(t, s.Demote(0.6))
		}
		var worst float64
		check := func() {
			got := add(n, n+1, false)
			want := r.want(1, n, 1) // a shift of all keys changes no attention
			worst = max(worst, distance(got, want))
		}
		check()
		require.NoError(t, s.Truncate(290))
		require.NoError(t, s.Truncate(279)) // inside a page that has left the window
		add(279, n, true)
		check()
		r.audit()
		r.closeAll()
		return worst
	}
	for _, start := range [][sides]rung{{u8, u8}, {lm4, lm4}, {lm3, lm3}} {
		plain := distanceOf(start, 0, false)
		for _, shift := range []float32{4, 16} {
			require.Less(t, distanceOf(start, shift, false), 2.5*plain+1e-3, "%v: %g without a mean", start, plain)
		}
	}
	plain, shifted := distanceOf(starts[0], 0, true), distanceOf(starts[0], 4, true)
	require.Less(t, shifted, 2.5*plain+1e-3)
	require.False(t, math.IsNaN(shifted))
}
