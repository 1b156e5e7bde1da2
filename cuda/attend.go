// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// Attend computes attention over the blocks of a view; see backend.Backend. The outputs must not
// overlap q.Q.
func (b *Backend) Attend(ctx context.Context, q *backend.Queries, v backend.View,
	to backend.Attention) error {
	if err := b.open(ctx, backend.OpAttend); err != nil {
		return err
	}
	w, err := args.ViewOf[described](b, v)
	var seeds []args.Seeds
	if err == nil {
		seeds, err = args.Attend(nil, q, w, &to)
	}
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
	t := b.newBatch(q, w)
	if err := t.check(); err != nil {
		return fmt.Errorf("kvist/cuda: attend: %w", err)
	}
	t.useKernels(b.attend.Kernel)
	plan := t.planAttend(seeds, to.Mass != nil)
	defer runtime.KeepAlive(w) // its slots must not be taken again before the kernels end
	t.table.use.RLock()
	defer t.table.use.RUnlock()
	if to.Mass != nil {
		t.masses = make([]float64, len(to.Mass))
	}
	for first := 0; first < len(plan.units); {
		end := plan.wave(first, q.HeadDimV)
		if err := cancelled(ctx, backend.OpAttend); err != nil {
			return err
		}
		err := b.withLane(func(l *lane) error {
			return t.attendWave(l, &plan, first, end, &to)
		})
		if err != nil {
			return err
		}
		first = end
	}
	for i, m := range t.masses {
		to.Mass[i] = float32(m)
	}
	return nil
}

// waveRoom is the place of the results of a wave.
type waveRoom struct{ units, pieces, tiles, entries, out, lse, masses, parts, gains section }

// attendWave processes units [first, end) and copies their results to the caller.
func (t *batch) attendWave(l *lane, plan *attendPlan, first, end int, to *backend.Attention) error {
	wave := plan.cutWave(first, end)
	dimV := t.HeadDimV
	var y layout
	qr := t.room(&y)
	var r waveRoom
	r.units, r.pieces = room[kernels.Unit](&y, len(wave.units)), room[kernels.Piece](&y, len(wave.pieces))
	r.tiles = room[kernels.SubTile](&y, len(plan.tiles))
	if wave.masses > 0 {
		r.entries = room[kernels.EntryRange](&y, len(plan.entries))
	}
	inputs := y.size
	r.out, r.lse = room[float32](&y, wave.heads*dimV), room[float32](&y, wave.heads)
	r.masses = room[float32](&y, wave.masses)
	outputs := y.size
	r.parts = room[float32](&y, len(wave.pieces)*plan.unitHeads*(2+dimV))
	if plan.gains {
		r.gains = room[float32](&y, wave.subs*plan.unitHeads*2)
	}
	if y.bad {
		return fmt.Errorf("kvist/cuda: attend: results of %d heads: %w", wave.heads, quant.ErrTooLarge)
	}
	if err := l.ready(outputs, y.size); err != nil {
		return err
	}
	t.fill(l, qr)
	copy(slice[kernels.Unit](l, r.units), wave.units)
	copy(slice[kernels.Piece](l, r.pieces), wave.pieces)
	copy(slice[kernels.SubTile](l, r.tiles), plan.tiles)
	copy(slice[kernels.EntryRange](l, r.entries), plan.entries)
	if err := l.send(inputs); err != nil {
		return err
	}
	p := t.params(l, plan, qr, r, wave.head0)
	err := l.timed(func() error { return launchAttend(l, p, wave.pieces, len(wave.units), t.mma) })
	if err == nil {
		err = l.fetch(r.out.at, outputs-r.out.at)
	}
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	copy(to.Out[wave.head0*dimV:], slice[float32](l, r.out))
	if to.LSE != nil {
		copy(to.LSE[wave.head0:], slice[float32](l, r.lse))
	}
	if t.masses != nil {
		t.addMasses(wave.units, slice[float32](l, r.masses))
	}
	return l.tick()
}

// params are the parameters of the kernels of a wave. They index out and lse by the heads of the
// whole batch.
func (t *batch) params(l *lane, plan *attendPlan, q queryRoom, r waveRoom, head0 int) kernels.AttendParams {
	return kernels.AttendParams{Q: l.address(q.q), Pos: l.address(q.pos), Blocks: t.descriptors(),
		Units: l.address(r.units), Pieces: l.address(r.pieces), Tiles: l.address(r.tiles),
		Variants: l.address(q.variants), Turns: l.address(q.turns), Metrics: l.address(q.metrics),
		Parts: l.address(r.parts), Gains: l.address(r.gains), Entries: l.address(r.entries),
		Out: l.address(r.out) - uint64(4*head0*t.HeadDimV), LSE: l.address(r.lse) - uint64(4*head0),
		Masses: l.address(r.masses), Window: t.Window, Scale: t.Scale, Softcap: t.Softcap,
		HeadDim: int32(t.HeadDim), HeadDimV: int32(t.HeadDimV), Group: int32(t.Group),
		Pairs: t.pairs(), Interleaved: t.interleaved(), UnitHeads: int32(plan.unitHeads)}
}

// addMasses adds the masses of the heads of some units, [heads, entries] each, to those of their
// queries, in the order of the heads.
func (t *batch) addMasses(units []kernels.Unit, got []float32) {
	for _, u := range units {
		n := int(u.Entries)
		for h := range int(u.Heads) {
			sums := t.masses[t.BlockPtr[(int(u.Head0)+h)/t.Group]:][:n]
			for e, m := range got[int(u.Mass0)+h*n:][:n] {
				sums[e] += float64(m)
			}
		}
	}
}
