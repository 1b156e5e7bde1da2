// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func density(x float64) float64 { return math.Exp(-x*x/2) / math.Sqrt(2*math.Pi) }

func tail(x float64) float64 { return math.Erfc(x/math.Sqrt2) / 2 }

// cell returns probability and conditional mean of a Gaussian in [a, b).
func cell(a, b float64) (p, mean float64) {
	p = tail(a) - tail(b)
	return p, (density(a) - density(b)) / p
}

// lloyd runs Lloyd's iteration on the positive half of a Gaussian with n cells.
func lloyd(n int) (thresholds, centroids []float64) {
	c := make([]float64, n)
	for i := range c {
		c[i] = (float64(i) + 0.5) * 2.5 / float64(n)
	}
	t := make([]float64, n+1)
	for range 20000 {
		for i := 1; i < n; i++ {
			t[i] = (c[i-1] + c[i]) / 2
		}
		t[n] = 40
		for i := range c {
			_, c[i] = cell(t[i], t[i+1])
		}
	}
	return t[:n], c
}

// distortion returns 1 - E[xc]^2/E[c^2] and E[xc]/E[c^2] for cells and their centroids.
func distortion(t, c []float64) (d, scale float64) {
	var xc, cc float64
	for i := range t {
		end := 40.0
		if i+1 < len(t) {
			end = t[i+1]
		}
		p, m := cell(t[i], end)
		xc += 2 * p * m * c[i]
		cc += 2 * p * c[i] * c[i]
	}
	return 1 - xc*xc/cc, xc / cc
}

func TestNested_Derivation(t *testing.T) {
	three, _ := lloyd(4)
	want := make([]float64, 8)
	for i := range three {
		a, b := three[i], 40.0
		if i < 3 {
			b = three[i+1]
		}
		s := (a + min(b, a+1)) / 2
		for range 20000 { // the optimal split of a cell lies halfway between the means of its parts
			_, lo := cell(a, s)
			_, hi := cell(s, b)
			s = (lo + hi) / 2
		}
		want[2*i], want[2*i+1] = a, s
	}
	for i := range want {
		require.InDelta(t, want[i], nestedThresholds[i], 2e-6, "threshold %d", i)
	}
	for bits := 1; bits <= 4; bits++ {
		ts := NestedThresholds(bits)
		cut, ints, means := make([]float64, len(ts)), make(
			[]float64,
			len(ts),
		), make([]float64, len(ts))
		for i := range ts {
			cut[i], ints[i] = float64(ts[i]), float64(nestedCentroids[bits][i])
			end := 40.0
			if i+1 < len(ts) {
				end = float64(ts[i+1])
			}
			_, means[i] = cell(cut[i], end)
		}
		d, _ := distortion(cut, ints)
		ideal, _ := distortion(cut, means)
		require.Less(t, d/ideal, 1.002, "integer centroids of lm%d cost more than 0.2 %%", bits)
		best, bestC := lloyd(len(ts))
		opt, _ := distortion(best, bestC)
		require.Less(t, d/opt, 1.013, "nesting of lm%d costs more than 1.3 %%", bits)
		book := Nested(bits)
		for i := range book {
			require.Equal(t, -book[i], book[len(book)-1-i])
		}
	}
}

func TestLloydMax_Derivation(t *testing.T) {
	for bits := 1; bits <= 4; bits++ {
		wantT, wantC := lloyd(1 << (bits - 1))
		for i := range wantT {
			require.InDelta(t, wantT[i], lloydThresholds[bits][i], 2e-6)
			require.InDelta(t, wantC[i], lloydCentroids[bits][i], 2e-6)
		}
	}
}

func TestTables_OtherWidths(t *testing.T) {
	for _, bits := range []int{-1, 0, 5, 32} {
		require.Nil(t, Nested(bits))
		require.Nil(t, NestedThresholds(bits))
		require.Nil(t, LloydMax(bits))
		require.Nil(t, LloydMaxThresholds(bits))
	}
}

// Tables that a caller changes are its own.
func TestTables_Copies(t *testing.T) {
	LloydMaxThresholds(2)[1], NestedThresholds(2)[1], Nested(2)[0], LloydMax(2)[0] = 9, 9, 9, 9
	require.NotEqual(t, float32(9), LloydMaxThresholds(2)[1])
	require.NotEqual(t, float32(9), NestedThresholds(2)[1])
	require.NotEqual(t, int8(9), Nested(2)[0])
	require.NotEqual(t, float32(9), LloydMax(2)[0])
}
