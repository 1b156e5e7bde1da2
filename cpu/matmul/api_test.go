// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// TestDotAxpy takes every length up to 100 and compares with float64 and across vector
// instruction sets.
func TestDotAxpy(t *testing.T) {
	r := generator(9)
	for n := 0; n <= 100; n++ {
		a := normals(r, guarded[float32](t, n, n%2 == 0))
		b := normals(r, guarded[float32](t, n, n%2 == 0))
		d := normals(r, make([]float32, n))
		var want, size float64
		for i := range a {
			want += float64(a[i]) * float64(b[i])
			size += math.Abs(float64(a[i]) * float64(b[i]))
		}
		var dot []float32
		var sums [][]float32
		for _, e := range engines(t, 1) {
			got := e.Dot(a, append(b[:n:n], 5)) // the longer one is cut
			require.InDelta(t, want, float64(got), float64(n+2)*ulp*size, "%s n=%d", e.ISA(), n)
			y := moved(t, d, n%2 == 0)
			e.Axpy(y, 0.7, b)
			for i := range y {
				exact := float64(d[i]) + float64(float32(0.7))*float64(b[i])
				tol := 2 * ulp * (math.Abs(float64(d[i])) + math.Abs(float64(b[i])))
				require.InDelta(t, exact, float64(y[i]), tol, "%s n=%d i=%d", e.ISA(), n, i)
			}
			if e.ISA() != "generic" {
				dot, sums = append(dot, got), append(sums, y)
			}
		}
		for i := 1; i < len(dot); i++ {
			same(t, dot[:1], dot[i:i+1], "Dot")
			same(t, sums[0], sums[i], "Axpy")
		}
	}
}

func TestRow(t *testing.T) {
	const n, k = 19, 64
	r := generator(10)
	c8, c4 := make([]int8, n*k), make([]uint8, n*k)
	for i := range c8 {
		c8[i], c4[i] = int8(r.Uint32()), uint8(r.Uint32()&15)
	}
	scales, mins := normals(r, make([]float32, n*2)), normals(r, make([]float32, n*2))
	w8, err := NewQ8(n, k, c8, scales)
	require.NoError(t, err)
	w4, err := NewQ4(n, k, c4, scales, mins)
	require.NoError(t, err)
	require.Equal(t, [4]int{n, k, n, k}, [4]int{w8.N(), w8.K(), w4.N(), w4.K()})
	require.Equal(t, 32*k*9/8, w8.SizeBytes(), "two panels, 9 bits a weight")
	require.Equal(t, 32*k*6/8, w4.SizeBytes(), "two panels, 6 bits a weight")
	for i := range n {
		r8, r4 := make([]float32, k+3), make([]float32, k+3)
		r8[k], r4[k] = 5, 5
		w8.Row(i, r8)
		w4.Row(i, r4)
		for j := range k {
			g := i*2 + j/groupSize
			require.Equal(t, scales[g]*float32(c8[i*k+j]), r8[j])
			p := scales[g] * float32(c4[i*k+j])
			require.Equal(t, p+mins[g], r4[j])
		}
		require.Equal(t, []float32{5, 0, 0}, r8[k:])
		require.Equal(t, []float32{5, 0, 0}, r4[k:])
	}
	short := []float32{9, 9}
	w8.Row(-1, short)
	w4.Row(n, short)
	require.Equal(t, []float32{9, 9}, short)
	w4.Row(3, short)
	require.NotEqual(t, []float32{9, 9}, short)
}

func TestOpen_Errors(t *testing.T) {
	_, err := Open(Options{ISA: "sse9"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = Open(Options{Workers: -1})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = Open(Options{Workers: maxWorkers + 1})
	require.ErrorIs(t, err, quant.ErrShape)
	for _, isa := range []string{"avx2", "avx512"} {
		if !strings.Contains(strings.Join(Supported(), ","), isa) {
			_, err = Open(Options{ISA: isa})
			require.ErrorIs(t, err, quant.ErrUnavailable)
		}
	}
	e, err := Open(Options{})
	require.NoError(t, err)
	require.Equal(t, Supported()[0], e.ISA())
	require.Positive(t, e.Workers())
	require.Equal(t, "generic", Supported()[len(Supported())-1])
}

func TestArguments(t *testing.T) {
	e, err := Open(Options{Workers: 1})
	require.NoError(t, err)
	o := makeOperands(t, generator(11), 3, 5, 32, false)
	c := make([]float32, 15)
	huge := maxInt/2 + 1
	for name, err := range map[string]error{
		"short a":    e.F32(c, o.a[1:], o.b, 3, 5, 32),
		"short b":    e.F32(c, o.a, o.b[1:], 3, 5, 32),
		"short c":    e.F32(c[1:], o.a, o.b, 3, 5, 32),
		"negative m": e.F32(c, o.a, o.b, -1, 5, 32),
		"negative n": e.F32(c, o.a, o.b, 3, -5, 32),
		"negative k": e.F32(c, o.a, o.b, 3, 5, -32),
		"overflow":   e.F32(c, o.a, o.b, huge, huge, huge),
		"overflow 0": e.F32(c, nil, nil, huge, 4, 0),
		"nil Q8":     e.Q8(c, o.a, nil, 3),
		"nil Q4":     e.Q4(c, o.a, nil, 3),
		"nil Q8E":    e.Q8Exact(c, o.a, nil, 3),
		"nil Q4E":    e.Q4Exact(c, o.a, nil, 3),
		"Q8":         e.Q8(c, o.a, o.w8, 4),
		"Q4":         e.Q4(c[:14], o.a, o.w4, 3),
		"Q8Exact":    e.Q8Exact(c, o.a, o.w8, huge),
		"Q4Exact":    e.Q4Exact(c, o.a, o.w4, -3),
	} {
		require.ErrorIs(t, err, quant.ErrShape, name)
		require.ErrorContains(t, err, "kvist/matmul: ", name)
	}
	require.Equal(t, make([]float32, 15), c, "nothing written on an error")

	_, err = NewQ8(2, 33, make([]int8, 66), make([]float32, 2))
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ8(2, 32, make([]int8, 63), make([]float32, 2))
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ8(2, 32, make([]int8, 64), make([]float32, 3))
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ8(-2, 32, nil, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ8(huge, 64, nil, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ4(1, 32, make([]uint8, 32), make([]float32, 1), nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewQ4(1, 32, append(make([]uint8, 31), 16), make([]float32, 1), make([]float32, 1))
	require.ErrorIs(t, err, quant.ErrRange)
}

// TestEmpty: no rows or outputs do nothing, no inputs give zeros.
func TestEmpty(t *testing.T) {
	w8, err := NewQ8(4, 0, nil, nil)
	require.NoError(t, err)
	w4, err := NewQ4(0, 64, nil, nil, nil)
	require.NoError(t, err)
	huge, err := NewQ8(maxInt/4, 0, nil, nil)
	require.NoError(t, err)
	require.Zero(t, huge.SizeBytes())
	for _, e := range engines(t, 2) {
		c := []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}
		require.NoError(t, e.F32(c, nil, make([]float32, 21), 0, 7, 3))
		require.NoError(t, e.Q4(c, make([]float32, 128), w4, 2))
		require.Equal(t, []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}, c)
		require.NoError(t, e.Q8(c, nil, w8, 1))
		require.Equal(t, []float32{0, 0, 0, 0, 5, 6, 7, 8, 9}, c)
		require.NoError(t, e.F32(c, nil, nil, 2, 4, 0))
		require.Equal(t, []float32{0, 0, 0, 0, 0, 0, 0, 0, 9}, c)
	}
}
