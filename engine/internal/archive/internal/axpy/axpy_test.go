// SPDX-License-Identifier: Apache-2.0

package axpy

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestAccumulate_BitsOfPlainGo also holds that nothing but y is written: y is cut out of a larger
// array.
func TestAccumulate_BitsOfPlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, cols := range []int{1, 3, 4, 63, 64, 65, 128, 130, 192} {
		for _, rows := range []int{0, 1, 2, 7, 64} {
			buf := make([]float32, cols+32)
			for i := range buf {
				buf[i] = float32(rng.NormFloat64())
			}
			want := append([]float32{}, buf...)
			m, c := make([]float32, rows*cols), make([]float32, rows)
			for i := range m {
				m[i] = float32(rng.NormFloat64())
			}
			for i := range c {
				switch rng.IntN(4) {
				case 0:
					c[i] = float32(math.Copysign(0, -1))
				case 1:
				default:
					c[i] = float32(rng.NormFloat64())
				}
			}
			accumulateGeneric(want[16:16+cols], m, c, 0)
			Accumulate(buf[16:16+cols:16+cols], m, c)
			for i := range buf {
				if math.Float32bits(buf[i]) != math.Float32bits(want[i]) {
					t.Fatalf("cols=%d rows=%d: value %d is %v, want %v", cols, rows, i-16, buf[i], want[i])
				}
			}
		}
	}
}

func TestAccumulatePair_BitsOfPlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			if rng.IntN(4) > 0 {
				x[i] = float32(rng.NormFloat64())
			}
		}
		return x
	}
	for _, cols := range []int{1, 4, 63, 64, 65, 128, 130, 192} {
		for _, rows := range []int{0, 1, 2, 7, 64, 129} {
			var got, want [2][]float32
			m, c := random(rows*cols), [2][]float32{random(rows), random(rows)}
			for k := range got {
				got[k] = random(cols + 32)
				want[k] = append([]float32{}, got[k]...)
				accumulateGeneric(want[k][16:16+cols], m, c[k], 0)
			}
			AccumulatePair(got[0][16:16+cols:16+cols], got[1][16:16+cols:16+cols], m, c[0], c[1])
			for k := range got {
				for i := range got[k] {
					if math.Float32bits(got[k][i]) != math.Float32bits(want[k][i]) {
						t.Fatalf("cols=%d rows=%d: row %d value %d is %v, want %v", cols, rows, k, i-16, got[k][i], want[k][i])
					}
				}
			}
		}
	}
}

func TestProducts_BitsOfPlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 3))
	for _, cols := range []int{1, 3, 63, 64, 65, 128, 130} {
		for _, rows := range []int{0, 1, 2, 7, 64} {
			m := make([]float32, rows*cols)
			for i := range m {
				if rng.IntN(5) > 0 {
					m[i] = float32(rng.NormFloat64())
				}
			}
			for _, i := range []int{0, cols / 2, cols - 1} {
				buf := make([]float32, cols+32)
				for j := range buf {
					buf[j] = float32(rng.NormFloat64())
				}
				want, twice := append([]float32{}, buf...), append([]float32{}, buf...)
				var column []float32
				for r := range rows {
					column = append(column, m[r*cols+i])
				}
				productsGeneric(want[16:16+cols], m, i, 0)
				accumulateGeneric(twice[16:16+cols], m, column, 0)
				Products(buf[16:16+cols:16+cols], m, i)
				for j := range buf {
					if buf[j] != want[j] || twice[j] != want[j] {
						t.Fatalf("%d rows of %d, column %d: value %d is %v, want %v and %v", rows, cols, i, j, buf[j], want[j], twice[j])
					}
				}
			}
		}
	}
}

func TestSubtract_BitsOfPlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for n := range 70 {
		x, y, want := make([]float64, n), make([]float64, n+16), make([]float64, n+16)
		for i := range y {
			y[i] = rng.NormFloat64()
		}
		for i := range x {
			x[i] = rng.NormFloat64()
		}
		copy(want, y)
		a := rng.NormFloat64()
		subtractGeneric(want[:n], x, a)
		Subtract(y[:n:n], x, a)
		for i := range y {
			if y[i] != want[i] {
				t.Fatalf("n=%d: value %d is %v, want %v", n, i, y[i], want[i])
			}
		}
	}
}

func BenchmarkAccumulate(b *testing.B) {
	y, m, c := make([]float32, 64), make([]float32, 64*64), make([]float32, 64)
	for i := range c {
		c[i] = 1e-9
	}
	b.SetBytes(4 * 64)
	for b.Loop() {
		Accumulate(y, m, c)
	}
}
