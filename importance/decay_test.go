// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestDecay_FollowsThePowerLaw(t *testing.T) {
	for _, alpha := range []float64{0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2} {
		d, err := newDecay(alpha, 1)
		require.NoError(t, err)
		worst := 0.0
		for age := 1.0; age <= 1<<17; age = math.Ceil(age * 1.01) {
			worst = max(worst, math.Abs(d.At(age)/math.Pow(age, -alpha)-1))
		}
		t.Logf("alpha %.2f: %d scales, within %.2f %%", alpha, d.Scales(), 100*worst)
		require.Less(t, worst, 0.03)
		require.LessOrEqual(t, d.Scales(), 17)
	}
}

func TestDecay_TemperatureAndEdges(t *testing.T) {
	flat, err := newDecay(0.7, 0)
	require.NoError(t, err)
	one, err := newDecay(0.7, 1)
	require.NoError(t, err)
	sharp, err := newDecay(0.7, 2)
	require.NoError(t, err)
	for _, age := range []float64{1, 10, 1000} {
		require.Equal(t, 1.0, flat.At(age))
		require.InEpsilon(t, one.At(age)*one.At(age), sharp.At(age), 1e-12)
	}
	require.Equal(t, one.At(1), one.At(-5))
	require.Equal(t, one.At(1), one.At(math.NaN()))
	require.Zero(t, one.At(math.Inf(1)))
	got := make([]float64, 5)
	one.Values(got, 3, 7)
	for i, v := range got {
		require.Equal(t, one.At(float64(5-i)), v)
	}
	none, err := newDecay(0, 1)
	require.NoError(t, err)
	require.Equal(t, 1.0, none.At(1e9))
	for _, c := range [][2]float64{{-1, 1}, {3, 1}, {math.NaN(), 1}, {1, -1}, {1, math.NaN()}} {
		_, err := newDecay(c[0], c[1])
		require.ErrorIs(t, err, quant.ErrShape)
	}
}
