// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// itemTiles is how many tiles of a block one piece of work of Relevance has at most.
const itemTiles = 32

// relevanceItem is a range of rows of a block.
type relevanceItem struct {
	block    int32
	from, to int32
}

// Relevance adds up attention per row, see backend.Backend.
func (b *Backend) Relevance(ctx context.Context, q *backend.Queries, lse []float32,
	blocks []backend.Block, rel *backend.RelevanceOut) error {
	if err := b.open(ctx, backend.OpRelevance); err != nil {
		return err
	}
	c := b.calls.Get().(*call)
	defer c.done()
	if err := c.checkRelevance(q, lse, blocks, rel); err != nil {
		return fmt.Errorf("kvist/cpu: relevance: %w", err)
	}
	if err := c.prepare(ctx, b, backend.OpRelevance, q, blocks); err != nil {
		return err
	}
	c.ctx, c.blocks, c.lse, c.rel = ctx, blocks, lse, rel
	c.findUsers()
	c.items = c.items[:0]
	for i := range blocks {
		if c.ptr[i] == c.ptr[i+1] {
			continue
		}
		rows := blocks[i].Rows
		for r := int32(0); r < rows; r += itemTiles * tileRows {
			c.items = append(c.items, relevanceItem{int32(i), r, min(rows, r+itemTiles*tileRows)})
		}
	}
	return b.workers.run(ctx, backend.OpRelevance, len(c.items), c.doRelevance)
}

// relevanceOne works on item i.
func (c *call) relevanceOne(i int) error {
	it := c.items[i]
	s := c.b.scratch.Get().(*scratch)
	err := s.relevance(c, it, c.users[c.ptr[it.block]:c.ptr[it.block+1]])
	c.b.release(s)
	return err
}

func (c *call) checkRelevance(q *backend.Queries, lse []float32, blocks []backend.Block,
	rel *backend.RelevanceOut) error {
	if err := checkQueries(q, len(blocks)); err != nil {
		return err
	}
	if heads := int64(q.Len()) * int64(q.Group); int64(len(lse)) != heads {
		return fmt.Errorf("lse has %d values, want %d: %w", len(lse), heads, quant.ErrShape)
	}
	if rel == nil {
		return fmt.Errorf("nowhere to add to: %w", quant.ErrShape)
	}
	if rel.Power != 1 && rel.Power != 2 {
		return fmt.Errorf("power %d, want 1 or 2: %w", rel.Power, quant.ErrShape)
	}
	if len(rel.RowPtr) != len(blocks)+1 || rel.RowPtr[0] != 0 ||
		int(rel.RowPtr[len(blocks)]) != len(rel.Sum) {
		return fmt.Errorf("RowPtr has %d entries for %d blocks, or does not run from 0 to %d: %w",
			len(rel.RowPtr), len(blocks), len(rel.Sum), quant.ErrShape)
	}
	sd, err := c.b.checkBlocks(c.seeds[:0], backend.OpRelevance, q, blocks)
	if err != nil {
		return err
	}
	for i := range blocks {
		if got := int64(rel.RowPtr[i+1]) - int64(rel.RowPtr[i]); got != int64(blocks[i].Rows) {
			return fmt.Errorf("block %d: RowPtr has room for %d rows, want %d: %w", i, got,
				blocks[i].Rows, quant.ErrShape)
		}
	}
	c.seeds = sd
	return nil
}

// findUsers transposes the lists: block b is listed by queries users[ptr[b]:ptr[b+1]], ascending.
func (c *call) findUsers() {
	q, blocks := c.Queries, len(c.blocks)
	ptr := grow(c.ptr, blocks+2)
	clear(ptr)
	for _, b := range q.BlockIdx {
		ptr[b+2]++
	}
	for i := 2; i < len(ptr); i++ {
		ptr[i] += ptr[i-1]
	}
	c.users = grow(c.users, len(q.BlockIdx))
	for i := range q.Len() {
		for _, b := range q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] {
			c.users[ptr[b+1]] = int32(i)
			ptr[b+1]++
		}
	}
	c.ptr = ptr
}

// relevance works on one range of rows. Sums over the queries are float64.
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
		s.reset(p, users[:n])
		s.lse = grow(s.lse, n*p.Group)
		for i, q := range s.qs {
			copy(s.lse[i*p.Group:(i+1)*p.Group], c.lse[int(q)*p.Group:])
		}
		if err := s.block(&c.blocks[it.block], false); err != nil {
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

// addRelevance adds the tile at work to acc, one entry a row.
func (s *scratch) addRelevance(acc *[tileRows]float64, power int) {
	for i, lo, hi := s.nextRun(0); lo < hi; i, lo, hi = s.nextRun(i) {
		for h := lo; h < hi; h++ {
			if s.lse[h] == float32(negInf) {
				s.heads.Masks[h] = 0 // the query saw nothing
			}
		}
		s.p.kern.Probs(acc, &s.heads, lo, hi, &s.terms, s.lse, power)
	}
}
