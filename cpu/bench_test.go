// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchCodings are what the benchmarks of attention run over. "mixed" is what a plan makes: half
// lm2, the rest lm3, lm4, u8 and f16.
var benchCodings = map[string][]string{
	"f16": {"f16"}, "u8": {"u8"}, "lm4": {"lm4+s8"}, "lm3": {"lm3+s8"}, "lm2": {"lm2+s8"},
	"mixed": {"lm2+s8", "lm3+s8", "lm2+s8", "lm4+s8", "lm2+s8", "lm3+s8", "lm2+s8", "u8+s8"},
}

// BenchmarkAttend measures one query over a context that stays in the caches nearest to a core.
// ns/pair is per row of K and V together, however many heads look at it.
func BenchmarkAttend(b *testing.B) {
	const tokens, rows = 4096, 32
	for _, isa := range ISAs() {
		for _, format := range []string{"f16", "u8", "lm4", "lm3", "lm2", "mixed"} {
			for _, dim := range []int{64, 128} {
				for _, group := range []int{1, 3, 4, 8} {
					name := fmt.Sprintf("backend=cpu-%s/format=%s/head_dim=%d/gqa=%d/workers=1", isa,
						strings.ReplaceAll(format, "+", "_"), dim, group)
					b.Run(name, func(b *testing.B) {
						r := newRigOf(b, Options{ISA: isa, Workers: 1}, dim, rows, tokens/rows,
							benchCodings[format]...)
						benchAttend(b, r, group, dim, tokens)
					})
				}
			}
		}
	}
}

func benchAttend(b *testing.B, r rig, group, dim, tokens int) {
	q := r.queries(1, group, dim)
	out := make([]float32, group*dim)
	b.SetBytes(int64(tokens * dim * 2 * 2)) // of K and V as f16
	b.ReportAllocs()
	require.NoError(b, r.b.Attend(context.Background(), q, r.blocks, out, nil))
	b.ResetTimer()
	start := cpuTime()
	for b.Loop() {
		if err := r.b.Attend(context.Background(), q, r.blocks, out, nil); err != nil {
			b.Fatal(err)
		}
	}
	used := cpuTime() - start
	pairs := float64(tokens) * float64(b.N)
	b.ReportMetric(float64(used.Nanoseconds())/pairs, "cpu-ns/pair")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/pairs, "ns/pair")
	b.ReportMetric(float64(r.bytes)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "packed-GB/s")
}
