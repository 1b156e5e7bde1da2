// SPDX-License-Identifier: Apache-2.0

package args_test

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// variedBlocks returns a function that makes a block for every number, different in every field.
func variedBlocks(t testing.TB) func(n int64) backend.Block {
	bufs := []*memory{{n: 1 << 40}, {at: 1 << 41, n: 1 << 40}, {at: 1 << 42, n: 1 << 40}}
	metrics := []*frame.Metric{nil}
	for _, a := range []float32{1, 2} {
		m, err := frame.NewDiagonal([]float32{a, a, a, a, a, a, a, a})
		require.NoError(t, err)
		metrics = append(metrics, m)
	}
	codings := []quant.Coding{{Format: quant.F16}, {Format: quant.LM3}, {Format: quant.LM3, Scale: quant.ScaleLog8}}
	return func(n int64) backend.Block {
		span := func(k, size int64) backend.Span {
			return backend.Span{Buf: bufs[(n+k)%3], Off: (n*7+k)%100<<30 + 16*n, Len: size}
		}
		rows := 1 + n%5
		side := func(k int64) backend.Side {
			c := codings[(n/3+k)%3]
			return backend.Side{Coding: c, Seed: uint64(n % 2), Data: span(k, int64(c.PackedBytes(int(rows), 8)))}
		}
		b := backend.Block{Layer: int32(n % 3), KVHead: int32(n / 5 % 2), Rows: int32(rows), Base: n << 26,
			Stride: int32(n % 2), Limit: int32(n % 7), Tokens: int32(n % 4), Offset: int32(n % 2), Noise: float32(n % 3),
			Metric: metrics[n%3], K: side(0), V: side(1)}
		for k, s := range []*backend.Span{&b.Pos, &b.Count, &b.Bias, &b.MeanK, &b.MeanV} {
			if n>>k&1 == 1 {
				*s = span(int64(2+k), []int64{2 * rows, 2 * rows, 4 * rows, 16, 16}[k])
			}
		}
		return b
	}
}

// A table behaves like a slice, and every view stays what the slice was when it was taken.
func TestTable_IsASliceWithSnapshots(t *testing.T) {
	block := variedBlocks(t)
	rope := &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 8, Theta: 1e4}
	rapid.Check(t, func(t *rapid.T) {
		table, err := args.NewTable[int64](nil, backend.Shape{HeadDim: 8, HeadDimV: 8, Rope: rope})
		require.NoError(t, err)
		var want []int64 // -1: empty
		type snapshot struct {
			v    *args.View[int64]
			want []int64
		}
		var taken []snapshot
		next := int64(0)
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0:
				at := rapid.IntRange(0, len(want)).Draw(t, "at")
				var blocks []backend.Block
				for i := range rapid.IntRange(0, 150).Draw(t, "blocks") {
					if at+i == len(want) {
						want = append(want, 0)
					}
					want[at+i] = next
					blocks = append(blocks, block(next))
					next++
				}
				require.NoError(t, args.Set(table, checker, at, blocks,
					func(w *args.BlockView[int64]) uint32 { return uint32(w.Base>>26) + 7 }))
			case 1:
				at := rapid.IntRange(0, len(want)).Draw(t, "from")
				n := rapid.IntRange(0, len(want)-at).Draw(t, "n")
				require.NoError(t, table.Remove(at, n))
				for i := at; i < at+n; i++ {
					want[i] = -1
				}
				for len(want) > 0 && want[len(want)-1] < 0 {
					want = want[:len(want)-1]
				}
			default:
				v, err := table.View()
				require.NoError(t, err)
				taken = append(taken, snapshot{v, append([]int64(nil), want...)})
			}
		}
		for _, s := range taken {
			require.Equal(t, len(s.want), s.v.Len())
			for i, w := range s.want {
				e := s.v.At(i)
				require.Equal(t, w < 0, e == nil)
				if e != nil {
					require.Equal(t, uint32(w)+7, s.v.Slot(i))
					got, ok := s.v.Block(i)
					require.True(t, ok)
					require.Equal(t, block(w), got)
				}
			}
			require.Nil(t, s.v.At(-1))
			require.Nil(t, s.v.At(len(s.want)))
		}
	})
}

// A block of a table takes at most 40 bytes, what blocks share included: here segments of 8 blocks with a
// mean, in codings that differ, as a serving cache keeps them.
func TestTable_BytesOfABlock(t *testing.T) {
	const segments, heads, pages, n = 500, 3, 8, 500 * 3 * 8
	bufs := []*memory{{n: 1 << 30}, {n: 1 << 30}, {n: 1 << 30}}
	table, err := args.NewTable[int64](nil, backend.Shape{HeadDim: 128, HeadDimV: 128})
	require.NoError(t, err)
	codings := []quant.Coding{{Format: quant.LM3}, {Format: quant.LM2}, {Format: quant.F16}}
	mean := backend.Span{Buf: bufs[0], Len: 256}
	block := func(i int) backend.Block {
		side := func(k int) backend.Side {
			c := codings[(i*i+k)%3]
			return backend.Side{Coding: c, Seed: 5, Data: backend.Span{Buf: bufs[i*7%3], Off: int64(i) * 1024,
				Len: int64(c.PackedBytes(32, 128))}}
		}
		mean.Off = int64(i/pages) * 256
		return backend.Block{KVHead: int32(i / pages % heads), Rows: 32, Base: int64(i / pages / heads * 256),
			K: side(0), V: side(1), Pos: backend.Span{Buf: bufs[i%3], Off: int64(64 * i), Len: 64}, MeanK: mean}
	}
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	for i := range n {
		require.NoError(t, args.Set(table, checker, i, []backend.Block{block(i)}, nil))
	}
	for i := 0; i < n; i += 5 { // some change
		require.NoError(t, args.Set(table, checker, i, []backend.Block{block(i + 1)}, nil))
		require.NoError(t, args.Set(table, checker, i, []backend.Block{block(i)}, nil))
	}
	v, err := table.View()
	require.NoError(t, err)
	bytes := float64(used()-before) / n
	t.Logf("%.1f bytes a block", bytes)
	require.LessOrEqual(t, bytes, 40.0)
	got, ok := v.Block(n / 2)
	require.True(t, ok)
	require.Equal(t, block(n/2), got)
	runtime.KeepAlive(table)
}
