// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// BenchmarkRun measures what a tile of 32 rows of 64 values and three heads takes in a run, step by step.
// ns/row is that of the fastest twenty calls in a row: other work of the machine changes it least.
func BenchmarkRun(b *testing.B) {
	const heads = RunHeads
	for _, k := range Native() {
		if k.bytes == nil {
			continue
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for _, f := range byteFormats[:4] {
			c := quant.Coding{Format: f, Scale: quant.ScaleLog8}
			form := k.TileForm(c, c, TileRows, byteBlock, byteBlock, 0)
			side := randomBytes(rng, c.PackedBytes(TileRows, byteBlock))
			base := c.Format.Bits() * layout.PlaneBytes(TileRows, byteBlock)
			binary.LittleEndian.PutUint32(side[base:], math.Float32bits(1))
			q := make([]byte, heads*QueryBytes(byteBlock))
			x := make([]float32, byteBlock)
			for h := range heads {
				for i := range x {
					x[i] = float32(rng.NormFloat64())
				}
				k.CutQuery(q[h*QueryBytes(byteBlock):], x)
			}
			acc := make([]float32, heads*byteBlock)
			var r Run
			r.Begin(k, q, heads, 0.125)
			for i := range runTiles {
				r.Put(i, &form, side, side, 0)
			}
			name := k.ISA() + "/" + f.String()
			best(b, name+"/dots", func() { r.Dots(0) })
			best(b, name+"/softmax", func() { r.Weigh(0, true) })
			best(b, name+"/add", func() { r.Add(acc, 0, false) })
			best(b, name+"/two", func() {
				for i := range 2 {
					r.Weigh(i, true)
					r.Add(acc, i, true)
				}
			})
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
