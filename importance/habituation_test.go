// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

func habituate(t require.TestingT, h *habituation, x quant.Rows) []float64 {
	out, err := h.Add([]float64{}, x)
	require.NoError(t, err)
	return out
}

func habituationOf(t require.TestingT, dim int) *habituation {
	h, err := newHabituation(dim, habituationConfig{})
	require.NoError(t, err)
	return h
}

// offset adds a mean and one massive channel, as caches have them.
func offset(x quant.Rows) quant.Rows {
	for i := range x.Data {
		x.Data[i] += float32(2 * math.Cos(float64(i%x.Dim)))
		if i%x.Dim == 3 {
			x.Data[i] += 40
		}
	}
	return x
}

func TestHabituation_RepeatedIsSuppressedLoneIsNot(t *testing.T) {
	for _, dim := range []int{8, 64, 80, 128} {
		t.Run(fmt.Sprintf("dim=%d", dim), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(21, uint64(dim)))
			pattern, lone := offset(randomRows(rng, 32, dim, 1)), offset(randomRows(rng, 32, dim, 1))
			var parts []quant.Rows
			for i := range 24 {
				switch {
				case i == 20:
					parts = append(parts, lone)
				case i%2 == 0:
					noisy := randomRows(rng, 32, dim, 0.1)
					for j, v := range pattern.Data {
						noisy.Data[j] += v
					}
					parts = append(parts, noisy)
				default:
					parts = append(parts, offset(randomRows(rng, 32, dim, 1)))
				}
			}
			out := habituate(t, habituationOf(t, dim), join(parts...))
			require.Len(t, out, 24)
			require.Equal(t, 1.0, out[0], "nothing came before")
			if dim >= 64 { // few values leave little room to differ
				require.Greater(t, out[20], 0.85, "the lone block")
			}
			require.Less(t, out[18], 0.5, "the ninth repetition")
			require.Less(t, out[18], out[20])
			t.Logf("%.2f", out)
		})
	}
}

func TestHabituation_NothingButRepetition(t *testing.T) {
	rng := rand.New(rand.NewPCG(23, 24))
	block := randomRows(rng, 32, 16, 1)
	constant := quant.Rows{Dim: 16}
	for range 32 {
		constant.Data = append(constant.Data, block.Row(0)...)
	}
	for _, b := range []quant.Rows{block, constant, {Dim: 16, Data: make([]float32, 32*16)}} {
		h := habituationOf(t, 16)
		var last float64
		for range 12 {
			last = habituate(t, h, b)[0]
		}
		require.Less(t, last, 0.4)
		require.GreaterOrEqual(t, last, 0.25)
	}
}

func TestHabituation_StreamingCausalScale(t *testing.T) {
	rng := rand.New(rand.NewPCG(25, 26))
	x := join(randomRows(rng, 100, 24, 1), randomRows(rng, 3, 24, 0))
	x = join(x, x, x)
	n := x.Len()
	whole := habituate(t, habituationOf(t, 24), x)
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.IntRange(0, n).Draw(t, "cut")
		h := habituationOf(t, 24)
		first := habituate(t, h, part(x, 0, cut))
		fork := h.Clone()
		require.Equal(t, cut%32, h.Pending())
		require.Equal(t, whole, append(first, habituate(t, h, part(x, cut, n))...))
		habituate(t, fork, randomRows(rng, 64, 24, 3))
		require.Equal(t, whole[:cut/32], first)
		factor := float32(math.Ldexp(1, rapid.IntRange(-40, 40).Draw(t, "exponent")))
		require.Equal(t, whole, habituate(t, habituationOf(t, 24), scaled(x, factor)))
	})
}

func TestHabituation_AnyRowsGiveNumbersInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dim := rapid.IntRange(1, 9).Draw(t, "dim")
		vals := []float32{0, 1, -1, 1e-45, quant.MaxMagnitude, -quant.MaxMagnitude, 1e20, 3e-20}
		x := quant.Rows{Dim: dim, Data: make([]float32, dim*rapid.IntRange(0, 60).Draw(t, "rows"))}
		for i := range x.Data {
			x.Data[i] = rapid.SampledFrom(vals).Draw(t, "x")
		}
		floor := rapid.Float64Range(0.01, 1).Draw(t, "floor")
		h, err := newHabituation(dim, habituationConfig{Floor: floor,
			Block: rapid.IntRange(1, 7).Draw(t, "block"), Memory: rapid.IntRange(1, 3).Draw(t, "memory")})
		require.NoError(t, err)
		for _, v := range habituate(t, h, x) {
			require.True(t, v >= floor && v <= 1, "%v", v)
		}
	})
}

func TestHabituation_Refuses(t *testing.T) {
	h := habituationOf(t, 4)
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(-1)), math.MaxFloat32} {
		_, err := h.Add(nil, quant.Rows{Dim: 4, Data: []float32{1, 2, 3, 4, 5, bad, 7, 8}})
		require.ErrorIs(t, err, quant.ErrRange)
		require.Zero(t, h.Pending())
	}
	_, err := h.Add(nil, quant.Rows{Dim: 3, Data: make([]float32, 3)})
	require.ErrorIs(t, err, quant.ErrShape)
	for _, cfg := range []habituationConfig{{Block: -1}, {Memory: -1}, {Memory: 1 << 20},
		{HalfLife: -1}, {HalfLife: math.NaN()}, {Floor: 2}, {Floor: math.NaN()}} {
		_, err := newHabituation(4, cfg)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = newHabituation(0, habituationConfig{})
	require.ErrorIs(t, err, quant.ErrShape)
	require.Less(t, habituationOf(t, 64).StateBytes(), int64(12<<10))
}
