// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/internal/slab"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// Freed memory waits for the calls that began before it was freed, and for no others.
func TestTurns(t *testing.T) {
	var tn turns
	var freed []int
	free := func(m slab.Piece) { freed = append(freed, len(m.Mem)) }
	retire := func(n int) {
		tn.retired = append(tn.retired, retired{slab.Piece{Mem: make([]byte, n)}, tn.last})
	}
	first := tn.enter()
	retire(1)
	second := tn.enter()
	retire(2)
	tn.leave(second, free)
	require.Empty(t, freed)
	third := tn.enter()
	tn.leave(first, free)
	require.Equal(t, []int{1, 2}, freed, "the third call began later")
	retire(3)
	fourth := tn.enter()
	tn.leave(third, free)
	require.Equal(t, []int{1, 2, 3}, freed)
	tn.leave(fourth, free)
	require.Empty(t, tn.running)
	require.Empty(t, tn.retired)
}

// Memory that is freed, or whose backend is closed, during a call stays as it is until the call
// returns.
func TestBuffer_FreedDuringACall(t *testing.T) {
	b, err := Open(Options{})
	require.NoError(t, err)
	buf, err := b.Alloc(40 << 20)
	require.NoError(t, err)
	require.NoError(t, buf.Upload(5<<20, []byte{9}))
	mem, err := buf.(*buffer).bytes(0, 40<<20)
	require.NoError(t, err)
	turn, err := b.open(context.Background(), backend.OpAttend)
	require.NoError(t, err)
	require.NoError(t, buf.Free())
	require.ErrorIs(t, buf.Download(0, make([]byte, 1)), quant.ErrClosed)
	require.Equal(t, byte(9), mem[5<<20])
	require.NoError(t, b.Close())
	require.Equal(t, byte(9), mem[5<<20])
	b.leave(turn)
	require.Zero(t, b.pool.Mapped())
	require.Empty(t, b.turns.retired)
}

// Goroutines may free, upload and attend at the same time. A call on freed memory gives ErrClosed or
// a right answer.
func TestBuffer_FreedBesideCalls(t *testing.T) {
	b, err := Open(Options{Workers: 1})
	require.NoError(t, err)
	defer b.Close()
	const rows, dim = 64, 64
	c := quant.Coding{Format: quant.LM3}
	packed := make([]byte, c.PackedBytes(rows, dim))
	require.NoError(t, quant.Encode(packed, c, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), 1))
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, 1, dim, 9).Data, Group: 1,
		HeadDim: dim, HeadDimV: dim, Scale: 0.125, BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
	attend := func(buf backend.Buffer) ([]float32, error) {
		side := backend.Side{Coding: c, Seed: 1,
			Data: backend.Span{Buf: buf, Len: int64(len(packed))}}
		out := make([]float32, dim)
		return out, backend.AttendBlocks(context.Background(), b, q, nil,
			[]backend.Block{{Rows: rows, K: side, V: side}}, backend.Attention{Out: out})
	}
	var want []float32
	var wg sync.WaitGroup
	for round := range 200 {
		buf, err := b.Alloc(int64(len(packed)))
		require.NoError(t, err)
		require.NoError(t, buf.Upload(0, packed))
		if round == 0 {
			want, err = attend(buf)
			require.NoError(t, err)
		}
		wg.Add(2)
		go func() {
			defer wg.Done()
			out, err := attend(buf)
			if err == nil {
				require.Equal(t, want, out)
			} else {
				require.ErrorIs(t, err, quant.ErrClosed)
			}
		}()
		go func() {
			defer wg.Done()
			require.NoError(t, buf.Free())
		}()
	}
	wg.Wait()
	require.Zero(t, b.LiveBytes())
	require.Empty(t, b.turns.retired)
}
