// SPDX-License-Identifier: Apache-2.0

package importance_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

func TestDecay_FollowsThePowerLaw(t *testing.T) {
	for _, alpha := range []float64{0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2} {
		d, err := importance.NewDecay(alpha, 1)
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
	flat, err := importance.NewDecay(0.7, 0)
	require.NoError(t, err)
	one, err := importance.NewDecay(0.7, 1)
	require.NoError(t, err)
	sharp, err := importance.NewDecay(0.7, 2)
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
	none, err := importance.NewDecay(0, 1)
	require.NoError(t, err)
	require.Equal(t, 1.0, none.At(1e9))
	for _, c := range [][2]float64{{-1, 1}, {3, 1}, {math.NaN(), 1}, {1, -1}, {1, math.NaN()}} {
		_, err := importance.NewDecay(c[0], c[1])
		require.ErrorIs(t, err, quant.ErrShape)
	}
}

func TestTrace_SumsEventsByThePowerLaw(t *testing.T) {
	d, err := importance.NewDecay(0.5, 1)
	require.NoError(t, err)
	tr, rng := d.NewTrace(), rand.New(rand.NewPCG(27, 28))
	var at, size []float64
	now := 0.0
	for range 50 {
		at, size = append(at, now), append(size, rng.Float64())
		require.NoError(t, tr.Add(size[len(size)-1]))
		step := float64(1 + rng.IntN(100))
		require.NoError(t, tr.Advance(step))
		now += step
	}
	var want float64
	for i := range at {
		want += size[i] * math.Pow(now-at[i], -0.5)
	}
	require.InEpsilon(t, want, tr.Value(), 0.03)
	c := tr.Clone()
	require.NoError(t, c.Add(5))
	require.InEpsilon(t, want, tr.Value(), 0.03)
	require.ErrorIs(t, tr.Add(math.NaN()), quant.ErrRange)
	require.ErrorIs(t, tr.Advance(-1), quant.ErrShape)
	require.ErrorIs(t, tr.Advance(math.NaN()), quant.ErrShape)
	require.Equal(t, int64(8*d.Scales()+32), tr.StateBytes())
}
