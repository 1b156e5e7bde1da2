// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// tabled is a table of one-row blocks whose V says which block was attended to.
type tabled struct {
	t      testing.TB
	b      backend.Backend
	table  backend.Table
	blocks []known
}

const tabledDim = 8

// newTabled makes n different blocks. Their table is empty.
func newTabled(a *arena, n int) *tabled {
	x := &tabled{t: a.t, b: a.b}
	c := mustCoding(a.t, "f32")
	for i := range n {
		v := quant.Rows{Dim: tabledDim, Data: slices.Repeat([]float32{float32(i)}, tabledDim)}
		x.blocks = append(x.blocks, place(a, spec{rows: 1, k: c, v: c, vData: &v, draw: uint64(i)},
			tabledDim, tabledDim))
	}
	table, err := a.b.NewTable(backend.Shape{HeadDim: tabledDim, HeadDimV: tabledDim})
	require.NoError(a.t, err)
	x.table = table
	return x
}

func (x *tabled) set(at int, which ...int) error {
	var bs []backend.Block
	for _, i := range which {
		bs = append(bs, x.blocks[i].handle)
	}
	return x.table.Set(at, bs...)
}

func (x *tabled) view() backend.View {
	v, err := x.table.View()
	require.NoError(x.t, err)
	return v
}

// at returns the number of the block that attention to index i finds.
func (x *tabled) at(v backend.View, i int) (int, error) {
	q := &backend.Queries{Q: make([]float32, tabledDim), Group: 1, HeadDim: tabledDim,
		HeadDimV: tabledDim, Scale: 1, BlockPtr: []int32{0, 1}, BlockIdx: []int32{int32(i)}}
	out, mass := make([]float32, tabledDim), make([]float32, 1)
	err := x.b.Attend(context.Background(), q, v, backend.Attention{Out: out, Mass: mass})
	if err == nil && mass[0] != 1 {
		err = fmt.Errorf("mass %g of the only block", mass[0])
	}
	return int(out[0]), err
}

// holds checks that a view holds the given blocks; -1 is an empty index.
func (x *tabled) holds(v backend.View, want ...int) {
	x.t.Helper()
	require.Equal(x.t, len(want), v.Len())
	for i, w := range want {
		blk, ok := v.Block(i)
		require.Equal(x.t, w >= 0, ok, "index %d", i)
		got, err := x.at(v, i)
		if w < 0 {
			require.ErrorIs(x.t, err, quant.ErrShape, "index %d is empty", i)
			continue
		}
		require.NoError(x.t, err)
		require.Equal(x.t, w, got, "index %d", i)
		require.Equal(x.t, x.blocks[w].handle, blk)
	}
	_, err := x.at(v, len(want))
	require.ErrorIs(x.t, err, quant.ErrShape, "beyond the view")
}

// testTable adds, replaces and removes blocks. Views stay as they were.
func testTable(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	const many = 200
	x := newTabled(a, many)
	a.upload()
	empty := x.view()
	x.holds(empty)
	require.NoError(t, x.set(0, 0, 1, 2))
	three := x.view()
	require.Same(t, three, x.view(), "an unchanged table has one view")
	require.NoError(t, x.set(1, 11))
	require.NoError(t, x.set(3, 3, 4))
	five := x.view()
	require.NoError(t, x.table.Remove(2, 1))
	hole := x.view()
	require.NoError(t, x.table.Remove(3, 2))
	short := x.view()
	x.holds(three, 0, 1, 2)
	x.holds(five, 0, 11, 2, 3, 4)
	x.holds(hole, 0, 11, -1, 3, 4)
	x.holds(short, 0, 11)
	require.NoError(t, x.set(2, 5))
	var all []int
	for i := range many {
		all = append(all, many-1-i)
	}
	require.NoError(t, x.set(0, all...))
	x.holds(x.view(), all...)
	x.holds(empty)
	x.holds(hole, 0, 11, -1, 3, 4)
	require.NoError(t, x.table.Remove(0, many))
	x.holds(x.view())
	a.unchanged()
	require.NoError(t, x.table.Close())
	require.NoError(t, x.table.Close(), "a second Close")
	_, err := x.table.View()
	require.ErrorIs(t, err, quant.ErrClosed)
	require.ErrorIs(t, x.set(0, 1), quant.ErrClosed)
	require.ErrorIs(t, x.table.Remove(0, 0), quant.ErrClosed)
	_, err = x.at(five, 0)
	require.ErrorIs(t, err, quant.ErrClosed, "a view of a closed table")
}

// testTableArguments sets wrong blocks. The table stays as it was.
func testTableArguments(t *testing.T, b backend.Backend) {
	for _, s := range []backend.Shape{{}, {HeadDim: 8}, {HeadDim: -1, HeadDimV: 8},
		{HeadDim: 8, HeadDimV: quant.MaxDim + 1},
		{HeadDim: 8, HeadDimV: 8, Rope: &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 10, Theta: 1}}} {
		_, err := b.NewTable(s)
		require.ErrorIs(t, err, quant.ErrShape, "%+v", s)
	}
	a := newArena(t, b)
	defer a.free()
	x := newTabled(a, 4)
	a.upload()
	require.NoError(t, x.set(0, 0, 1))
	v := x.view()
	for _, c := range []struct{ at, n int }{{-1, 1}, {3, 1}, {1 << 40, 1}} {
		require.ErrorIs(t, x.set(c.at, 2), quant.ErrShape, "%+v", c)
	}
	for _, c := range []struct{ at, n int }{{-1, 1}, {0, 3}, {2, 1}, {0, -1}, {1, 1 << 62}} {
		require.ErrorIs(t, x.table.Remove(c.at, c.n), quant.ErrShape, "%+v", c)
	}
	bad := x.blocks[3].handle
	bad.K.Data.Len--
	err := x.table.Set(1, x.blocks[2].handle, bad)
	require.ErrorIs(t, err, quant.ErrShape)
	var be *backend.BlockError
	require.ErrorAs(t, err, &be)
	require.Equal(t, 2, be.Block, "the second block of those set")
	require.Same(t, v, x.view(), "nothing changed")
	x.holds(v, 0, 1)

	// A block whose buffer is freed later is found when it is read.
	buf, err := b.Alloc(64)
	require.NoError(t, err)
	gone := x.blocks[2].handle
	gone.V.Data = backend.Span{Buf: buf, Len: gone.V.Data.Len}
	require.NoError(t, x.table.Set(2, gone))
	v = x.view()
	_, err = x.at(v, 2)
	require.NoError(t, err)
	require.NoError(t, buf.Free())
	_, err = x.at(v, 2)
	require.ErrorIs(t, err, quant.ErrClosed)
	got, err := x.at(v, 1)
	require.NoError(t, err, "the other blocks are still there")
	require.Equal(t, 1, got)
	require.NoError(t, x.table.Close())
}

// testTableConcurrent changes a table in one goroutine while others attend to their views of it.
func testTableConcurrent(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	const many, readers = 96, 4
	x := newTabled(a, 2*many)
	a.upload()
	rounds := 30
	if testing.Short() {
		rounds = 6
	}
	var all []int
	for i := range many {
		all = append(all, i)
	}
	require.NoError(t, x.set(0, all...))
	done := make(chan struct{})
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for r := range readers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[r] = x.readUntil(done, r)
		}()
	}
	for round := range rounds {
		for i := range many {
			all[i] = i + many*(round%2)
		}
		// Blocks i and i + many stand for the same index in turns.
		require.NoError(t, x.set(0, all[:many/2]...))
		require.NoError(t, x.set(many/2, all[many/2:]...))
		x.view()
	}
	close(done)
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, x.table.Close())
}

// readUntil attends to views; index i of each must hold block i or i + half.
func (x *tabled) readUntil(done chan struct{}, r int) error {
	half := len(x.blocks) / 2
	for n := 0; ; n++ {
		select {
		case <-done:
			return nil
		default:
		}
		v, err := x.table.View()
		if err != nil {
			return err
		}
		i := (n*7 + r) % half
		first, err := x.at(v, i)
		if err != nil {
			return err
		}
		again, err := x.at(v, i)
		if err != nil {
			return err
		}
		if first%half != i || again != first {
			return fmt.Errorf("index %d holds block %d and then %d", i, first, again)
		}
	}
}
