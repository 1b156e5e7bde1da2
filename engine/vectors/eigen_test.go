// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEigen(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 16, 65} {
		for _, rank := range []int{n, (n + 1) / 2} { // singular ones too
			a := make([]float64, n*n)
			for range rank {
				x := make([]float64, n)
				for i := range x {
					x[i] = rng.NormFloat64()
				}
				for i := range n {
					for j := range n {
						a[i*n+j] += x[i] * x[j]
					}
				}
			}
			w, v := eigen(slices.Clone(a), n)
			require.True(t, slices.IsSortedFunc(w, func(x, y float64) int { return -cmpFloat(x, y) }))
			for k := range n {
				row := v[k*n : (k+1)*n]
				for j := range n {
					var av, dot float64
					for i := range n {
						av += a[j*n+i] * row[i]
						dot += v[j*n+i] * row[i]
					}
					require.InDelta(t, w[k]*row[j], av, 1e-9*float64(n)*max(1, w[0]), "n %d rank %d vector %d", n, rank, k)
					want := 0.0
					if j == k {
						want = 1
					}
					require.InDelta(t, want, dot, 1e-10)
				}
			}
		}
	}
}

func cmpFloat(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
