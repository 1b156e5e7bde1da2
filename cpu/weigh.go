// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
)

var _ backend.Weigher = (*Backend)(nil)

// ones are row scales of 1.
var ones = func() (t [tileRows]float32) {
	for i := range t {
		t[i] = 1
	}
	return t
}()

// weighScratch is the scratch memory of a worker for Weigh, beside its scratch.
type weighScratch struct {
	kept []float32 // [tiles, heads, tileRows]: exp(score - top) with the top at that tile
	tops []float32 // [tiles, heads]: that top; +Inf if the head saw no row of the tile
	top  []float32 // [heads]
	sum  []float64 // [heads]: sum of exp(score - top)
	// Per head, while probabilities are summed: at is the top that factor belongs to. factor
	// converts the exponentials of that top, or their squares, to probabilities.
	at     []float32
	factor []float32
	part   [tileRows]float32
}

// Weigh adds up attention per row; see backend.Weigher. It computes exponentials once and keeps
// them until their sum is known.
func (b *Backend) Weigh(ctx context.Context, q *backend.Queries, v backend.View,
	rel *backend.RelevanceOut) error {
	turn, err := b.open(ctx, backend.OpRelevance)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := b.calls.Get().(*call)
	defer c.done()
	w, err := args.ViewOf[described](b, v)
	if err == nil && q != nil {
		c.zeros = grow(c.zeros, max(0, len(q.Pos), len(q.BlockPtr)-1)*max(0, q.Group))
	}
	if err == nil {
		err = c.keep(args.Relevance(c.seeds[:0], q, c.zeros, w, rel))
	}
	if err != nil {
		return fmt.Errorf("kvist/cpu: weigh: %w", err)
	}
	c.begin(ctx, q, w)
	c.rel = rel
	c.cutUnits(c.mostQueries(), false)
	if err := c.prepare(backend.OpRelevance); err != nil {
		return err
	}
	c.totals = grow(c.totals, len(rel.Sum))
	clear(c.totals)
	for units := c.units; len(units) > 0; {
		n, rows := 0, 0
		for n < len(units) && (n == 0 || rows+c.listRows(units[n].list) <= waveFloats) {
			units[n].at = rows
			rows += c.listRows(units[n].list)
			n++
		}
		c.wave, c.doubles = units[:n], grow(c.doubles, rows)
		clear(c.doubles)
		if err := b.workers.run(ctx, backend.OpRelevance, n, c.doWeigh); err != nil {
			return err
		}
		c.addWave()
		units = units[n:]
	}
	for r, x := range c.totals {
		rel.Sum[r] = float32(float64(rel.Sum[r]) + x)
	}
	return nil
}

// listRows returns the number of rows in a list of blocks.
func (c *call) listRows(list []int32) (n int) {
	for _, i := range list {
		n += int(c.view.Rows(int(i)))
	}
	return n
}

// addWave adds the results of the units of the wave in order, so that the bits do not depend on
// which unit finished first.
func (c *call) addWave() {
	for i := range c.wave {
		at := c.wave[i].at
		for _, b := range c.wave[i].list {
			sum := c.totals[c.rel.RowPtr[b]:c.rel.RowPtr[b+1]]
			for r, x := range c.doubles[at : at+len(sum)] {
				sum[r] += x
			}
			at += len(sum)
		}
	}
}

// weighOne processes unit i of the wave.
func (c *call) weighOne(i int) error {
	u := &c.wave[i]
	s := c.b.scratch.Get().(*scratch)
	err := s.weigh(c, u, c.doubles[u.at:u.at+c.listRows(u.list)])
	c.b.release(s)
	return err
}

// weigh adds the attention that the rows of a unit's list get to acc, one element per row.
func (s *scratch) weigh(c *call, u *unit, acc []float64) error {
	heads := len(u.qs) * c.Group
	s.reset(&c.prepared, c.view, u, u.qs)
	tiles := 0
	for _, b := range u.list {
		tiles += (int(c.view.Rows(int(b))) + tileRows - 1) / tileRows
	}
	w := &s.weighing
	w.kept, w.tops = grow(w.kept, tiles*heads*tileRows), grow(w.tops, tiles*heads)
	w.top, w.sum, s.before = grow(w.top, heads), grow(w.sum, heads), grow(s.before, heads)
	clear(w.sum)
	for h := range w.top {
		w.top[h] = float32(negInf)
	}
	s.heads.Tops = w.top
	tile := 0
	for _, b := range u.list {
		if err := cancelled(c.ctx, backend.OpRelevance); err != nil {
			return err
		}
		if err := s.block(c.view.At(int(b)), false); err != nil {
			return fmt.Errorf("kvist/cpu: weigh: block %d: %w", b, err)
		}
		rows := int(s.blk.form.Key.Rows)
		for r := 0; r < rows; r += tileRows {
			s.keepTile(r, min(tileRows, rows-r), tile, heads)
			tile++
		}
	}
	w.at, w.factor = grow(w.at, heads), grow(w.factor, heads)
	for h := range w.at {
		w.at[h] = float32(math.NaN())
	}
	at := 0
	tile = 0
	for _, b := range u.list {
		rows := int(c.view.Rows(int(b)))
		for r := 0; r < rows; r += tileRows {
			n := min(tileRows, rows-r)
			s.addKept(acc[at:at+n], tile, heads, c.rel.Power)
			at, tile = at+n, tile+1
		}
	}
	return nil
}

// keepTile computes the exponentials of a tile: one step of the online softmax, as in addTile.
func (s *scratch) keepTile(r0, n, tile, heads int) {
	w := &s.weighing
	tops, kept := w.tops[tile*heads:(tile+1)*heads], w.kept[tile*heads*tileRows:(tile+1)*heads*tileRows]
	done := 0 // number of heads whose exponentials are computed
	none := func(until int) {
		for h := done; h < until; h++ {
			tops[h] = float32(math.Inf(1))
		}
		clear(kept[done*tileRows : until*tileRows])
	}
	if s.scorer.tile(r0, n) {
		s.lower(w.top)
		for i, lo, hi := s.nextRun(0); lo < hi; i, lo, hi = s.nextRun(i) {
			none(lo)
			done = hi
			copy(s.before[lo:hi], w.top[lo:hi])
			s.p.kern.Softmax(&s.heads, lo, hi, &s.terms, &ones)
			for h := lo; h < hi; h++ {
				if w.top[h] != s.before[h] && w.sum[h] != 0 {
					w.sum[h] *= math.Exp(float64(s.before[h]) - float64(w.top[h]))
				}
				w.sum[h] += float64(s.heads.Sums[h])
				tops[h] = 0 // known below
			}
			copy(kept[lo*tileRows:hi*tileRows], s.heads.Weights[lo*tileRows:])
		}
		s.lift(w.top)
		for h := range tops[:done] {
			if tops[h] == 0 {
				tops[h] = w.top[h]
			}
		}
	}
	none(heads)
}

// addKept adds the probabilities of a tile, or their squares, to acc. It first sums up to tileRows
// heads in float32, in the order of the heads.
func (s *scratch) addKept(acc []float64, tile, heads, power int) {
	w := &s.weighing
	for h, top := range w.tops[tile*heads : (tile+1)*heads] {
		if top == w.at[h] { // same top as for the tile before
			continue
		}
		w.at[h], w.factor[h] = top, 0
		if math.IsInf(float64(top), 1) || w.sum[h] == 0 {
			continue
		}
		f := math.Exp(float64(top)-float64(w.top[h])) / w.sum[h]
		if power == 2 {
			f *= f
		}
		w.factor[h] = float32(f)
	}
	for first := 0; first < heads; first += tileRows {
		end := min(first+tileRows, heads)
		s.p.kern.Mix(&w.part, w.factor[first:end], w.kept[(tile*heads+first)*tileRows:], power)
		for r := range acc {
			acc[r] += float64(w.part[r])
		}
	}
}
