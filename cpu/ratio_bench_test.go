// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// BenchmarkAttendRatio measures what attention takes from cache, as a part of what it takes for f16:
// calls of all formats take turns, and x-of-f16 is the median over the turns, which other work of
// the machine changes least. Times are of the processor; ns/pair is that of the fastest calls.
func BenchmarkAttendRatio(b *testing.B) {
	for _, isa := range ISAs() {
		for _, dim := range []int{64, 128} {
			for _, group := range []int{1, 3, 4, 8} {
				name := fmt.Sprintf("backend=cpu-%s/head_dim=%d/gqa=%d", isa, dim, group)
				b.Run(name, func(b *testing.B) { benchRatio(b, isa, dim, group) })
			}
		}
	}
}

func benchRatio(b *testing.B, isa string, dim, group int) {
	be := openBench(b, isa, 1)
	calls := make([]func(), len(benchFormats))
	tokens := make([]float64, len(benchFormats))
	for i, format := range benchFormats {
		one := newBenchRig(b, be, format, dim, 32, 1)
		size := one.bytes * int64(4096/one.tokens)
		r := newBenchRig(b, be, format, dim, 32, size+size/64)
		tokens[i] = float64(r.tokens)
		q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, group, dim, 9).Data, Group: group,
			HeadDim: dim, HeadDimV: dim, Scale: float32(1 / math.Sqrt(float64(dim))),
			Pos: []int64{int64(r.tokens)}, BlockPtr: []int32{0, int32(len(r.blocks))}}
		for j := range r.blocks {
			q.BlockIdx = append(q.BlockIdx, int32(j))
		}
		out, v := make([]float32, group*dim), r.view(b, dim)
		calls[i] = func() {
			if err := be.Attend(context.Background(), q, v, backend.Attention{Out: out}); err != nil {
				b.Fatal(err)
			}
		}
		calls[i]()
	}
	least, ratios := make([]float64, len(calls)), make([][]float64, len(calls))
	for b.Loop() {
		var f16 float64
		for i, f := range calls {
			start := cpuTime()
			f()
			f()
			ns := float64((cpuTime() - start).Nanoseconds()) / 2 / tokens[i]
			if i == 0 {
				f16 = ns
			}
			if least[i] == 0 || ns < least[i] {
				least[i] = ns
			}
			ratios[i] = append(ratios[i], ns/f16)
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, format := range benchFormats {
		slices.Sort(ratios[i])
		b.ReportMetric(least[i], format+"-ns/pair")
		b.ReportMetric(ratios[i][len(ratios[i])/2], format+"-x-of-f16")
	}
}
