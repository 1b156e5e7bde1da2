// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
)

// itemTiles is the largest number of tiles in one work item of Relevance.
const itemTiles = 32

// relevanceItem is a range of rows of a block.
type relevanceItem struct {
	block    int32
	from, to int32
}

// Relevance adds up attention per row; see backend.Backend.
func (b *Backend) Relevance(ctx context.Context, q *backend.Queries, lse []float32,
	v backend.View, rel *backend.RelevanceOut) error {
	turn, err := b.open(ctx, backend.OpRelevance)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := b.calls.Get().(*call)
	defer c.done()
	w, err := args.ViewOf[described](b, v)
	if err == nil {
		err = c.keep(args.Relevance(c.seeds[:0], q, lse, w, rel))
	}
	if err != nil {
		return fmt.Errorf("kvist/cpu: relevance: %w", err)
	}
	c.begin(ctx, q, w)
	c.lse, c.rel = lse, rel
	c.cutUnits(1, false)
	if err := c.prepare(backend.OpRelevance); err != nil {
		return err
	}
	c.ptr, c.users = args.Users(c.ptr, c.users, q, w.Len())
	c.items = c.items[:0]
	for i := range w.Len() {
		if c.ptr[i] == c.ptr[i+1] {
			continue
		}
		rows := w.Rows(i)
		for r := int32(0); r < rows; r += itemTiles * tileRows {
			c.items = append(c.items, relevanceItem{int32(i), r, min(rows, r+itemTiles*tileRows)})
		}
	}
	return b.workers.run(ctx, backend.OpRelevance, len(c.items), c.doRelevance)
}

// relevanceOne processes item i.
func (c *call) relevanceOne(i int) error {
	it := c.items[i]
	s := c.b.scratch.Get().(*scratch)
	err := s.relevance(c, it, c.users[c.ptr[it.block]:c.ptr[it.block+1]])
	c.b.release(s)
	return err
}

// relevance processes one range of rows. Sums over the queries are float64.
func (s *scratch) relevance(c *call, it relevanceItem, users []int32) error {
	p, rel := &c.prepared, c.rel
	s.acc = grow(s.acc, int(it.to-it.from)+tileRows)
	clear(s.acc)
	batch := max(1, unitHeads/p.Group)
	for len(users) > 0 {
		if err := cancelled(c.ctx, backend.OpRelevance); err != nil {
			return err
		}
		n := min(batch, len(users))
		s.reset(p, c.view, nil, users[:n])
		s.lse = grow(s.lse, n*p.Group)
		for i, q := range s.qs {
			copy(s.lse[i*p.Group:(i+1)*p.Group], c.lse[int(q)*p.Group:])
		}
		if err := s.block(c.view.At(int(it.block)), false); err != nil {
			return fmt.Errorf("kvist/cpu: relevance: block %d: %w", it.block, err)
		}
		for r := it.from; r < it.to; r += tileRows {
			if s.scorer.tile(int(r), int(min(tileRows, it.to-r))) {
				s.addRelevance((*[tileRows]float64)(s.acc[r-it.from:]), rel.Power)
			}
		}
		users = users[n:]
	}
	sum := rel.Sum[int(rel.RowPtr[it.block])+int(it.from):]
	for r, x := range s.acc[:it.to-it.from] {
		sum[r] = float32(float64(sum[r]) + x)
	}
	return nil
}

// addRelevance adds the current tile to acc, one element per row.
func (s *scratch) addRelevance(acc *[tileRows]float64, power int) {
	for i, lo, hi := s.nextRun(0); lo < hi; i, lo, hi = s.nextRun(i) {
		for h := lo; h < hi; h++ {
			if s.lse[h] == float32(negInf) {
				s.heads.Masks[h] = 0 // the query saw nothing
			}
		}
		lse := s.lse
		if s.shifts && s.p.Softcap == 0 {
			s.lowered = grow(s.lowered, len(lse))
			for h := lo; h < hi; h++ {
				s.lowered[h] = lse[h] - s.shift[h]
			}
			lse = s.lowered
		}
		s.p.kern.Probs(acc, &s.heads, lo, hi, &s.terms, lse, power)
	}
}
