// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// BenchmarkImportance holds a relevance pass beside a plain attention pass of the same backend: 1,024
// queries of 3 heads each against 32K keys of one KV head.
func BenchmarkImportance(b *testing.B) {
	const queries, keys, group, dim = 1024, 32 << 10, 3, 64
	be := openCPU(b)
	ctx := context.Background()
	for _, coding := range []quant.Coding{{Format: quant.F16},
		{Format: quant.LM3, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}} {
		side := func(seed uint64) backend.Side {
			buf, err := be.Alloc(int64(coding.PackedBytes(keys, dim)))
			require.NoError(b, err)
			packed := make([]byte, buf.Len())
			require.NoError(b, quant.Encode(packed, coding,
				quanttest.Rows(quanttest.Gaussian, keys, dim, seed), 1))
			require.NoError(b, buf.Upload(0, packed))
			return backend.Side{Coding: coding, Data: backend.Span{Buf: buf, Len: buf.Len()}, Seed: 1}
		}
		blocks := []backend.Block{{Rows: keys, K: side(1), V: side(2)}}
		q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: dim, BlockPtr: []int32{0},
			Scale: float32(1 / math.Sqrt(dim)),
			Q:     quanttest.Rows(quanttest.Gaussian, queries*group, dim, 3).Data}
		for range queries {
			q.BlockIdx = append(q.BlockIdx, 0)
			q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		}
		out, lse := make([]float32, queries*group*dim), make([]float32, queries*group)
		require.NoError(b, backend.AttendBlocks(ctx, be, q, nil, blocks, backend.Attention{Out: out, LSE: lse}))
		name := fmt.Sprintf("queries=%d/keys=%d/coding=%s", queries, keys, coding)
		b.Run("op=attend/"+name, func(b *testing.B) {
			for b.Loop() {
				if err := backend.AttendBlocks(ctx, be, q, nil, blocks, backend.Attention{Out: out, LSE: lse}); err != nil {
					b.Fatal(err)
				}
			}
		})
		rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0, keys}, Sum: make([]float32, keys)}
		b.Run("op=relevance/"+name, func(b *testing.B) {
			for b.Loop() {
				if err := backend.RelevanceBlocks(ctx, be, q, nil, lse, blocks, rel); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
