// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// inPanels lays a matrix [n, k] out in panels [n/16][k][16].
func inPanels(dst, b []float32, n, k int) {
	for j := range n {
		for l := range k {
			dst[(j/16*k+l)*16+j%16] = b[j*k+l]
		}
	}
}

// TestPanels: the sums are those of F32, bit for bit, also when they are added.
func TestPanels(t *testing.T) {
	r := generator(40)
	for i, s := range [][3]int{{1, 16, 1}, {3, 128, 64}, {2, 48, 5}, {4, 80, 33}, {29, 64, 128}, {13, 112, 7},
		{1, 256, 128}, {9, 32, 384}} {
		m, n, k, front := s[0], s[1], s[2], i%2 == 0
		ldc, lda := n+i%3, k+i%2*5
		a := normals(r, guarded[float32](t, (m-1)*lda+k, front))
		b := normals(r, make([]float32, n*k))
		panels := guarded[float32](t, n*k, front)
		inPanels(panels, b, n, k)
		dense := make([]float32, m*k)
		for j := range m {
			copy(dense[j*k:(j+1)*k], a[j*lda:])
		}
		var last []float32
		for _, e := range engines(t, 1) {
			what := fmt.Sprintf("isa=%s m=%d n=%d k=%d", e.ISA(), m, n, k)
			want, c := make([]float32, m*n), nans(t, (m-1)*ldc+n, front)
			require.NoError(t, e.F32(want, dense, b, m, n, k))
			require.NoError(t, e.Panels(c, ldc, a, lda, panels, m, n, k, false))
			for j := range m {
				same(t, want[j*n:(j+1)*n], c[j*ldc:j*ldc+n], what)
			}
			if ldc > n && m > 1 {
				require.True(t, math.IsNaN(float64(c[n])), "between rows nothing is written")
			}
			require.NoError(t, e.Panels(c, ldc, a, lda, panels, m, n, k, true))
			if last != nil && e.ISA() != "generic" {
				for j := range m {
					same(t, last[j*ldc:j*ldc+n], c[j*ldc:j*ldc+n], what+" added")
				}
			}
			last = c
			for j := range m {
				for o := range n {
					size := 0.0
					for l := range k {
						size += math.Abs(float64(dense[j*k+l]) * float64(b[o*k+l]))
					}
					require.InDelta(t, 2*float64(want[j*n+o]), float64(c[j*ldc+o]), 3*float64(k+2)*ulp*size, what)
				}
			}
		}
	}
}

func TestPanels_Arguments(t *testing.T) {
	e, err := Open(Options{Workers: 1})
	require.NoError(t, err)
	c, a, b := make([]float32, 64), make([]float32, 64), make([]float32, 64)
	huge := maxInt/2 + 1
	for name, err := range map[string]error{
		"n":          e.Panels(c, 15, a, 4, b, 1, 15, 4, false),
		"negative m": e.Panels(c, 16, a, 4, b, -1, 16, 4, false),
		"negative k": e.Panels(c, 16, a, 4, b, 1, 16, -4, false),
		"ldc":        e.Panels(c, 15, a, 4, b, 1, 16, 4, false),
		"lda":        e.Panels(c, 16, a, 3, b, 1, 16, 4, false),
		"short c":    e.Panels(c, 16, a, 4, b, 5, 16, 4, false),
		"short a":    e.Panels(c, 16, a, 33, b, 3, 16, 4, false),
		"short b":    e.Panels(c, 32, a, 4, b, 1, 32, 4, false),
		"overflow":   e.Panels(c, huge, a, huge, b, huge, 16, 4, false),
	} {
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	require.NoError(t, e.Panels(nil, 16, nil, 4, nil, 0, 16, 4, false))
	c[3], c[20] = 1, 2
	require.NoError(t, e.Panels(c, 32, nil, 0, nil, 1, 16, 0, true))
	require.EqualValues(t, 1, c[3])
	require.NoError(t, e.Panels(c, 32, nil, 0, nil, 1, 16, 0, false))
	require.Equal(t, []float32{0, 2}, []float32{c[3], c[20]})
}

// TestExpSum compares every length with float64 and the vector instruction sets with each other.
func TestExpSum(t *testing.T) {
	r := generator(41)
	list := engines(t, 1)
	for n := range 130 {
		x := normals(r, guarded[float32](t, n, n%2 == 0))
		for i := range x {
			x[i] *= []float32{1, 10, 50}[i%3]
		}
		top := float32(0)
		for _, v := range x {
			top = max(top, v)
		}
		var first []float32
		for _, e := range list {
			dst := nans(t, n, n%2 == 0)
			sum := e.ExpSum(dst, x, top)
			var want float64
			for i, v := range x {
				d := float64(v - top)
				exact := math.Exp(d)
				if d < expMin {
					exact = 0
				}
				require.InDelta(t, exact, float64(dst[i]), 3e-7*exact, "%s n=%d i=%d x=%v", e.ISA(), n, i, d)
				want += exact
			}
			require.InDelta(t, want, float64(sum), (3e-7+float64(n/32+7)*ulp)*want, "%s n=%d", e.ISA(), n)
			require.Equal(t, top, e.Largest(x, 0))
			if n > 0 {
				require.Equal(t, largestGeneric(x, x[0]), e.Largest(x, x[0]), "%s n=%d", e.ISA(), n)
			}
			got := append(dst[:n:n], sum)
			if first != nil && e.ISA() != "generic" {
				same(t, first, got, e.ISA())
			}
			first = got
		}
	}
}

// TestExpSum_Special: limits, infinities and NaN, at every place of a vector.
func TestExpSum_Special(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, e := range engines(t, 1) {
		for n := 1; n < 70; n += 11 {
			for at := range n {
				for _, c := range []struct{ x, want float32 }{
					{-87, float32(math.Exp(-87))}, {-87.5, 0}, {-inf, 0}, {-1e30, 0}, {0, 1}, {nan, nan},
					{88, float32(math.Exp(88))}, {200, float32(math.Exp(88))}, {inf, float32(math.Exp(88))},
				} {
					x, dst := make([]float32, n), make([]float32, n)
					for i := range x {
						x[i] = -100
					}
					x[at] = c.x
					sum := e.ExpSum(dst, x, 0)
					what := fmt.Sprintf("%s n=%d at=%d x=%v: %v, sum %v", e.ISA(), n, at, c.x, dst[at], sum)
					if c.want != c.want {
						require.True(t, dst[at] != dst[at] && sum != sum, what)
					} else {
						require.InDelta(t, float64(c.want), float64(dst[at]), 3e-7*float64(c.want), what)
						require.Equal(t, dst[at], sum, what)
					}
					require.Equal(t, largestGeneric(x, -inf), e.Largest(x, -inf), what)
				}
			}
		}
		x := []float32{1, 2, 3}
		sum := e.ExpSum(x, x, 3)
		require.InDelta(t, float64(x[0]+x[1]+x[2]), float64(sum), 1e-6, "in place")
		require.EqualValues(t, 0, e.ExpSum(nil, x, 3))
		require.EqualValues(t, 7, e.Largest(nil, 7))
	}
}
