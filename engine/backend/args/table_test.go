// SPDX-License-Identifier: Apache-2.0

package args_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// A table behaves like a slice, and every view stays what the slice was when it was taken.
func TestTable_IsASliceWithSnapshots(t *testing.T) {
	m := &memory{n: 1 << 20}
	coding := quant.Coding{Format: quant.F16}
	block := func(n int64) backend.Block {
		s := backend.Side{Coding: coding, Data: backend.Span{Buf: m, Len: 16}}
		return backend.Block{Rows: 1, Base: n, K: s, V: s}
	}
	rapid.Check(t, func(t *rapid.T) {
		table, err := args.NewTable[int64](nil, backend.Shape{HeadDim: 8, HeadDimV: 8})
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
					func(w *args.BlockView[int64]) (int64, error) { return w.Base, nil }))
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
					require.Equal(t, w, e.Own)
					require.Equal(t, w, e.Base)
				}
			}
			require.Nil(t, s.v.At(-1))
			require.Nil(t, s.v.At(len(s.want)))
		}
	})
}
