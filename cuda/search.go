// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

const (
	// MaxSearchDim is the largest dim for which search has shared memory.
	MaxSearchDim = 2048
	// scanQueries is the number of queries in an item of scan. waveKeys bounds the keys of a
	// launch: 32 MiB.
	scanQueries = 64
	waveKeys    = 1 << 22
)

var _ backend.Searcher = (*Backend)(nil)

// search is one call of Search.
type search struct {
	*backend.Search
	stride int
	bases  [][]float32 // [bases][queries, stride]: the original basis, then each seed's
	sides  []kernels.ScanSide
	best   [][]backend.Hit // [queries]
}

// Search finds the rows with the largest inner products; see backend.Searcher.
//
// It also returns quant.ErrUnsupported for rows of more than MaxSearchDim values.
func (b *Backend) Search(ctx context.Context, s *backend.Search, out []backend.Hit) error {
	if err := b.open(ctx, backend.OpDecode); err != nil {
		return err
	}
	c := &search{Search: s, stride: (s.Dim + 7) / 8 * 8, best: make([][]backend.Hit, s.Len())}
	basis := map[uint64]int32{}
	var failed error
	err := b.check().Search(s, out, func(i int, at uint64) {
		r := &s.Rows[i]
		side := kernels.ScanSide{Data: at, Rows: int32(r.Rows), Format: uint8(r.Side.Coding.Format),
			Form: uint8(r.Side.Coding.Scale)}
		if r.Side.Coding.Format.Rotated() {
			n, ok := basis[r.Side.Seed]
			if !ok && failed == nil {
				n = int32(len(basis) + 1)
				basis[r.Side.Seed] = n
				failed = c.rotate(r.Side.Seed)
			}
			side.Basis = n
		}
		c.sides = append(c.sides, side)
	})
	switch {
	case err != nil:
	case s.Dim > MaxSearchDim:
		err = fmt.Errorf("rows of %d values, want at most %d: %w", s.Dim, MaxSearchDim, quant.ErrUnsupported)
	default:
		err = failed
	}
	if err != nil {
		return fmt.Errorf("kvist/cuda: search: %w", err)
	}
	if s.Len() == 0 {
		return nil
	}
	if err := c.run(ctx, b); err != nil {
		return err
	}
	args.PutHits(out, s.TopK, c.best)
	return nil
}

// rotate adds the queries in the basis of a seed, after those in the original basis.
func (c *search) rotate(seed uint64) error {
	r, err := quant.NewRotation(c.Dim, seed)
	if err != nil {
		return err
	}
	c.plain()
	q := make([]float32, c.Len()*c.stride)
	for i := range c.Len() {
		row := q[i*c.stride : i*c.stride+c.Dim]
		copy(row, c.Q[i*c.Dim:])
		r.Forward(row)
	}
	c.bases = append(c.bases, q)
	return nil
}

// plain adds the queries in the original basis first.
func (c *search) plain() {
	if len(c.bases) > 0 {
		return
	}
	q := make([]float32, c.Len()*c.stride)
	for i := range c.Len() {
		copy(q[i*c.stride:], c.Q[i*c.Dim:(i+1)*c.Dim])
	}
	c.bases = append(c.bases, q)
}

// run searches in waves of as many rows as have room for their keys. If a thousand rows have too
// many keys for one wave, the queries take turns.
func (c *search) run(ctx context.Context, b *Backend) error {
	c.plain()
	queries := min(c.Len(), waveKeys/kernels.TopKeys)
	rows := waveKeys / queries / kernels.SubRows * kernels.SubRows
	for q := 0; q < c.Len(); q += queries {
		w := wave{search: c, query0: q, queries: min(queries, c.Len()-q)}
		for i := range c.sides {
			for r := int32(0); r < c.sides[i].Rows; r += kernels.SubRows {
				w.add(int32(i), r)
				if w.rows >= rows {
					if err := w.flush(ctx, b); err != nil {
						return err
					}
				}
			}
		}
		if err := w.flush(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// wave is the work of one launch.
type wave struct {
	*search
	query0, queries int
	rows            int // a multiple of SubRows
	items           []kernels.ScanItem
	pieces          []kernels.ScanItem // one for each SubRows rows, with their numbers
}

func (w *wave) add(side, row0 int32) {
	it := kernels.ScanItem{Side: side, Row0: row0, At: int32(w.rows)}
	w.pieces = append(w.pieces, it)
	for q := 0; q < w.queries; q += scanQueries {
		it.Query0, it.Queries = int32(q), int32(min(scanQueries, w.queries-q))
		w.items = append(w.items, it)
	}
	w.rows += kernels.SubRows
}

// flush searches the rows added so far and merges the hits.
func (w *wave) flush(ctx context.Context, b *Backend) error {
	if w.rows == 0 {
		return nil
	}
	if err := cancelled(ctx, backend.OpDecode); err != nil {
		return err
	}
	if err := b.withLane(func(l *lane) error { return w.launch(l) }); err != nil {
		return err
	}
	w.rows, w.items, w.pieces = 0, w.items[:0], w.pieces[:0]
	return nil
}

// launch computes the keys [queries, rows] and keeps the largest of every TopKeys until one list is
// left.
func (w *wave) launch(l *lane) error {
	k := min(w.TopK, kernels.TopKeys/2)
	var y layout
	qs := room[float32](&y, len(w.bases)*w.queries*w.stride)
	ss, is := room[kernels.ScanSide](&y, len(w.sides)), room[kernels.ScanItem](&y, len(w.items))
	inputs := y.size
	hits := room[uint64](&y, w.queries*k)
	staged := y.size
	keys := room[uint64](&y, w.queries*w.rows)
	lists := (w.rows + kernels.TopKeys - 1) / kernels.TopKeys
	other := room[uint64](&y, w.queries*lists*k)
	if y.bad {
		return fmt.Errorf("kvist/cuda: search: %d queries: %w", w.queries, quant.ErrTooLarge)
	}
	if err := l.ready(staged, y.size); err != nil {
		return err
	}
	n := w.queries * w.stride
	for i, dst := 0, slice[float32](l, qs); i < len(w.bases); i++ {
		copy(dst[i*n:(i+1)*n], w.bases[i][w.query0*w.stride:])
	}
	copy(slice[kernels.ScanSide](l, ss), w.sides)
	copy(slice[kernels.ScanItem](l, is), w.items)
	if err := l.send(inputs); err != nil {
		return err
	}
	p := kernels.ScanParams{Q: l.address(qs), Sides: l.address(ss), Items: l.address(is), Out: l.address(keys),
		Dim: int32(w.Dim), Stride: int32(w.stride), Queries: int32(w.queries), Wave: int32(w.rows)}
	err := l.timed(func() error {
		shared := 4 * (4*w.stride + kernels.BookFloats)
		err := start(l, "kvist_scan", [2]int{len(w.items), 1}, kernels.SubRows, shared, p)
		from, to := keys, other
		for have := w.rows; err == nil && from != hits; from, to = to, from {
			t := kernels.TopParams{In: l.address(from), N: int32(have), K: int32(k),
				Lists: int32((have + kernels.TopKeys - 1) / kernels.TopKeys)}
			if t.Lists == 1 {
				to = hits
			}
			t.Out = l.address(to)
			err = start(l, "kvist_top", [2]int{int(t.Lists), w.queries}, 256, 8*kernels.TopKeys, t)
			have = int(t.Lists) * k
		}
		return err
	})
	if err == nil {
		err = l.fetch(hits.at, hits.n)
	}
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	w.take(slice[uint64](l, hits), k)
	return l.tick()
}

// take merges keys [queries, k] into the hits of the queries.
func (w *wave) take(keys []uint64, k int) {
	for q := range w.queries {
		best := w.best[w.query0+q]
		var merged []backend.Hit
		for _, key := range keys[q*k : (q+1)*k] {
			if key == 0 {
				break // only empty keys follow
			}
			h := w.hit(key)
			for len(best) > 0 && backend.CompareHits(best[0], h) <= 0 {
				merged, best = append(merged, best[0]), best[1:]
			}
			merged = append(merged, h)
		}
		merged = append(merged, best...)
		w.best[w.query0+q] = merged[:min(len(merged), w.TopK)]
	}
}

// hit decodes a key.
func (w *wave) hit(key uint64) backend.Hit {
	row := int(^uint32(key))
	it := w.pieces[row/kernels.SubRows]
	bits := uint32(key >> 32)
	if bits&(1<<31) != 0 {
		bits &^= 1 << 31
	} else {
		bits = ^bits
	}
	first := w.Rows[it.Side].First + int64(it.Row0)
	return backend.Hit{Row: first + int64(row%kernels.SubRows), Product: math.Float32frombits(bits)}
}
