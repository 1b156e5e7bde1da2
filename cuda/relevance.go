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

const (
	// itemQueries is the number of queries in one item of Relevance.
	itemQueries = 64
	// waveItems bounds the items of one launch, and thus their results: 32 float64 each.
	waveItems = 1 << 15
	// relevanceHeads is the number of heads that the kernel holds at a time.
	relevanceHeads = 8
)

// Relevance adds up attention per row; see backend.Backend.
func (b *Backend) Relevance(ctx context.Context, q *backend.Queries, lse []float32,
	v backend.View, rel *backend.RelevanceOut) error {
	if err := b.open(ctx, backend.OpRelevance); err != nil {
		return err
	}
	w, err := args.ViewOf[described](b, v)
	if err == nil {
		_, err = args.Relevance(nil, q, lse, w, rel)
	}
	if err != nil {
		return fmt.Errorf("kvist/cuda: relevance: %w", err)
	}
	if q.HeadDim > MaxHeadDim {
		return fmt.Errorf("kvist/cuda: relevance: head_dim %d, want at most %d: %w", q.HeadDim,
			MaxHeadDim, quant.ErrUnsupported)
	}
	t := b.newBatch(q, w)
	if err := t.check(); err != nil {
		return fmt.Errorf("kvist/cuda: relevance: %w", err)
	}
	defer runtime.KeepAlive(w) // its slots must not be taken again before the kernels end
	t.table.use.RLock()
	defer t.table.use.RUnlock()
	items, users := t.relevanceItems()
	// Add only when all results are there: after an error the sums are unchanged.
	sums := make([]float64, len(rel.Sum))
	for len(items) > 0 {
		if err := cancelled(ctx, backend.OpRelevance); err != nil {
			return err
		}
		n := min(waveItems, len(items))
		err := b.withLane(func(l *lane) error {
			return t.relevanceWave(l, items[:n], users, lse, rel, sums)
		})
		if err != nil {
			return err
		}
		items = items[n:]
	}
	for i, s := range sums {
		rel.Sum[i] = float32(float64(rel.Sum[i]) + s)
	}
	return nil
}

// relevanceItem is an item with the index of its block.
type relevanceItem struct {
	kernels.RelevanceItem
	index int
}

// relevanceItems divides the batch.
func (t *batch) relevanceItems() (items []relevanceItem, users []int32) {
	ptr, users := args.Users(nil, nil, t.Queries, t.view.Len())
	variant := int32(0)
	for i := range t.view.Len() {
		if ptr[i] == ptr[i+1] {
			continue
		}
		e := t.view.At(i)
		f := t.view.Form(e.Form)
		variant = t.variantOf(f, variant)
		for u := ptr[i]; u < ptr[i+1]; u += itemQueries {
			for r := int32(0); r < f.Key.Rows; r += kernels.SubRows {
				items = append(items, relevanceItem{kernels.RelevanceItem{Block: int32(t.view.Slot(i)), Row0: r,
					User0: int32(u), Users: int32(min(itemQueries, ptr[i+1]-u)), Seed: f.Key.KSeed,
					Variant: variant}, i})
			}
		}
	}
	return items, users
}

// relevanceWave processes some items and adds their results to sums, in order.
func (t *batch) relevanceWave(l *lane, items []relevanceItem, users []int32,
	lse []float32, rel *backend.RelevanceOut, sums []float64) error {
	var y layout
	qr := t.room(&y)
	is, us := room[kernels.RelevanceItem](&y, len(items)), room[int32](&y, len(users))
	ls := room[float32](&y, len(lse))
	inputs := y.size
	os := room[float64](&y, len(items)*kernels.SubRows)
	if y.bad {
		return fmt.Errorf("kvist/cuda: relevance: %d items: %w", len(items), quant.ErrTooLarge)
	}
	if err := l.ready(y.size, y.size); err != nil {
		return err
	}
	t.fill(l, qr)
	for i, dst := 0, slice[kernels.RelevanceItem](l, is); i < len(items); i++ {
		dst[i] = items[i].RelevanceItem
	}
	copy(slice[int32](l, us), users)
	copy(slice[float32](l, ls), lse)
	if err := l.send(inputs); err != nil {
		return err
	}
	p := kernels.RelevanceParams{Q: l.address(qr.q), Pos: l.address(qr.pos), Blocks: t.descriptors(),
		Variants: l.address(qr.variants), Turns: l.address(qr.turns), Metrics: l.address(qr.metrics),
		LSE: l.address(ls), Items: l.address(is), Users: l.address(us), Out: l.address(os),
		Window: t.Window, Scale: t.Scale, Softcap: t.Softcap, HeadDim: int32(t.HeadDim),
		Group: int32(t.Group), Pairs: t.pairs(), Interleaved: t.interleaved(),
		Power: int32(rel.Power)}
	stride := (t.HeadDim + 7) / 8 * 8
	shared := 4 * (2*relevanceHeads*stride + kernels.BookFloats)
	err := l.timed(func() error {
		return start(l, "kvist_relevance", [2]int{len(items), 1}, kernels.SubRows, shared, p)
	})
	if err == nil {
		err = l.fetch(os.at, os.n)
	}
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	got := slice[float64](l, os)
	for i, it := range items {
		at := int(rel.RowPtr[it.index]) + int(it.Row0)
		n := min(kernels.SubRows, int(rel.RowPtr[it.index+1])-at)
		for r := range n {
			sums[at+r] += got[i*kernels.SubRows+r]
		}
	}
	return l.tick()
}
