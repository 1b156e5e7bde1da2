// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func randomRows(rng *rand.Rand, rows, dim int, scale float64) quant.Rows {
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	for i := range x.Data {
		x.Data[i] = float32(scale * rng.NormFloat64())
	}
	return x
}

// part returns rows [lo, hi), sharing memory.
func part(x quant.Rows, lo, hi int) quant.Rows {
	return quant.Rows{Dim: x.Dim, Data: x.Data[lo*x.Dim : hi*x.Dim]}
}

func join(parts ...quant.Rows) quant.Rows {
	out := quant.Rows{Dim: parts[0].Dim}
	for _, p := range parts {
		out.Data = append(out.Data, p.Data...)
	}
	return out
}

func scaled(x quant.Rows, f float32) quant.Rows {
	out := quant.Rows{Dim: x.Dim, Data: slices.Clone(x.Data)}
	for i := range out.Data {
		out.Data[i] *= f
	}
	return out
}

func upTo(n int) []int64 {
	x := make([]int64, n)
	for i := range x {
		x[i] = int64(i)
	}
	return x
}

func close32(t require.TestingT, want, got []float64, relative float64) {
	require.Len(t, got, len(want))
	for i, w := range want {
		if math.Abs(got[i]-w) > relative*math.Abs(w)+1e-300 {
			require.Failf(t, "values differ", "index %d: want %v, got %v", i, w, got[i])
		}
	}
}

// spearman is the rank correlation of a and b; ties share their mean rank.
func spearman(a, b []float64) float64 {
	x, y := ranks(a), ranks(b)
	mean := float64(len(a)-1) / 2
	var xy, xx, yy float64
	for i := range x {
		xy += (x[i] - mean) * (y[i] - mean)
		xx += (x[i] - mean) * (x[i] - mean)
		yy += (y[i] - mean) * (y[i] - mean)
	}
	if xx == 0 || yy == 0 {
		return 0
	}
	return xy / math.Sqrt(xx*yy)
}

func ranks(x []float64) []float64 {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case x[a] < x[b]:
			return -1
		case x[a] > x[b]:
			return 1
		}
		return a - b
	})
	out := make([]float64, len(x))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && x[order[j]] == x[order[i]] {
			j++
		}
		for _, o := range order[i:j] {
			out[o] = float64(i+j-1) / 2
		}
		i = j
	}
	return out
}

func TestSpearman_KnowsTiesAndOrder(t *testing.T) {
	require.InDelta(t, 1, spearman([]float64{1, 2, 3}, []float64{10, 20, 21}), 1e-12)
	require.InDelta(t, -1, spearman([]float64{1, 2, 3}, []float64{3, 2, 1}), 1e-12)
	require.Zero(t, spearman([]float64{1, 1, 1}, []float64{3, 2, 1}))
	require.Equal(t, []float64{0.5, 0.5, 2}, ranks([]float64{4, 4, 9}))
}

func withNaN(x quant.Rows) quant.Rows {
	out := scaled(x, 1)
	out.Data[len(out.Data)/2] = float32(math.NaN())
	return out
}
