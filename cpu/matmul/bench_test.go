// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"testing"
)

// benchShapes are the products of a 135 M parameter llama: decode and prefill.
var benchShapes = [][3]int{ // m, n, k
	{1, 192, 576}, {1, 576, 576}, {1, 1536, 576}, {1, 576, 1536}, {1, 49152, 576},
	{256, 192, 576}, {256, 1536, 576}, {512, 576, 1536},
}

// bench runs one product over enough copies of its weights that a decode step reads them from
// memory and not from a cache, like the weights of a model. Metrics: GFLOP/s (2*m*n*k) and, for one
// row, GB/s of packed weights.
func bench(b *testing.B, make1 func(n, k int, fill func([]float32)) func(e *Engine, c,
	a []float32, m int) error, bytes func(n, k int) int) {
	r := generator(20)
	for _, e := range engines(b, 0) {
		for _, s := range benchShapes {
			m, n, k := s[0], s[1], s[2]
			if e.ISA() == "generic" && m*n*k > 1<<28 {
				continue
			}
			b.Run(fmt.Sprintf("isa=%s/m=%d/n=%d/k=%d", e.ISA(), m, n, k), func(b *testing.B) {
				copies := 1
				if m == 1 {
					copies = max(1, (64<<20)/bytes(n, k))
				}
				// One set of values serves all copies: drawing them costs more than packing.
				pool := normals(r, make([]float32, 1<<16))
				ops := make([]func(*Engine, []float32, []float32, int) error, copies)
				for i := range ops {
					ops[i] = make1(n, k, func(v []float32) {
						for len(v) > 0 {
							v = v[copy(v, pool):]
						}
					})
				}
				a, c := normals(r, make([]float32, m*k)), make([]float32, m*n)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if err := ops[i%copies](e, c, a, m); err != nil {
						b.Fatal(err)
					}
					i++
				}
				seconds := b.Elapsed().Seconds() / float64(b.N)
				b.ReportMetric(2*float64(m)*float64(n)*float64(k)/seconds/1e9, "GFLOP/s")
				if m == 1 {
					b.ReportMetric(float64(bytes(n, k))/seconds/1e9, "GB/s")
				}
			})
		}
	}
}

type multiply = func(e *Engine, c, a []float32, m int) error

func BenchmarkF32(b *testing.B) {
	bench(b, func(n, k int, fill func([]float32)) multiply {
		w := make([]float32, n*k)
		fill(w)
		return func(e *Engine, c, a []float32, m int) error { return e.F32(c, a, w, m, n, k) }
	}, func(n, k int) int { return 4 * n * k })
}

func benchQ8(n, k int, fill func([]float32)) *Q8Matrix {
	codes, scales := make([]int8, n*k), make([]float32, n*k/groupSize)
	for i := range codes {
		codes[i] = int8(i * 37)
	}
	fill(scales)
	w, err := NewQ8(n, k, codes, scales)
	if err != nil {
		panic(err)
	}
	return w
}

func benchQ4(n, k int, fill func([]float32)) *Q4Matrix {
	codes, scales := make([]uint8, n*k), make([]float32, n*k/groupSize)
	for i := range codes {
		codes[i] = uint8(i*37) & 15
	}
	fill(scales)
	w, err := NewQ4(n, k, codes, scales, scales)
	if err != nil {
		panic(err)
	}
	return w
}

func bytesQ8(n, k int) int { return n * k * 9 / 8 }
func bytesQ4(n, k int) int { return n * k * 6 / 8 }

func BenchmarkQ8(b *testing.B) {
	bench(b, func(n, k int, fill func([]float32)) multiply {
		w := benchQ8(n, k, fill)
		return func(e *Engine, c, a []float32, m int) error { return e.Q8(c, a, w, m) }
	}, bytesQ8)
}

func BenchmarkQ4(b *testing.B) {
	bench(b, func(n, k int, fill func([]float32)) multiply {
		w := benchQ4(n, k, fill)
		return func(e *Engine, c, a []float32, m int) error { return e.Q4(c, a, w, m) }
	}, bytesQ4)
}

func BenchmarkQ8Exact(b *testing.B) {
	bench(b, func(n, k int, fill func([]float32)) multiply {
		w := benchQ8(n, k, fill)
		return func(e *Engine, c, a []float32, m int) error { return e.Q8Exact(c, a, w, m) }
	}, bytesQ8)
}

func BenchmarkQ4Exact(b *testing.B) {
	bench(b, func(n, k int, fill func([]float32)) multiply {
		w := benchQ4(n, k, fill)
		return func(e *Engine, c, a []float32, m int) error { return e.Q4Exact(c, a, w, m) }
	}, bytesQ4)
}

func BenchmarkDot(b *testing.B) {
	r := generator(21)
	x, y := normals(r, make([]float32, 64)), normals(r, make([]float32, 64))
	for _, e := range engines(b, 1) {
		b.Run("isa="+e.ISA()+"/n=64", func(b *testing.B) {
			var s float32
			for b.Loop() {
				s += e.Dot(x, y)
			}
			_ = s
		})
	}
}

func BenchmarkAxpy(b *testing.B) {
	r := generator(22)
	x, y := normals(r, make([]float32, 64)), make([]float32, 64)
	for _, e := range engines(b, 1) {
		b.Run("isa="+e.ISA()+"/n=64", func(b *testing.B) {
			for b.Loop() {
				e.Axpy(y, 0.5, x)
			}
		})
	}
}

// benchMatrix is a matrix of a form, by its name in testForms.
func benchMatrix(name string, fast bool) (func(n, k int, fill func([]float32)) multiply, func(n, k int) int) {
	for _, f := range testForms {
		if f.name != name {
			continue
		}
		r := generator(23)
		return func(n, k int, _ func([]float32)) multiply {
				w, err := NewMatrix(f.form, n, k)
				if err != nil {
					panic(err)
				}
				for i := range w.codes {
					w.codes[i] = uint8(i * 37)
				}
				for i := range min(n, 4) {
					if err := w.SetRow(i, randomRow(r, f.form, k)); err != nil {
						panic(err)
					}
				}
				if fast {
					return func(e *Engine, c, a []float32, m int) error { return e.Fast(c, a, w, m) }
				}
				return func(e *Engine, c, a []float32, m int) error { return e.Exact(c, a, w, m) }
			}, func(n, k int) int {
				w, _ := NewMatrix(f.form, 16, 256)
				return n * k / 256 * w.SizeBytes() / 16
			}
	}
	panic(name)
}

// BenchmarkMatrix takes shapes whose k is a multiple of 256.
func BenchmarkMatrix(b *testing.B) {
	was := benchShapes
	defer func() { benchShapes = was }()
	benchShapes = [][3]int{{1, 2048, 768}, {1, 640, 2048}, {256, 2048, 768}}
	b.Run("form=Q8/mode=fast", BenchmarkQ8)
	b.Run("form=Q4/mode=fast", BenchmarkQ4)
	b.Run("form=Q8/mode=exact", BenchmarkQ8Exact)
	b.Run("form=Q4/mode=exact", BenchmarkQ4Exact)
	for _, f := range testForms[:13] {
		for _, mode := range []string{"fast", "exact"} {
			b.Run("form="+f.name+"/mode="+mode, func(b *testing.B) {
				make1, bytes := benchMatrix(f.name, mode == "fast")
				bench(b, make1, bytes)
			})
		}
	}
}
