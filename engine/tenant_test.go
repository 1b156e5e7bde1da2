// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// A sequence with a limit goes on for ever within it, although the cache has room for more.
func TestLimit_OfASequence(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	other, err := r.c.NewSequence()
	require.NoError(t, err)
	r.step(other, 2, 300, 300)
	before := r.state(other)
	const most = 48 << 10 // of 96 bytes a token and head in f16
	require.NoError(t, s.Limit(nil, most))
	for s.Len() < 1500 {
		r.step(s, 1, 30, 30)
		require.LessOrEqual(t, s.rowBytes(), int64(most))
	}
	require.Greater(t, s.rowBytes(), int64(most/2))
	require.Equal(t, before, r.state(other))
	f, err := s.Fork()
	require.NoError(t, err)
	require.EqualValues(t, most, f.most)
	require.NoError(t, s.Limit(nil, 1000))
	_, err = r.try(s, 1, 1, 1)
	require.ErrorIs(t, err, quant.ErrFull)
	require.ErrorContains(t, err, "may hold 1000")
	require.ErrorIs(t, s.Limit(nil, -1), quant.ErrShape)
	r.audit()
	r.closeAll()
}

// What one tenant asks for is not taken from another one below its floor.
func TestTenant_Floor(t *testing.T) {
	held := func(floor int64) (quiet, greedy int64) {
		cfg := testConfig()
		cfg.Budget = 800 << 10
		r := newRig(t, testGeometry(), cfg)
		a, err := r.c.NewTenant(floor)
		require.NoError(t, err)
		b, err := r.c.NewTenant(0)
		require.NoError(t, err)
		x, err := r.c.NewSequence()
		require.NoError(t, err)
		require.NoError(t, x.Limit(a, 0))
		y, err := r.c.NewSequence()
		require.NoError(t, err)
		require.NoError(t, y.Limit(b, 0))
		r.step(x, 1, 500, 500)
		for range 100 {
			r.step(y, 2, 40, 40)
			r.audit()
			require.GreaterOrEqual(t, x.rowBytes(), min(floor, x.rowBytes()))
			if floor > 0 {
				require.GreaterOrEqual(t, x.rowBytes(), floor)
			}
		}
		quiet, greedy = x.rowBytes(), y.rowBytes()
		r.closeAll()
		return quiet, greedy
	}
	without, _ := held(0)
	const floor = 80 << 10
	require.Less(t, without, int64(floor))
	with, _ := held(floor)
	require.GreaterOrEqual(t, with, int64(floor))

	r, other := newRig(t, testGeometry(), testConfig()), newRig(t, testGeometry(), testConfig())
	_, err := r.c.NewTenant(-1)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = r.c.NewTenant(3 << 20)
	require.NoError(t, err)
	_, err = r.c.NewTenant(3 << 20)
	require.ErrorIs(t, err, quant.ErrBudget)
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	foreign, err := other.c.NewTenant(1)
	require.NoError(t, err)
	require.ErrorIs(t, s.Limit(foreign, 0), quant.ErrShape)
	r.closeAll()
	other.closeAll()
}
