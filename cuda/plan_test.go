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

// A plan contains every row of every list once per head. The rows of a tile share a turn, the rows
// of a piece share a basis, and the float32 sums of a piece are short.
func TestPlan_CoversEveryList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dimV := rapid.SampledFrom([]int{5, 8, 64, 80, 128, 256, 1024}).Draw(t, "dimV")
		n := rapid.IntRange(1, 6).Draw(t, "blocks")
		blocks, desc := make([]backend.Block, n), make([]kernels.BlockDesc, n)
		for i := range blocks {
			blocks[i].Rows = int32(rapid.SampledFrom([]int{0, 1, 31, 32, 33, 700, 5000}).Draw(t, "rows"))
			desc[i].Turn = int32(rapid.IntRange(-1, 2).Draw(t, "turn"))
			blocks[i].V.Coding.Format = rapid.SampledFrom([]quant.Format{quant.F16, quant.LM3, quant.TQMSE2}).Draw(t, "v")
		}
		q := &backend.Queries{Group: rapid.IntRange(1, 9).Draw(t, "group"), HeadDim: 128,
			HeadDimV: dimV, BlockPtr: []int32{0}}
		for range rapid.IntRange(0, 5).Draw(t, "queries") {
			q.BlockIdx = append(q.BlockIdx, rapid.SliceOfN(rapid.Int32Range(0, int32(n-1)), 0, 5).Draw(t,
				"list")...)
			q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		}
		p := planAttend(q, blocks, desc, []args.Seeds{{}}, rapid.Bool().Draw(t, "mma"))
		head := int32(0)
		for _, u := range p.units {
			require.Equal(t, head, u.Head0)
			require.LessOrEqual(t, int(u.Heads), p.unitHeads)
			query := int(u.Head0) / q.Group
			got := map[[2]int32]int{}
			for _, c := range p.pieces[u.Part0 : u.Part0+u.Parts] {
				require.LessOrEqual(t, int(c.Tile1-c.Tile0), mostTiles(dimV))
				require.Less(t, c.Tile0, c.Tile1)
				for k, s := range p.tiles[c.Tile0*subTiles : c.Tile1*subTiles] {
					if s.Block < 0 {
						require.NotZero(t, k%subTiles, "a tile without rows")
						continue
					}
					got[[2]int32{s.Block, s.Row0}]++
					require.Equal(t, desc[p.tiles[int(c.Tile0)*subTiles+k/subTiles*subTiles].Block].Turn,
						desc[s.Block].Turn)
					require.Equal(t, c.RotatedV, basisOf(blocks[s.Block].V.Coding.Format))
				}
			}
			for _, b := range q.BlockIdx[q.BlockPtr[query]:q.BlockPtr[query+1]] {
				for r := int32(0); r < blocks[b].Rows; r += kernels.SubRows {
					got[[2]int32{b, r}]--
				}
			}
			for at, left := range got {
				require.Zero(t, left, "block %d row %d", at[0], at[1])
			}
			head += u.Heads
		}
		require.Equal(t, int32(q.Len()*q.Group), head)
	})
}

// The results are the same bits for any order of threads: no barrier is missing.
func TestKernels_ShuffledSchedules(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{NoSelfTest: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	var out, rel []float32
	var hits []backend.Hit
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
			out, rel, hits, left = sc.out, sc.rel, sc.hits, sc.left
		}
		require.Equal(t, out, sc.out, "schedule %d", seed)
		require.Equal(t, rel, sc.rel, "schedule %d", seed)
		require.Equal(t, hits, sc.hits, "schedule %d", seed)
		require.Equal(t, left, sc.left, "schedule %d", seed)
	}
}
