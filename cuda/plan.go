// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"cmp"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
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
	masses    bool
	gains     bool // the sums of sub-tiles are kept: for masses, or for means of V
	units     []kernels.Unit
	pieces    []kernels.Piece
	tiles     []kernels.SubTile
	entries   []kernels.EntryRange
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

// planAttend divides a batch.
func (t *batch) planAttend(seeds []args.Seeds, masses bool) attendPlan {
	runs := runsOf(t.Queries)
	p := attendPlan{unitHeads: 1, masses: masses, gains: masses}
	if t.mma || t.int8 {
		p.unitHeads = mmaHeads // unused rows of a product cost nothing
	}
	for _, r := range runs {
		for p.unitHeads < min(r.n*t.Group, mostHeads(t.HeadDim)) {
			p.unitHeads *= 2
		}
	}
	for _, r := range runs {
		s := seeds[r.first]
		list := t.BlockIdx[t.BlockPtr[r.first]:t.BlockPtr[r.first+1]]
		entry0 := len(p.entries)
		cut, means := p.cut(t, list)
		p.gains = p.gains || means
		heads := r.n * t.Group
		for h := 0; h < heads; h += p.unitHeads {
			u := kernels.Unit{Head0: int32(r.first*t.Group + h), Heads: int32(min(p.unitHeads, heads-h)),
				Part0: int32(len(p.pieces)), Parts: int32(len(cut)), KSeed: s.K, VSeed: s.V,
				Entry0: int32(entry0), Entries: int32(len(list))}
			if s.HasK {
				u.KRotated = 1
			}
			if means {
				u.VMeans = 1
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

// mostTiles returns the largest number of tiles in a piece of a kind. A thread adds every groups-th row of
// 8 columns; the sums of Planes are integers.
func mostTiles(dimV int, kind int32) int {
	if kind == kernels.Planes {
		return kernels.PieceTiles
	}
	groups := kernels.TileRows / ((dimV + 7) / 8)
	perTile := subTiles * ((kernels.SubRows + groups - 1) / groups)
	return max(1, chainRows/perTile)
}

// listed is an entry of a list while it is sorted.
type listed struct {
	block, slot, rows int32
	basis, variant    int32 // basis: Piece.RotatedV
	entry, appearance int32 // place in the list; order of the variant in it
}

// list describes the entries of a list, sorted by V's basis and by variant. The order within each is
// that of the list, and variants come as they first appear in it, so that it depends on nothing
// else.
func (t *batch) list(list []int32) (all []listed, means bool) {
	var seen []int32
	last := int32(0)
	for i, b := range list {
		e := t.view.At(int(b))
		f := t.view.Form(e.Form)
		last = t.variantOf(f, last)
		at := slices.Index(seen, last)
		if at < 0 {
			at = len(seen)
			seen = append(seen, last)
		}
		means = means || t.view.Group(e.Group).Key.MeanV.Slab != 0
		all = append(all, listed{block: b, slot: int32(t.view.Slot(int(b))), rows: f.Key.Rows, basis: t.kindOf(f),
			variant: last, entry: int32(i), appearance: int32(at)})
	}
	slices.SortStableFunc(all, func(a, b listed) int {
		return cmp.Or(cmp.Compare(a.basis, b.basis), cmp.Compare(a.appearance, b.appearance))
	})
	return all, means
}

// cut appends the tiles and the entries of a list, and returns its pieces. The rows of a tile share
// a variant, because its queries are prepared once; those of a piece of Planes do too. The V rows of a
// piece share a basis.
func (p *attendPlan) cut(t *batch, list []int32) (pieces []kernels.Piece, means bool) {
	order, means := t.list(list)
	first, entry0 := len(p.tiles)/subTiles, len(p.entries)
	p.entries = append(p.entries, make([]kernels.EntryRange, len(list))...)
	var basis []int32              // basis of each tile
	alike := func(a, b int) bool { // tiles that may be of one piece
		return basis[a] == basis[b] && (basis[a] != kernels.Planes ||
			p.tiles[(first+a)*subTiles].Variant == p.tiles[(first+b)*subTiles].Variant)
	}
	fill := subTiles // sub-tiles in the current tile
	var last *listed
	for i := range order {
		b := &order[i]
		if last != nil && (last.basis != b.basis || last.variant != b.variant) {
			fill = p.pad(fill)
		}
		e := &p.entries[entry0+int(b.entry)]
		e.Sub0 = int32(len(p.tiles))
		for r := int32(0); r < b.rows; r += kernels.SubRows {
			if fill == subTiles {
				basis, fill = append(basis, b.basis), 0
			}
			p.tiles = append(p.tiles, kernels.SubTile{Block: b.slot, Row0: r, Variant: b.variant})
			fill++
			last = b
		}
		e.Sub1 = int32(len(p.tiles))
	}
	p.pad(fill)
	size := max(1, (len(basis)+listPieces-1)/listPieces)
	for at := 0; at < len(basis); {
		end := at + 1
		most := min(size, mostTiles(t.HeadDimV, basis[at]))
		for end < len(basis) && end-at < most && alike(at, end) {
			end++
		}
		pieces = append(pieces, kernels.Piece{Tile0: int32(first + at), Tile1: int32(first + end),
			RotatedV: basis[at]})
		at = end
	}
	return pieces, means
}

// pad completes the current tile.
func (p *attendPlan) pad(fill int) int {
	for ; fill < subTiles; fill++ {
		p.tiles = append(p.tiles, kernels.SubTile{Block: kernels.NoBlock})
	}
	return fill
}

// unitBytes is the scratch memory of the results of a unit.
func (p *attendPlan) unitBytes(u *kernels.Unit, dimV int) int {
	n := int(u.Parts) * p.unitHeads * (2 + dimV)
	if p.gains {
		n += p.subs(u) * p.unitHeads * 2
	}
	if p.masses {
		n += int(u.Heads) * int(u.Entries)
	}
	return 4 * n
}

// subs is the number of sub-tiles of a unit's pieces.
func (p *attendPlan) subs(u *kernels.Unit) int {
	if u.Parts == 0 {
		return 0
	}
	return subTiles * int(p.pieces[u.Part0+u.Parts-1].Tile1-p.pieces[u.Part0].Tile0)
}

// wave returns the end of the units from first on whose results fit in waveBytes, at least one.
func (p *attendPlan) wave(first, dimV int) int {
	bytes := 0
	for i := first; i < len(p.units); i++ {
		bytes += p.unitBytes(&p.units[i], dimV)
		if i > first && bytes > waveBytes {
			return i
		}
	}
	return len(p.units)
}

// attendWave is some units with indices of their own.
type attendWave struct {
	units        []kernels.Unit
	pieces       []kernels.Piece
	head0, heads int
	masses, subs int // numbers of results
}

// cutWave returns units [first, end).
func (p *attendPlan) cutWave(first, end int) attendWave {
	w := attendWave{units: slices.Clone(p.units[first:end])}
	part0 := w.units[0].Part0
	last := w.units[len(w.units)-1]
	w.pieces = slices.Clone(p.pieces[part0 : last.Part0+last.Parts])
	w.head0 = int(w.units[0].Head0)
	w.heads = int(last.Head0+last.Heads) - w.head0
	for i := range w.units {
		u := &w.units[i]
		if p.masses {
			u.Mass0 = int64(w.masses)
			w.masses += int(u.Heads) * int(u.Entries)
		}
		tile0 := int32(0)
		if u.Parts > 0 {
			tile0 = p.pieces[u.Part0].Tile0
		}
		for k := u.Part0 - part0; k < u.Part0-part0+u.Parts; k++ {
			c := &w.pieces[k]
			c.Unit = int32(i)
			c.Gain0 = int32(w.subs) + subTiles*(c.Tile0-tile0)
		}
		w.subs += p.subs(u)
		u.Part0 -= part0
	}
	return w
}
