// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// batch is a batch of queries and its blocks, in the form that attend and relevance need.
type batch struct {
	*backend.Queries
	desc   []kernels.BlockDesc
	turns  *turnTable
	mma    bool
	energy []float32 // [n, group]: |q|^2
}

// newBatch starts a batch of queries on blocks blocks; describe adds each block.
func (b *Backend) newBatch(q *backend.Queries, blocks int) *batch {
	return &batch{Queries: q, mma: b.mma, desc: make([]kernels.BlockDesc, blocks)}
}

// describe adds a checked block.
func (t *batch) describe(i int, w args.BlockView[uint64]) {
	if t.turns == nil {
		t.turns = newTurnTable(t.Queries)
	}
	half := 0.5 * float64(t.Scale) * float64(t.Scale)
	t.desc[i] = kernels.BlockDesc{K: w.KMem, V: w.VMem, Pos: w.PosMem, Count: w.CountMem,
		Bias: w.BiasMem, Base: w.Base, Rows: w.Rows, Turn: t.turns.entry(w.Offset),
		HalfNoise: float32(half * float64(w.Noise)),
		KFormat:   uint8(w.K.Coding.Format), KForm: uint8(w.K.Coding.Scale),
		VFormat: uint8(w.V.Coding.Format), VForm: uint8(w.V.Coding.Scale)}
}

// measure computes the energies of the checked queries.
func (t *batch) measure() {
	if t.turns == nil { // no block
		t.turns = newTurnTable(t.Queries)
	}
	t.energy = make([]float32, t.Len()*t.Group)
	for h := range t.energy {
		var e float64
		for _, x := range t.Q[h*t.HeadDim : (h+1)*t.HeadDim] {
			e += float64(x) * float64(x)
		}
		t.energy[h] = float32(e)
	}
}

// queryRoom is the place of a batch in scratch memory.
type queryRoom struct{ q, energy, pos, desc, turns section }

func (t *batch) room(y *layout) queryRoom {
	return queryRoom{room[float32](y, len(t.Q)), room[float32](y, len(t.energy)),
		room[int64](y, len(t.Pos)), room[kernels.BlockDesc](y, len(t.desc)),
		room[float32](y, len(t.turns.values))}
}

func (t *batch) fill(l *lane, r queryRoom) {
	copy(slice[float32](l, r.q), t.Q)
	copy(slice[float32](l, r.energy), t.energy)
	copy(slice[int64](l, r.pos), t.Pos)
	copy(slice[kernels.BlockDesc](l, r.desc), t.desc)
	copy(slice[float32](l, r.turns), t.turns.values)
}

func (t *batch) interleaved() int32 {
	if t.Rope != nil && t.Rope.Layout == quant.RopeInterleaved {
		return 1
	}
	return 0
}

// Attend computes attention over packed blocks; see backend.Backend. out and lse must not overlap
// q.Q.
func (b *Backend) Attend(ctx context.Context, q *backend.Queries, blocks []backend.Block,
	out, lse []float32) error {
	if err := b.open(ctx, backend.OpAttend); err != nil {
		return err
	}
	t := b.newBatch(q, len(blocks))
	seeds, err := b.check().Attend(nil, q, blocks, out, lse, t.describe)
	if err != nil {
		return fmt.Errorf("kvist/cuda: attend: %w", err)
	}
	if q.HeadDim > MaxHeadDim || q.HeadDimV > MaxHeadDim {
		return fmt.Errorf("kvist/cuda: attend: head_dim %d, head_dim_v %d, want at most %d: %w",
			q.HeadDim, q.HeadDimV, MaxHeadDim, quant.ErrUnsupported)
	}
	if q.Len() == 0 {
		return nil
	}
	t.measure()
	t.mma = t.mma && mmaWorks(q.HeadDim, q.HeadDimV)
	plan := planAttend(q, blocks, t.desc, seeds, t.mma)
	partFloats := plan.unitHeads * (2 + q.HeadDimV)
	for first := 0; first < len(plan.units); {
		end := plan.wave(first, partFloats)
		if err := cancelled(ctx, backend.OpAttend); err != nil {
			return err
		}
		err := b.withLane(func(l *lane) error {
			return t.attendWave(l, &plan, first, end, out, lse)
		})
		if err != nil {
			return err
		}
		first = end
	}
	return nil
}

// attendWave processes units [first, end) and copies their results to the caller.
func (t *batch) attendWave(l *lane, plan *attendPlan, first, end int, out, lse []float32) error {
	units := plan.units[first:end]
	part0 := units[0].Part0
	part1 := units[len(units)-1].Part0 + units[len(units)-1].Parts
	pieces := plan.pieces[part0:part1]
	dimV := t.HeadDimV
	head0 := int(units[0].Head0)
	heads := int(units[len(units)-1].Head0+units[len(units)-1].Heads) - head0

	var y layout
	qr := t.room(&y)
	us, ps := room[kernels.Unit](&y, len(units)), room[kernels.Piece](&y, len(pieces))
	ts := room[kernels.SubTile](&y, len(plan.tiles))
	inputs := y.size
	os, ls := room[float32](&y, heads*dimV), room[float32](&y, heads)
	staged := y.size
	parts := room[float32](&y, len(pieces)*plan.unitHeads*(2+dimV))
	if y.bad {
		return fmt.Errorf("kvist/cuda: attend: results of %d heads: %w", heads, quant.ErrTooLarge)
	}
	if err := l.ready(staged, y.size); err != nil {
		return err
	}
	t.fill(l, qr)
	for i, dst := 0, slice[kernels.Unit](l, us); i < len(units); i++ {
		dst[i] = units[i]
		dst[i].Part0 -= part0
	}
	for i, dst := 0, slice[kernels.Piece](l, ps); i < len(pieces); i++ {
		dst[i] = pieces[i]
		dst[i].Unit -= int32(first)
	}
	copy(slice[kernels.SubTile](l, ts), plan.tiles)
	if err := l.send(inputs); err != nil {
		return err
	}
	p := kernels.AttendParams{Q: l.address(qr.q), Energy: l.address(qr.energy),
		Pos: l.address(qr.pos), Blocks: l.address(qr.desc), Units: l.address(us),
		Pieces: l.address(ps), Tiles: l.address(ts), Turns: l.address(qr.turns),
		Parts: l.address(parts), Window: t.Window, Scale: t.Scale, Softcap: t.Softcap,
		// The kernels index by the heads of the whole batch.
		Out: l.address(os) - uint64(4*head0*dimV), LSE: l.address(ls) - uint64(4*head0),
		HeadDim: int32(t.HeadDim), HeadDimV: int32(dimV), Group: int32(t.Group),
		Pairs: int32(len(t.turns.freqs)), Interleaved: t.interleaved(),
		UnitHeads: int32(plan.unitHeads)}
	err := l.timed(func() error { return launchAttend(l, p, pieces, len(units), t.mma) })
	if err == nil {
		err = l.fetch(os.at, ls.at+ls.n-os.at)
	}
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	copy(out[head0*dimV:], slice[float32](l, os))
	if lse != nil {
		copy(lse[head0:], slice[float32](l, ls))
	}
	return l.tick()
}

// mmaKernel is the variant of kvist_attend_h8 for tensor cores, with mmaHeads heads.
const (
	mmaKernel = "kvist_attend_mma"
	mmaHeads  = 8
	mmaShared = 64 << 10 // enough for the largest shape
)

// mmaWorks reports whether tensor cores support a shape: whole groups of columns for four warps,
// and 8 heads in shared memory.
func mmaWorks(dim, dimV int) bool {
	return mostHeads(dim) >= mmaHeads && (dimV == 64 || dimV == 128 || dimV == 256)
}

// launchAttend launches attend for every piece, on tensor cores or not, and combine for every unit.
func launchAttend(l *lane, p kernels.AttendParams, pieces []kernels.Piece, units int,
	mma bool) error {
	h := int(p.UnitHeads)
	stride := (int(p.HeadDim) + 7) / 8 * 8
	// As Layout in attend.cuh.
	floats := 2*h*stride + h*kernels.TileRows + 9*kernels.TileRows + kernels.BookFloats + 2*h
	grid := [2]int{len(pieces), 1}
	coded := slices.ContainsFunc(pieces, func(c kernels.Piece) bool { return c.RotatedV == kernels.CodedV })
	other := slices.ContainsFunc(pieces, func(c kernels.Piece) bool { return c.RotatedV != kernels.CodedV })
	if mma = mma && coded; mma {
		p.SkipCoded = 1
		// As MmaLayout in attend_mma.cu: queries and weights as two binary16, a table, the sums.
		more := h*stride + h*kernels.TileRows + 4*256 + 2*h + 2048
		if err := start(l, mmaKernel, grid, kernels.TileRows, 4*(floats+more), p); err != nil {
			return err
		}
	}
	if other || coded && !mma {
		name := map[int]string{1: "kvist_attend_h1", 2: "kvist_attend_h2", 4: "kvist_attend_h4",
			8: "kvist_attend_h8"}[h]
		if err := start(l, name, grid, kernels.TileRows, 4*floats, p); err != nil {
			return err
		}
	}
	return start(l, "kvist_combine", [2]int{units, h}, kernels.TileRows, 4*(int(p.HeadDimV)+16), p)
}
