// SPDX-License-Identifier: Apache-2.0

package frame_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func TestPutMean_ByHand(t *testing.T) {
	x := quant.Rows{Dim: 3, Data: []float32{1, -2, 3e38, 2, -4, 3e38}}
	stored := make([]byte, frame.MeanBytes(3))
	require.NoError(t, frame.PutMean(stored, x))
	got := make([]float32, 3)
	require.NoError(t, frame.Mean(got, stored))
	require.Equal(t, []float32{1.5, -3, 65504}, got, "beyond binary16: the largest that it has")
	require.NoError(t, frame.PutMean(stored, quant.Rows{Dim: 3}))
	require.Equal(t, make([]byte, 6), stored, "the mean of no rows")
	var re *quant.RowError
	x.Data[4] = float32(math.NaN())
	require.ErrorAs(t, frame.PutMean(stored, x), &re)
	require.Equal(t, 1, re.Row)
	require.Equal(t, make([]byte, 6), stored, "nothing is written")
	require.ErrorIs(t, frame.PutMean(stored[1:], quant.Rows{Dim: 3}), quant.ErrShape)
	require.ErrorIs(t, frame.PutMeanOfSums(stored[1:], make([]float64, 3), 1), quant.ErrShape)
	require.ErrorIs(t, frame.Mean(got, stored[:4]), quant.ErrShape)
}

func randomMatrix(rng *rand.Rand, dim int) []float32 {
	a := make([]float32, dim*dim)
	for i := range a {
		a[i] = float32(0.3 * rng.NormFloat64() / math.Sqrt(float64(dim)))
		if i%(dim+1) == 0 {
			a[i]++
		}
	}
	return a
}

func metrics(t testing.TB, dim int) map[string]*frame.Metric {
	rng := rand.New(rand.NewPCG(1, uint64(dim)))
	a := make([]float32, dim)
	for i := range a {
		a[i] = float32(math.Exp2(6*rng.Float64() - 3))
	}
	diag, err := frame.NewDiagonal(a)
	require.NoError(t, err)
	full, err := frame.NewMatrix(randomMatrix(rng, dim), dim)
	require.NoError(t, err)
	return map[string]*frame.Metric{"none": nil, "diagonal": diag, "matrix": full}
}

// Center and Uncenter undo each other, and the inner product of a query in the metric with a centred
// row, plus that with the mean, is that of the query with the row.
func TestCenter_KeepsInnerProducts(t *testing.T) {
	for _, dim := range []int{1, 8, 64, 96} {
		for name, m := range metrics(t, dim) {
			t.Run(fmt.Sprintf("metric=%s/dim=%d", name, dim), func(t *testing.T) {
				x := quanttest.Rows(quanttest.Gaussian, 20, dim, 3)
				for i := range x.Data {
					x.Data[i] += float32(3 * (i % dim % 2))
				}
				stored, mean := make([]byte, frame.MeanBytes(dim)), make([]float32, dim)
				require.NoError(t, frame.PutMean(stored, x))
				require.NoError(t, frame.Mean(mean, stored))
				y := quant.Rows{Dim: dim, Data: make([]float32, len(x.Data))}
				require.NoError(t, frame.Center(y, x, stored, m))
				q := quanttest.Rows(quanttest.Gaussian, 1, dim, 4).Data
				qm := append([]float32(nil), q...)
				if m != nil {
					m.Query(qm, q)
				}
				for r := range x.Len() {
					var want, got float64
					for d := range dim {
						want += float64(q[d]) * float64(x.Row(r)[d])
						got += float64(qm[d])*float64(y.Row(r)[d]) + float64(q[d])*float64(mean[d])
					}
					require.InDelta(t, want, got, 1e-4, "row %d", r)
				}
				same := quant.Rows{Dim: dim, Data: append([]float32(nil), x.Data...)}
				require.NoError(t, frame.Center(same, same, stored, m))
				require.Equal(t, y, same, "in place")
				require.NoError(t, frame.Uncenter(y, y, stored, m))
				for i := range y.Data {
					require.InDelta(t, x.Data[i], y.Data[i], 1e-4)
				}
			})
		}
	}
}

// The bits of Center are those of the written order: a difference rounded, then a product rounded, or
// a sum in float64 rounded once.
func TestCenter_Bits(t *testing.T) {
	const dim = 5
	x := quanttest.Rows(quanttest.HeavyTails, 7, dim, 3)
	stored, mean := make([]byte, 2*dim), make([]float32, dim)
	require.NoError(t, frame.PutMean(stored, x))
	require.NoError(t, frame.Mean(mean, stored))
	a := []float32{0.3, 7, 1, 0.1, 3}
	diag, err := frame.NewDiagonal(a)
	require.NoError(t, err)
	got := quant.Rows{Dim: dim, Data: make([]float32, len(x.Data))}
	require.NoError(t, frame.Center(got, x, stored, diag))
	matrix := randomMatrix(rand.New(rand.NewPCG(1, 2)), dim)
	full, err := frame.NewMatrix(matrix, dim)
	require.NoError(t, err)
	mixed := quant.Rows{Dim: dim, Data: make([]float32, len(x.Data))}
	require.NoError(t, frame.Center(mixed, x, nil, full))
	for r := range x.Len() {
		for i := range dim {
			d := float32(x.Row(r)[i] - mean[i])
			require.Equal(t, float32(d*a[i]), got.Row(r)[i])
			var sum float64
			for j := range dim {
				sum += float64(matrix[i*dim+j]) * float64(x.Row(r)[j])
			}
			require.Equal(t, float32(sum), mixed.Row(r)[i])
		}
	}
}

func TestMetric_Refuses(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, a := range [][]float32{{0}, {1, -1}, {nan}, {inf}, {1e-40}} {
		_, err := frame.NewDiagonal(a)
		require.ErrorIs(t, err, quant.ErrRange, "%v", a)
	}
	_, err := frame.NewDiagonal(nil)
	require.ErrorIs(t, err, quant.ErrShape)
	for _, a := range [][]float32{{1, 2, 2, 4}, {nan, 0, 0, 1}, {0, 0, 0, 0}, {inf, 0, 0, 1}} {
		_, err := frame.NewMatrix(a, 2)
		require.ErrorIs(t, err, quant.ErrRange, "%v", a)
	}
	for _, dim := range []int{0, -1, 3, quant.MaxDim + 1, math.MaxInt} {
		_, err = frame.NewMatrix(make([]float32, 4), dim)
		require.ErrorIs(t, err, quant.ErrShape, "dim %d", dim)
	}
	const big = 513
	_, err = frame.NewMatrix(make([]float32, big*big), big)
	require.ErrorIs(t, err, quant.ErrTooLarge)
	m, err := frame.NewMatrix([]float32{0, 2, 1, 0}, 2) // a pivot of 0 is passed over
	require.NoError(t, err)
	require.Equal(t, []float32{0, 1, 0.5, 0}, m.Inverse())
}

func TestCenter_Refuses(t *testing.T) {
	x := quant.Rows{Dim: 2, Data: []float32{1, 2, 3e38, 4}}
	y := quant.Rows{Dim: 2, Data: make([]float32, 4)}
	m, err := frame.NewDiagonal([]float32{16, 1})
	require.NoError(t, err)
	var re *quant.RowError
	require.ErrorAs(t, frame.Center(y, x, nil, m), &re)
	require.Equal(t, 1, re.Row)
	require.ErrorIs(t, re, quant.ErrRange)
	require.ErrorIs(t, frame.Center(y, x, make([]byte, 3), nil), quant.ErrShape)
	require.ErrorIs(t, frame.Center(quant.Rows{Dim: 4, Data: y.Data}, x, nil, nil), quant.ErrShape)
	three, err := frame.NewDiagonal([]float32{1, 1, 1})
	require.NoError(t, err)
	require.ErrorIs(t, frame.Uncenter(y, x, nil, three), quant.ErrShape)
}
