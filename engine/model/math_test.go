// SPDX-License-Identifier: Apache-2.0

package model

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExp32(t *testing.T) {
	worst := 0.0
	for x := float32(-87); x <= 88; x += 0.0137 {
		want := math.Exp(float64(x))
		worst = max(worst, math.Abs(float64(exp32(x))-want)/want)
	}
	require.Less(t, worst, 2e-7)
	require.Equal(t, float32(1), exp32(0))
	require.Zero(t, exp32(float32(math.Inf(-1))))
	require.Zero(t, exp32(-87.5))
	require.Equal(t, exp32(88), exp32(float32(math.Inf(1))))
	require.True(t, math.IsNaN(float64(exp32(float32(math.NaN())))))
}

func TestExpSum(t *testing.T) {
	x := []float32{-100, -87.5, -87, -3.25, -0.5, 0, 1.75, 2, float32(math.Inf(-1))}
	dst := make([]float32, len(x))
	var want float32
	sum := expSum(dst, x, 2)
	for i := range x {
		require.Equal(t, exp32(x[i]-2), dst[i])
		want += dst[i]
	}
	require.Equal(t, want, sum)
	require.True(t, math.IsNaN(float64(expSum(dst[:1], []float32{float32(math.NaN())}, 2))))
}

func TestLogSumExp(t *testing.T) {
	require.True(t, math.IsInf(LogSumExp(nil), -1))
	require.InDelta(t, math.Log(1000)+5, LogSumExp(repeat(5, 1000)), 1e-6)
	x := []float32{-1000, 3, 2.5, -4}
	want := math.Log(math.Exp(3) + math.Exp(2.5) + math.Exp(-4))
	require.InDelta(t, want, LogSumExp(x), 1e-6)
	require.InDelta(t, want-2.5, Surprisal(x, 2), 1e-6)
	require.Equal(t, int32(1), Argmax(x))
	require.Equal(t, int32(0), Argmax(repeat(1, 3)))
}

func repeat(v float32, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = v
	}
	return x
}

func TestParallel(t *testing.T) {
	for _, n := range []int{0, 1, 7, 100} {
		for _, workers := range []int{1, 3, 16} {
			seen := make([]int32, n)
			parallel(workers, n, 2, func(lo, hi int) {
				for i := lo; i < hi; i++ {
					atomic.AddInt32(&seen[i], 1)
				}
			})
			require.NoError(t, parallelItems(workers, n, func(w, i int) error {
				require.Less(t, w, workers)
				atomic.AddInt32(&seen[i], 1)
				return nil
			}))
			for i := range seen {
				require.Equal(t, int32(2), seen[i])
			}
		}
	}
	boom := errors.New("boom")
	require.ErrorIs(t, parallelItems(4, 100, func(_, i int) error {
		if i == 50 {
			return boom
		}
		return nil
	}), boom)
}
