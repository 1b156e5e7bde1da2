// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// rig is a backend with blocks of random rows.
type rig struct {
	b      *Backend
	blocks []backend.Block
	bytes  int64 // packed
}

func newRig(t testing.TB, workers, dim, rows, n int, codings ...string) rig {
	return newRigOf(t, Options{Workers: workers}, dim, rows, n, codings...)
}

func newRigOf(t testing.TB, o Options, dim, rows, n int, codings ...string) rig {
	b, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	r := rig{b: b}
	for i := range n {
		c, err := quant.ParseCoding(codings[i%len(codings)])
		require.NoError(t, err)
		side := func(draw uint64) backend.Side {
			x := quanttest.Rows(quanttest.Gaussian, rows, dim, draw)
			packed := make([]byte, c.PackedBytes(rows, dim))
			require.NoError(t, quant.Encode(packed, c, x, 1))
			buf, err := b.Alloc(int64(len(packed)))
			require.NoError(t, err)
			require.NoError(t, buf.Upload(0, packed))
			r.bytes += int64(len(packed))
			return backend.Side{Coding: c, Seed: 1,
				Data: backend.Span{Buf: buf, Len: int64(len(packed))}}
		}
		r.blocks = append(r.blocks, backend.Block{Rows: int32(rows), Base: int64(i * rows),
			K: side(uint64(2 * i)), V: side(uint64(2*i + 1))})
	}
	return r
}

// queries returns queries that list all blocks once each.
func (r rig) queries(n, group, dim int) *backend.Queries {
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, n*group, dim, 9).Data, Group: group,
		HeadDim: dim, HeadDimV: dim, Scale: float32(1 / math.Sqrt(float64(dim))),
		BlockPtr: []int32{0}}
	for i := range n {
		q.Pos = append(q.Pos, int64(100000+i))
		for j := range r.blocks {
			q.BlockIdx = append(q.BlockIdx, int32(j))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	return q
}

// view returns a view of a table of the blocks.
func (r rig) view(t testing.TB, dim int) *view {
	table, err := r.b.NewTable(backend.Shape{HeadDim: dim, HeadDimV: dim})
	require.NoError(t, err)
	require.NoError(t, table.Set(0, r.blocks...))
	v, err := table.View()
	require.NoError(t, err)
	return v.(*view)
}

func (r rig) attend(t testing.TB, q *backend.Queries) (out, lse []float32) {
	out = make([]float32, q.Len()*q.Group*q.HeadDimV)
	lse = make([]float32, q.Len()*q.Group)
	require.NoError(t, backend.AttendBlocks(context.Background(), r.b, q, nil, r.blocks,
		backend.Attention{Out: out, LSE: lse}))
	return out, lse
}

// Long lists, divided into many pieces, give the same bits for any number of workers, and so does
// Relevance.
func TestAttend_SameBitsForAnyWorkers(t *testing.T) {
	const dim = 16
	var wantOut, wantSum []float32
	for _, workers := range []int{1, 2, 3, 8} {
		r := newRig(t, workers, dim, 1333, 5, "lm4", "f16", "u8+s8")
		q := r.queries(9, 4, dim)
		q.Pos = nil
		out, lse := r.attend(t, q)
		rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}}
		for i := range r.blocks {
			rel.RowPtr = append(rel.RowPtr, int32(1333*(i+1)))
		}
		rel.Sum = make([]float32, 1333*len(r.blocks))
		require.NoError(t, backend.RelevanceBlocks(context.Background(), r.b, q, nil, lse, r.blocks, rel))
		if wantOut == nil {
			wantOut, wantSum = out, rel.Sum
		}
		require.Equal(t, wantOut, out, "workers=%d", workers)
		require.Equal(t, wantSum, rel.Sum, "workers=%d", workers)
	}
}

// On every instruction set, the bits of a query do not depend on the rest of the batch, with and
// without windows.
func TestAttend_BatchDoesNotMatter(t *testing.T) {
	const group, n = 3, 25
	for _, isa := range ISAs() {
		for _, dim := range []int{16, 64} {
			codings := []string{"lm2", "bf16", "tqmse3", "u8+s8", "lm3+s8"}
			r := newRigOf(t, Options{ISA: isa, Workers: 2}, dim, 333, 9, codings...)
			for _, window := range []int64{0, 500} {
				t.Run(fmt.Sprintf("isa=%s/head_dim=%d/window=%d", isa, dim, window), func(t *testing.T) {
					q := r.queries(n, group, dim)
					q.Window = window
					for i := range q.Pos {
						q.Pos[i] = int64(i * 120)
					}
					out, lse := r.attend(t, q)
					for i := range n {
						one := *q
						one.Q = q.Q[i*group*dim : (i+1)*group*dim]
						one.Pos = q.Pos[i : i+1]
						one.BlockPtr, one.BlockIdx = []int32{0, 9}, q.BlockIdx[:9]
						o, l := r.attend(t, &one)
						require.Equal(t, out[i*group*dim:(i+1)*group*dim], o, "query %d", i)
						require.Equal(t, lse[i*group:(i+1)*group], l, "query %d", i)
					}
				})
			}
		}
	}
}

// Row scales that no encoder writes, negative or not finite, give the same results as in plain Go.
func TestAttend_OddScales(t *testing.T) {
	const dim, rows, group = 64, 70, 3
	for _, odd := range []uint16{0xb800, 0x8000, 0x0001, 0x7c00, 0xfc00, 0x7e00} { // -0.5, -0, tiny, ...
		for _, inV := range []bool{false, true} {
			var want []float32
			for _, isa := range ISAs() {
				r := newRigOf(t, Options{ISA: isa, Workers: 1}, dim, rows, 2, "lm3")
				side := r.blocks[1].K
				if inV {
					side = r.blocks[1].V
				}
				at := side.Data.Len - int64(side.Coding.ScaleBytes(rows)) + 2*37
				require.NoError(t, side.Data.Buf.Upload(at, []byte{byte(odd), byte(odd >> 8)}))
				out, _ := r.attend(t, r.queries(1, group, dim))
				if want == nil {
					want = out
				}
				for i, x := range out {
					switch y := float64(want[i]); {
					case math.IsNaN(y) || math.IsInf(y, 0):
						require.False(t, math.Abs(float64(x)) < math.Inf(1), "%#x %s: value %d is %g", odd, isa, i, x)
					default:
						require.InDelta(t, y, float64(x), 1e-4, "%#x %s: value %d", odd, isa, i)
					}
				}
			}
		}
	}
}

// Queries whose partial results do not fit at once are processed in waves. The result equals that
// of each query alone.
func TestAttend_Waves(t *testing.T) {
	if testing.Short() {
		t.Skip("82000 rows a query")
	}
	const dim, group, n, list = 256, 32, 3, 2048
	r := newRig(t, 2, dim, 40, 2, "f16")
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, n*group, dim, 9).Data, Group: group,
		HeadDim: dim, HeadDimV: dim, Scale: 0.0625, BlockPtr: []int32{0}}
	for i := range n {
		for j := range list {
			q.BlockIdx = append(q.BlockIdx, int32((i+j)%2))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	c := newCall(r.b)
	c.begin(context.Background(), q, r.view(t, dim))
	c.cutUnits(c.mostQueries(), true)
	require.Len(t, c.units, n)
	fit, _, _ := c.fitting(c.units)
	require.Less(t, fit, n, "more than one wave")
	out, _ := r.attend(t, q)
	last := *q
	last.Q, last.BlockPtr, last.BlockIdx = q.Q[2*group*dim:], []int32{0, list}, q.BlockIdx[2*list:]
	want, _ := r.attend(t, &last)
	require.Equal(t, want, out[2*group*dim:])
}

// The pieces of a list cover every row once, in order, at tile boundaries of their block.
func TestCutList_CoversEveryRowOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 5000), rapid.Just(0),
			rapid.IntRange(0, 200000))
		counts := rapid.SliceOfN(size, 0, 40).Draw(t, "rows")
		blocks := make([]backend.Block, len(counts))
		list := make([]int32, len(counts))
		total := 0
		for i, n := range counts {
			blocks[i].Rows, list[i] = int32(n), int32(i)
			total += n
		}
		b, err := Open(Options{Workers: 1})
		require.NoError(t, err)
		defer b.Close()
		// Blocks that are listed but never read need no memory.
		table, err := args.NewTable[described](b, backend.Shape{HeadDim: 8, HeadDimV: 8})
		require.NoError(t, err)
		anything := args.Checker[[]byte]{Supports: b.Supports, Bytes: func(backend.Span) ([]byte, error) { return nil, nil }}
		for i := range blocks {
			side := backend.Side{Coding: quant.Coding{Format: quant.F16}}
			side.Data.Len = int64(side.Coding.PackedBytes(int(blocks[i].Rows), 8))
			side.Data.Buf = &buffer{}
			blocks[i].K, blocks[i].V = side, side
		}
		require.NoError(t, args.Set(table, anything, 0, blocks, nil))
		v, err := table.View()
		require.NoError(t, err)
		cuts, _ := cutList(nil, list, v)
		if total == 0 {
			require.Empty(t, cuts)
			return
		}
		require.Equal(t, cut{0, 0}, cuts[0])
		require.Equal(t, cut{len(list), 0}, cuts[len(cuts)-1])
		require.LessOrEqual(t, len(cuts)-1, maxChunks+1)
		rowsBefore := func(c cut) int {
			n := c.row
			for _, rows := range counts[:c.entry] {
				n += rows
			}
			return n
		}
		largest := max(chunkRows, (total+maxChunks-1)/maxChunks) + tileRows
		for i, c := range cuts[1:] {
			require.Zero(t, c.row%tileRows)
			if c.entry < len(list) {
				require.True(t, c.row == 0 || c.row < counts[c.entry])
			}
			piece := rowsBefore(c) - rowsBefore(cuts[i])
			require.GreaterOrEqual(t, piece, 0)
			require.LessOrEqual(t, piece, largest)
		}
	})
}
