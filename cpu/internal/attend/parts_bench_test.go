// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// BenchmarkDirect measures what a tile of 32 rows of 64 values and three heads takes, step by step.
// ns/row is that of the fastest twenty calls in a row: other work of the machine changes it least.
func BenchmarkDirect(b *testing.B) {
	const rows, dim, heads = TileRows, byteBlock, 3
	for _, k := range Native() {
		if k.bytes == nil {
			continue
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for _, f := range byteFormats[:4] {
			packed := randomBytes(rng, quant.Coding{Format: f}.PackedBytes(rows, dim))
			q := make([]byte, heads*QueryBytes(dim))
			x := make([]float32, dim)
			for h := range heads {
				for i := range x {
					x[i] = float32(rng.NormFloat64())
				}
				k.CutQuery(q[h*QueryBytes(dim):], x)
			}
			h := Heads{Dots: make([]float32, heads*TileRows), Weights: make([]float32, heads*TileRows),
				Energy: make([]float32, heads), Tops: make([]float32, heads), Sums: make([]float32, heads),
				Masks: make([]uint32, heads)}
			w := Weights{Digits: make([]byte, heads*DigitBytes), Units: make([]float32, heads)}
			acc := make([]float32, heads*dim)
			var t Terms
			var scale [TileRows]float32
			for i := range scale {
				t.Mul[i], scale[i] = 0.001, 1
			}
			dots := func() { k.DotPlanes(h.Dots, q, heads, f, packed, rows, 0, rows) }
			softmax := func() {
				h.Masks[0], h.Masks[1], h.Masks[2] = ^uint32(0), ^uint32(0), ^uint32(0)
				k.SoftmaxCut(&w, &h, 0, heads, &t, &scale)
			}
			add := func() { k.AddPlanes(acc, &w, heads, f, packed, rows, 0, rows) }
			name := k.ISA() + "/" + f.String()
			best(b, name+"/dots", dots)
			best(b, name+"/softmax", softmax)
			best(b, name+"/add", add)
			best(b, name+"/all", func() { dots(); softmax(); add() })
		}
	}
}

func best(b *testing.B, name string, f func()) {
	b.Run(name, func(b *testing.B) {
		least := time.Hour
		for b.Loop() {
			start := time.Now()
			for range 20 {
				f()
			}
			least = min(least, time.Since(start))
		}
		b.ReportMetric(float64(least.Nanoseconds())/20/TileRows, "ns/row")
	})
}
