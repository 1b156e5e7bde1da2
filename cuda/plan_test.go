// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/engine/backend/selftest"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// wildParams points the codec at unallocated memory.
func wildParams() kernels.CodecParams {
	return kernels.CodecParams{Jobs: 1 << 40, NJobs: 1, Rows: 1, Shared: 16}
}

// A plan contains every row of every list once per head. The rows of a tile share a variant, the rows
// of a piece share a basis, and the float32 sums of a piece are short.
func TestPlan_CoversEveryList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dimV := rapid.SampledFrom([]int{5, 8, 64, 80, 128, 256, 1024}).Draw(t, "dimV")
		n := rapid.IntRange(1, 6).Draw(t, "blocks")
		v, slots := planView(t, n, dimV)
		q := &backend.Queries{Group: rapid.IntRange(1, 9).Draw(t, "group"), HeadDim: 128,
			HeadDimV: dimV, BlockPtr: []int32{0}}
		for range rapid.IntRange(0, 5).Draw(t, "queries") {
			q.BlockIdx = append(q.BlockIdx, rapid.SliceOfN(rapid.Int32Range(0, int32(n-1)), 0, 5).Draw(t,
				"list")...)
			q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		}
		b := &batch{Queries: q, view: v}
		b.useKernels(rapid.SampledFrom(AttendKernels()).Draw(t, "kernel"))
		p := b.planAttend(make([]args.Seeds, q.Len()), rapid.Bool().Draw(t, "masses"))
		head := int32(0)
		for _, u := range p.units {
			require.Equal(t, head, u.Head0)
			require.LessOrEqual(t, int(u.Heads), p.unitHeads)
			list := q.BlockIdx[q.BlockPtr[int(u.Head0)/q.Group]:q.BlockPtr[int(u.Head0)/q.Group+1]]
			got := map[[2]int32]int{}
			next := int32(-1) // the pieces of a unit follow one another
			for _, c := range p.pieces[u.Part0 : u.Part0+u.Parts] {
				require.LessOrEqual(t, int(c.Tile1-c.Tile0), mostTiles(dimV, c.RotatedV))
				require.Less(t, c.Tile0, c.Tile1)
				if next >= 0 {
					require.Equal(t, next, c.Tile0)
				}
				next = c.Tile1
				for k, s := range p.tiles[c.Tile0*subTiles : c.Tile1*subTiles] {
					if s.Block < 0 {
						require.NotZero(t, k%subTiles, "a tile without rows")
						continue
					}
					got[[2]int32{s.Block, s.Row0}]++
					e := v.At(int(slots[s.Block]))
					require.Equal(t, p.tiles[int(c.Tile0)*subTiles+k/subTiles*subTiles].Variant, s.Variant)
					require.Equal(t, variantKey{v.Form(e.Form).Own.angles, v.Form(e.Form).Key.Metric}, b.keys[s.Variant])
					require.Equal(t, c.RotatedV, b.kindOf(v.Form(e.Form)))
					if c.RotatedV == kernels.Planes {
						require.Equal(t, p.tiles[c.Tile0*subTiles].Variant, s.Variant)
					}
				}
			}
			require.Equal(t, len(list), int(u.Entries))
			for i, k := range list {
				e := v.At(int(k))
				r := p.entries[int(u.Entry0)+i]
				row := int32(0)
				for _, s := range p.tiles[r.Sub0:r.Sub1] {
					if s.Block < 0 {
						continue // padding after the last row
					}
					require.Equal(t, kernels.SubTile{Block: int32(v.Slot(int(k))), Row0: row, Variant: s.Variant}, s)
					got[[2]int32{s.Block, s.Row0}]--
					row += kernels.SubRows
				}
				require.GreaterOrEqual(t, row, v.Form(e.Form).Key.Rows)
			}
			for at, left := range got {
				require.Zero(t, left, "block %d row %d", at[0], at[1])
			}
			head += u.Heads
		}
		require.Equal(t, int32(q.Len()*q.Group), head)
	})
}

// planView draws a view of n blocks without memory. slots are the indices of the blocks by slot.
func planView(t *rapid.T, n, dimV int) (v *view, slots map[int32]int32) {
	nothing := args.Checker[uint64]{
		Supports: func(backend.Op, quant.Coding, int) bool { return true },
		Bytes:    func(backend.Span) (uint64, error) { return 0, nil },
	}
	offsets := []*angles{nil, {1}, {2}}
	var blocks []backend.Block
	for range n {
		f := rapid.SampledFrom([]quant.Format{quant.F16, quant.LM3, quant.TQMSE2}).Draw(t, "v")
		blk := backend.Block{Rows: int32(rapid.SampledFrom([]int{0, 1, 31, 32, 33, 700, 5000}).Draw(t, "rows")),
			Offset: int32(rapid.IntRange(0, 2).Draw(t, "offset"))}
		for dim, side := range map[int]*backend.Side{128: &blk.K, -dimV: &blk.V} {
			c := quant.Coding{Format: f}
			if dim == 128 {
				c.Format = rapid.SampledFrom([]quant.Format{quant.F16, quant.LM2}).Draw(t, "k")
			}
			*side = backend.Side{Coding: c, Data: backend.Span{Buf: &buffer{},
				Len: int64(c.PackedBytes(int(blk.Rows), max(dim, -dim)))}}
		}
		blocks = append(blocks, blk)
	}
	rope := &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 2, Theta: 1}
	table, err := args.NewTable[described](nil, backend.Shape{HeadDim: 128, HeadDimV: dimV, Rope: rope})
	require.NoError(t, err)
	slots = map[int32]int32{}
	table.Describe = func(k *args.FormKey) described { return described{offsets[k.Offset]} }
	require.NoError(t, args.Set(table, nothing, 0, blocks, func(*args.BlockView[uint64]) uint32 {
		at := int32(len(slots) * 3)
		slots[at] = int32(len(slots))
		return uint32(at)
	}))
	v, err = table.View()
	require.NoError(t, err)
	return v, slots
}

// The results are the same bits for any order of threads: no barrier is missing.
func TestKernels_ShuffledSchedules(t *testing.T) {
	for _, kernel := range AttendKernels() {
		t.Run(kernel, func(t *testing.T) { shuffledSchedules(t, kernel) })
	}
}

func shuffledSchedules(t *testing.T, kernel string) {
	s := newStandIn(t, "sm=80")
	b, err := s.open(Options{NoSelfTest: true, Attend: kernel})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	var out, rel []float32
	var left [3]backend.Residual
	seeds := 12
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		s.setSeed(uint32(seed))
		for _, c := range selftest.Run(context.Background(), b) {
			require.True(t, c.OK, "schedule %d: %s: %s", seed, c.Name, c.Detail)
		}
		sc := scenario{b: b}
		require.NoError(t, sc.run())
		if seed == 0 {
			out, rel, left = sc.out, sc.rel, sc.left
		}
		require.Equal(t, out, sc.out, "schedule %d", seed)
		require.Equal(t, rel, sc.rel, "schedule %d", seed)
		require.Equal(t, left, sc.left, "schedule %d", seed)
	}
}
