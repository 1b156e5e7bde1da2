// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"encoding/binary"
	"math"
	"testing"
)

// FuzzIsas passes arbitrary activation bits and codes to every vector instruction set. Results must
// be equal bit for bit (NaN with NaN), and plain Go must give NaN for the same elements.
func FuzzIsas(f *testing.F) {
	f.Add(uint8(3), uint8(17), []byte{0, 0, 0x80, 0x7f, 1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff})
	f.Add(uint8(19), uint8(33), []byte{0, 0, 0x80, 0x3f, 0xff, 0xff, 0x7f, 0x7f})
	f.Fuzz(func(t *testing.T, rows, outputs uint8, data []byte) {
		m, n, k := 1+int(rows)%40, 1+int(outputs)%40, 64
		if len(data) < 4 {
			t.Skip("no data")
		}
		a, c8, c4 := make([]float32, m*k), make([]int8, n*k), make([]uint8, n*k)
		for i := range a {
			var w [4]byte
			for j := range w {
				w[j] = data[(4*i+j)%len(data)]
			}
			a[i] = math.Float32frombits(binary.LittleEndian.Uint32(w[:]))
		}
		for i := range c8 {
			c8[i], c4[i] = int8(data[i%len(data)]), data[i%len(data)]&15
		}
		scales := make([]float32, n*k/groupSize)
		for i := range scales {
			scales[i] = float32(i%5) + 0.25
		}
		w8, err8 := NewQ8(n, k, c8, scales)
		w4, err4 := NewQ4(n, k, c4, scales, scales)
		if err8 != nil || err4 != nil {
			t.Fatal(err8, err4)
		}
		var last [2][]float32
		for i, e := range engines(t, 1) {
			got := [2][]float32{make([]float32, m*n), make([]float32, m*n)}
			if err := e.Q8(got[0], a, w8, m); err != nil {
				t.Fatal(err)
			}
			if err := e.Q4(got[1], a, w4, m); err != nil {
				t.Fatal(err)
			}
			for p := range got {
				for j, v := range got[p] {
					if i == 0 {
						break
					}
					w := last[p][j]
					if math.IsInf(float64(w), 0) || math.IsInf(float64(v), 0) {
						continue // sums beyond float32: fusing decides
					}
					if math.IsNaN(float64(v)) != math.IsNaN(float64(w)) &&
						!overflows(a) {
						t.Fatalf("%s product %d element %d: %v, want %v", e.ISA(), p, j, v, w)
					}
					if e.ISA() != "generic" && v != w && v == v {
						t.Fatalf("%s product %d element %d: %v, want %v", e.ISA(), p, j, v, w)
					}
				}
			}
			last = got
		}
	})
}

// overflows reports whether sums of finite activations may exceed float32.
func overflows(a []float32) bool {
	for _, v := range a {
		if math.Abs(float64(v)) > 1e30 && !math.IsInf(float64(v), 0) {
			return true
		}
	}
	return false
}

// FuzzMatrix fills a matrix of a form with arbitrary bytes, as a hostile file could: binary16 bases with
// infinities and NaN too. Vector instruction sets must agree bit for bit (NaN with NaN), and Exact
// with F32 on the rows.
func FuzzMatrix(f *testing.F) {
	f.Add(uint8(9), uint8(1), []byte{1, 2, 3, 0x7c, 0x80, 0xff})
	f.Add(uint8(5), uint8(20), []byte{0x3c, 0, 0x12, 0x34, 0x56, 0x78, 0x9a})
	f.Fuzz(func(t *testing.T, which, rows uint8, data []byte) {
		if len(data) == 0 {
			t.Skip("no data")
		}
		form := testForms[int(which)%len(testForms)].form
		m, n, k := 1+int(rows)%20, 17, 256
		w, err := NewMatrix(form, n, k)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		next := func() uint8 { at++; return data[at%len(data)] }
		for i := range w.codes {
			w.codes[i] = next()
		}
		for _, v := range [][]uint16{w.scales, w.mins} {
			for i := range v {
				v[i] = uint16(next())<<8 | uint16(next())
			}
		}
		for _, v := range [][]int8{w.steps, w.minSub} {
			for i := range v {
				v[i] = int8(next())
			}
		}
		for i := range w.wide {
			w.wide[i] = float32(int8(next())) / 16
		}
		plain := make([]float32, n*k)
		for i := range n {
			w.Row(i, plain[i*k:(i+1)*k])
		}
		a := normals(generator(uint64(which)), make([]float32, m*k))
		var last [2][]float32
		for _, e := range engines(t, 1) {
			got := [3][]float32{make([]float32, m*n), make([]float32, m*n), make([]float32, m*n)}
			if e.Exact(got[0], a, w, m) != nil || e.Fast(got[1], a, w, m) != nil || e.F32(got[2], a, plain, m, n, k) != nil {
				t.Fatal("a product failed")
			}
			equal(t, got[2], got[0], e.ISA()+" exact")
			if last[0] != nil && e.ISA() != "generic" {
				equal(t, last[0], got[0], e.ISA()+" exact")
				equal(t, last[1], got[1], e.ISA()+" fast")
			}
			last = [2][]float32{got[0], got[1]}
		}
	})
}

func equal(t *testing.T, want, got []float32, what string) {
	for i, w := range want {
		if g := got[i]; g != w && (g == g || w == w) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, g, w)
		}
	}
}
