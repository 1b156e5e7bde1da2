// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Descriptors of replaced blocks are taken again once no view holds their blocks, and not before.
func TestTable_TakesSlotsAgain(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{NoSelfTest: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()); s.clean() }()
	const dim, n = 8, 100
	f32 := quant.Coding{Format: quant.F32}
	buf, err := b.Alloc(2 * 4 * dim)
	require.NoError(t, err)
	raw := make([]byte, 4*dim)
	raw[3] = 0x40 // the first value of the second row is 2
	require.NoError(t, buf.Upload(4*dim, raw))
	block := func(v int64) backend.Block {
		side := func(row int64) backend.Side {
			return backend.Side{Coding: f32, Data: backend.Span{Buf: buf, Off: 4 * dim * row, Len: 4 * dim}}
		}
		return backend.Block{Rows: 1, K: side(0), V: side(v)}
	}
	made, err := b.NewTable(backend.Shape{HeadDim: dim, HeadDimV: dim})
	require.NoError(t, err)
	table := made.(*table)
	attend := func(v backend.View) float32 {
		q := &backend.Queries{Q: make([]float32, dim), Group: 1, HeadDim: dim, HeadDimV: dim, Scale: 1,
			BlockPtr: []int32{0, 1}, BlockIdx: []int32{n / 2}}
		out := make([]float32, dim)
		require.NoError(t, b.Attend(context.Background(), q, v, backend.Attention{Out: out}))
		return out[0]
	}
	set := func(v int64) backend.View {
		for i := range n {
			require.NoError(t, table.Set(i, block(v)))
		}
		view, err := table.View()
		require.NoError(t, err)
		return view
	}
	old := set(1)
	for range 50 {
		require.Equal(t, float32(0), attend(set(0)))
		runtime.GC()
		time.Sleep(time.Millisecond) // cleanups run in a goroutine of their own
		require.Equal(t, float32(2), attend(old), "a view that is held keeps its descriptors")
	}
	require.Less(t, len(table.slots.taken), 20*n, "5,100 blocks were set")
	runtime.KeepAlive(old)
	require.NoError(t, table.Close())
	require.NoError(t, buf.Free())
}
