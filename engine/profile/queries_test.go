// SPDX-License-Identifier: Apache-2.0

package profile_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

func TestQueries(t *testing.T) {
	p, err := profile.New("m", quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 8})
	require.NoError(t, err)
	none, err := p.Queries()
	require.NoError(t, err)
	require.Nil(t, none)
	q := &profile.Queries{Mean: make([]float32, 64), Variance: make([]float32, 64)}
	for i := range q.Mean {
		q.Mean[i], q.Variance[i] = float32(-i), float32(i)
	}
	with, err := p.WithQueries(q, profile.Meta{"texts": "1"})
	require.NoError(t, err)
	got, err := with.Queries()
	require.NoError(t, err)
	require.Equal(t, q, got)
	mean, variance := got.At(1, 2, 4, 8)
	require.EqualValues(t, -48, mean[0])
	require.EqualValues(t, 55, variance[7])
	require.NotEqual(t, p.ID(), with.ID())
	for _, bad := range []float32{-1, float32(math.NaN()), float32(math.Inf(1))} {
		q.Variance[5] = bad
		_, err = p.WithQueries(q, nil)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = p.WithQueries(&profile.Queries{Mean: q.Mean[:8], Variance: q.Variance}, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	back, err := with.WithQueries(nil, nil)
	require.NoError(t, err)
	require.Equal(t, p.ID(), back.ID())
}
