// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// Once the pools are warm, Attend, Relevance and Encode do not allocate, with one worker or
// several.
func TestSteadyState_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools drop what they are given")
	}
	const dim, rows, n, group = 64, 100, 40, 3
	for _, isa := range ISAs() {
		for _, workers := range []int{1, 3} {
			r := newRigOf(t, Options{ISA: isa, Workers: workers}, dim, rows, n, "lm3+s8", "f16", "u8",
				"lm2+len")
			q := r.queries(2, group, dim)
			out, lse := make([]float32, 2*group*dim), make([]float32, 2*group)
			rel := &backend.RelevanceOut{Power: 1, RowPtr: []int32{0}, Sum: make([]float32, n*rows)}
			for i := range n {
				rel.RowPtr = append(rel.RowPtr, int32(rows*(i+1)))
			}
			mass, v := make([]float32, len(q.BlockIdx)), r.view(t, dim)
			jobs := encodeJobs(t, r.b, dim)
			ctx := context.Background()
			for name, f := range map[string]func() error{
				"attend":    func() error { return r.b.Attend(ctx, q, v, backend.Attention{Out: out, LSE: lse, Mass: mass}) },
				"relevance": func() error { return r.b.Relevance(ctx, q, lse, v, rel) },
				"encode":    func() error { return r.b.Encode(ctx, jobs) },
			} {
				for range 3 {
					require.NoError(t, f())
				}
				// A collection may empty the pools once.
				allocs := testing.AllocsPerRun(100, func() { _ = f() })
				require.Less(t, allocs, 1.0, "%s isa=%s workers=%d", name, isa, workers)
			}
		}
	}
}

// encodeJobs are the jobs of one token and of a segment that closes.
func encodeJobs(t testing.TB, b *Backend, dim int) []backend.EncodeJob {
	var jobs []backend.EncodeJob
	for i, name := range []string{"lm3+s8", "lm2+len", "f16", "u8+s8", "lm4", "bf16"} {
		c, err := quant.ParseCoding(name)
		require.NoError(t, err)
		rows := []int{1, 40}[i%2]
		dt := []quant.DType{quant.Float32, quant.Float16}[i%2]
		x := quanttest.Rows(quanttest.Gaussian, rows, dim, uint64(i))
		src := make([]byte, rows*dim*dt.Size())
		require.NoError(t, quant.Encode(src, quant.Coding{Format: dt.Format()}, x, 0))
		from, err := b.Alloc(int64(len(src)))
		require.NoError(t, err)
		require.NoError(t, from.Upload(0, src))
		to, err := b.Alloc(int64(c.PackedBytes(rows, dim)))
		require.NoError(t, err)
		jobs = append(jobs, backend.EncodeJob{Src: backend.Span{Buf: from, Len: from.Len()}, DType: dt,
			Rows: rows, Dim: dim,
			Dst: backend.Side{Coding: c, Seed: 7, Data: backend.Span{Buf: to, Len: to.Len()}}})
	}
	return jobs
}
