// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// A fork goes on as if it had been alone, and so does its original. Closed segments are charged once.
func TestFork_Diverges(t *testing.T) {
	for _, start := range [][sides]rung{{f16, f16}, {lm4, lm3}} {
		r := newRig(t, testGeometry(), testConfig())
		r.c.start, r.c.pressure.fixed = start, start != starts[0]
		a, err := r.c.NewSequence()
		require.NoError(t, err)
		straight, err := r.c.NewSequence()
		require.NoError(t, err)
		r.step(a, 1, 300, 300)
		before := r.c.arena.classes[r.c.sizes.class[sideK][start[sideK]]].n
		b, err := a.Fork()
		require.NoError(t, err)
		r.audit()
		require.Less(t, r.c.arena.classes[r.c.sizes.class[sideK][start[sideK]]].n, 2*before)
		r.step(straight, 1, 300, 300)
		for i := range 5 {
			got, other := r.step(b, 2, 30, 30), r.step(a, 1, 30, 30)
			r.sameBits(r.step(straight, 1, 30, 30), other, fmt.Sprintf("original, step %d", i))
			require.NotEqual(t, got, other)
			require.True(t, bytes.Equal(r.state(straight), r.state(a)))
			r.audit()
		}
		require.NoError(t, a.Close())
		r.step(b, 2, 100, 100)
		r.audit()
		r.closeAll()
	}
}

// What is cut off and added again leaves the bytes of the straight way, wherever the cut is.
func TestTruncate_ThenAgain(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	straight, err := r.c.NewSequence()
	require.NoError(t, err)
	state := map[int64][]byte{}
	for straight.Len() < 260 {
		r.step(straight, 1, 1, 1)
		state[straight.Len()] = r.state(straight)
	}
	for n := int64(0); n <= 260; n += 13 {
		s, err := r.c.NewSequence()
		require.NoError(t, err)
		r.step(s, 1, 260, 260)
		require.NoError(t, s.Truncate(n))
		require.Equal(t, n, s.Len())
		require.True(t, bytes.Equal(state[n], r.state(s)), "cut at %d", n)
		r.audit()
		out := r.step(s, 1, 40, 40)
		for l := range out {
			w := r.geo.Heads * r.geo.HeadDimV
			require.Less(t, distance(out[l][39*w:], r.want(1, n+39, l)), 1e-9)
		}
		require.NoError(t, s.Close())
	}
	r.closeAll()
}

// Cutting packed rows keeps the others, and a shared segment stays whole for those that share it.
func TestTruncate_PackedAndShared(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	r.c.start, r.c.pressure.fixed = [sides]rung{lm4, lm4}, true
	a, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(a, 1, 300, 300)
	whole := r.state(a)
	for n := int64(280); n > 0; n -= 31 {
		b, err := a.Fork()
		require.NoError(t, err)
		require.NoError(t, b.Truncate(n))
		r.audit()
		require.True(t, bytes.Equal(whole, r.state(a)), "cut at %d", n)
		out := r.step(b, 1, 5, 5)
		for l := range out {
			w := r.geo.Heads * r.geo.HeadDimV
			// lm4 on K and V: one percent of their energy each.
			require.Less(t, distance(out[l][4*w:], r.want(1, n+4, l)), 0.1, "cut at %d", n)
		}
		require.NoError(t, b.Close())
	}
	r.audit()
	r.closeAll()
}
