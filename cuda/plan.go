// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"cmp"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

const (
	subTiles = kernels.TileRows / kernels.SubRows
	// chainRows is the largest number of rows of V that a thread adds in float32 in one piece: as
	// many as the tolerance of the contract allows. Pieces are combined in float64.
	chainRows = 128
	// listPieces is the number of pieces of a list, if they are whole tiles: enough thread blocks
	// for a device with few parts to combine.
	listPieces = 64
	// waveBytes bounds the memory for parts at any time.
	waveBytes = 64 << 20
)

// attendPlan is the division of a batch of queries. It depends only on each query's own list.
type attendPlan struct {
	unitHeads int // 1, 2, 4 or 8
	units     []kernels.Unit
	pieces    []kernels.Piece
	tiles     []kernels.SubTile
}

// mostHeads returns the largest number of heads in a unit at a head_dim: what shared memory allows.
func mostHeads(dim int) int {
	switch {
	case dim <= 256:
		return 8
	case dim <= 512:
		return 4
	}
	return 2
}

// run is a range of neighbouring queries with the same list.
type run struct{ first, n int }

func runsOf(q *backend.Queries) []run {
	list := func(i int) []int32 { return q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] }
	var runs []run
	for i := range q.Len() {
		if last := len(runs) - 1; last >= 0 && slices.Equal(list(runs[last].first), list(i)) {
			runs[last].n++
			continue
		}
		runs = append(runs, run{i, 1})
	}
	return runs
}

// planAttend divides a batch, for tensor cores or not.
func planAttend(q *backend.Queries, blocks []backend.Block, desc []kernels.BlockDesc,
	seeds []args.Seeds, mma bool) attendPlan {
	runs := runsOf(q)
	p := attendPlan{unitHeads: 1}
	if mma {
		p.unitHeads = mmaHeads // unused rows of a product cost nothing
	}
	for _, r := range runs {
		for p.unitHeads < min(r.n*q.Group, mostHeads(q.HeadDim)) {
			p.unitHeads *= 2
		}
	}
	most := mostTiles(q.HeadDimV)
	for _, r := range runs {
		s := seeds[0]
		if len(seeds) > 1 {
			s = seeds[r.first]
		}
		list := q.BlockIdx[q.BlockPtr[r.first]:q.BlockPtr[r.first+1]]
		cut := p.cut(list, blocks, desc, most)
		heads := r.n * q.Group
		for h := 0; h < heads; h += p.unitHeads {
			u := kernels.Unit{Head0: int32(r.first*q.Group + h), Heads: int32(min(p.unitHeads, heads-h)),
				Part0: int32(len(p.pieces)), Parts: int32(len(cut)), KSeed: s.K, VSeed: s.V}
			if s.HasK {
				u.KRotated = 1
			}
			for _, c := range cut {
				c.Unit = int32(len(p.units))
				p.pieces = append(p.pieces, c)
			}
			p.units = append(p.units, u)
		}
	}
	return p
}

// mostTiles returns the largest number of tiles in a piece. A thread adds every groups-th row of 8
// columns.
func mostTiles(dimV int) int {
	groups := kernels.TileRows / ((dimV + 7) / 8)
	perTile := subTiles * ((kernels.SubRows + groups - 1) / groups)
	return max(1, chainRows/perTile)
}

// cut appends the tiles of a list and returns its pieces. The rows of a tile share a turn, because
// its queries are rotated once. The V rows of a piece share a basis. The order within each is that
// of the list.
func (p *attendPlan) cut(list []int32, blocks []backend.Block, desc []kernels.BlockDesc,
	most int) []kernels.Piece {
	rotated := func(b int32) int32 { return basisOf(blocks[b].V.Coding.Format) }
	order := slices.Clone(list)
	slices.SortStableFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(rotated(a), rotated(b)), cmp.Compare(desc[a].Turn, desc[b].Turn))
	})
	first := len(p.tiles) / subTiles
	var basis []int32 // basis of each tile
	fill := subTiles  // sub-tiles in the current tile
	last := int32(-1)
	for _, b := range order {
		if last >= 0 && (rotated(last) != rotated(b) || desc[last].Turn != desc[b].Turn) {
			fill = p.pad(fill)
		}
		for r := int32(0); r < blocks[b].Rows; r += kernels.SubRows {
			if fill == subTiles {
				basis, fill = append(basis, rotated(b)), 0
			}
			p.tiles = append(p.tiles, kernels.SubTile{Block: b, Row0: r})
			fill++
			last = b
		}
	}
	p.pad(fill)
	size := min(most, max(1, (len(basis)+listPieces-1)/listPieces))
	var pieces []kernels.Piece
	for at := 0; at < len(basis); {
		end := at + 1
		for end < len(basis) && end-at < size && basis[end] == basis[at] {
			end++
		}
		pieces = append(pieces, kernels.Piece{Tile0: int32(first + at), Tile1: int32(first + end),
			RotatedV: basis[at]})
		at = end
	}
	return pieces
}

// basisOf returns Piece.RotatedV for a format of V.
func basisOf(f quant.Format) int32 {
	switch {
	case !f.Rotated():
		return 0
	case f.Nested() || f == quant.U8:
		return kernels.CodedV
	}
	return kernels.OtherV
}

// pad completes the current tile.
func (p *attendPlan) pad(fill int) int {
	for ; fill < subTiles; fill++ {
		p.tiles = append(p.tiles, kernels.SubTile{Block: kernels.NoBlock})
	}
	return fill
}

// wave returns the number of units from first on whose parts fit in waveBytes, at least one.
func (p *attendPlan) wave(first, partFloats int) int {
	bytes := 0
	for i := first; i < len(p.units); i++ {
		bytes += int(p.units[i].Parts) * partFloats * 4
		if i > first && bytes > waveBytes {
			return i
		}
	}
	return len(p.units)
}

// turnTable collects the distinct offsets of blocks, with one entry of sines and cosines each.
type turnTable struct {
	freqs  []float64
	index  map[int32]int32
	values []float32 // [entries, 2, pairs]
}

func newTurnTable(q *backend.Queries) *turnTable {
	t := &turnTable{index: map[int32]int32{}}
	if q.Rope != nil && q.Rope.Validate(q.HeadDim) == nil {
		t.freqs = q.Rope.Frequencies()
	}
	return t
}

// entry returns the entry of an offset. It reduces angles in float64.
func (t *turnTable) entry(offset int32) int32 {
	if offset == 0 || len(t.freqs) == 0 {
		return kernels.NoTurn
	}
	if i, ok := t.index[offset]; ok {
		return i
	}
	i := int32(len(t.index))
	t.index[offset] = i
	sines, cosines := make([]float32, len(t.freqs)), make([]float32, len(t.freqs))
	for k, f := range t.freqs {
		s, c := math.Sincos(float64(offset) * f)
		sines[k], cosines[k] = float32(s), float32(c)
	}
	t.values = append(append(t.values, sines...), cosines...)
	return i
}
