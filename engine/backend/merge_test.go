// SPDX-License-Identifier: Apache-2.0

package backend_test

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// softmax attends over rows of one value each, in float64.
func softmax(s, v []float64) (out, lse float64) {
	m := math.Inf(-1)
	for _, x := range s {
		m = max(m, x)
	}
	if math.IsInf(m, -1) {
		return 0, m
	}
	var l float64
	for i, x := range s {
		p := math.Exp(x - m)
		l += p
		out += p * v[i]
	}
	return out / l, m + math.Log(l)
}

func TestMergeAttention_EqualsAttentionOverBoth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOfN(rapid.Float64Range(-200, 200), 2, 20).Draw(t, "scores")
		v := rapid.SliceOfN(rapid.Float64Range(-10, 10), len(s), len(s)).Draw(t, "values")
		cut := rapid.IntRange(0, len(s)).Draw(t, "cut")
		o1, l1 := softmax(s[:cut], v[:cut])
		o2, l2 := softmax(s[cut:], v[cut:])
		want, wantLSE := softmax(s, v)
		out, lse := []float32{float32(o1)}, []float32{float32(l1)}
		err := backend.MergeAttention(out, lse, []float32{float32(o2)}, []float32{float32(l2)}, 1)
		require.NoError(t, err)
		// An lse near 200 is rounded by 2^-17: that much the weights may be off.
		require.InDelta(t, want, float64(out[0]), 10*4*math.Pow(2, -17))
		require.InDelta(t, wantLSE, float64(lse[0]), 2*math.Pow(2, -17))
	})
}

func TestMergeAttention_SidesThatSawNothing(t *testing.T) {
	inf, nan := float32(math.Inf(-1)), float32(math.NaN())
	out := []float32{nan, nan, 0.1, 0.2, nan, nan}
	lse := []float32{inf, 3, inf}
	out2 := []float32{5, 6, nan, nan, nan, nan}
	require.NoError(t, backend.MergeAttention(out, lse, out2, []float32{7, inf, inf}, 2))
	require.Equal(t, []float32{5, 6, 0.1, 0.2, 0, 0}, out)
	require.Equal(t, []float32{7, 3, inf}, lse)
}

func TestMergeAttention_OverflownScoreTakesAll(t *testing.T) {
	inf := float32(math.Inf(1))
	out, lse := []float32{1, 2, 3}, []float32{inf, 0, inf}
	err := backend.MergeAttention(out, lse, []float32{10, 20, 30}, []float32{0, inf, inf}, 1)
	require.NoError(t, err)
	require.Equal(t, []float32{1, 20, 16.5}, out)
}

func TestMergeAttention_WrongLengths(t *testing.T) {
	for _, c := range []struct{ out, lse, out2, lse2, dim int }{
		{4, 2, 4, 3, 2}, {4, 2, 3, 2, 2}, {3, 2, 4, 2, 2}, {4, 2, 4, 2, 0}, {4, 2, 4, 2, -2},
		{0, 0, 0, 0, quant.MaxDim + 1},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			out, lse := make([]float32, c.out), make([]float32, c.lse)
			for i := range out {
				out[i] = 9
			}
			err := backend.MergeAttention(out, lse, make([]float32, c.out2),
				make([]float32, c.lse2), c.dim)
			require.ErrorIs(t, err, quant.ErrShape)
			for _, v := range out {
				require.Equal(t, float32(9), v)
			}
		})
	}
}

func TestJobError_NamesJobAndRowAndUnwraps(t *testing.T) {
	err := error(&backend.JobError{Op: backend.OpEncode, Job: 3, Row: 5, Err: quant.ErrRange})
	require.True(t, errors.Is(err, quant.ErrRange))
	require.Contains(t, err.Error(), "encode job 3 row 5")
	err = &backend.JobError{Op: backend.OpDemote, Job: 1, Row: -1, Err: quant.ErrShape}
	require.NotContains(t, err.Error(), "row")
	require.Equal(t, "Op(99)", backend.Op(99).String())
}
