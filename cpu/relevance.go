// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
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
	sd, err := b.check().Relevance(q, lse, blocks, rel, nil)
	if err != nil {
		return fmt.Errorf("kvist/cpu: relevance: %w", err)
	}
	p, err := b.prepare(ctx, backend.OpRelevance, q, sd)
	if err != nil {
		return err
	}
	ptr, users := args.Users(q, len(blocks))
	var items []relevanceItem
	for i := range blocks {
		if ptr[i] == ptr[i+1] {
			continue
		}
		rows := blocks[i].Rows
		for r := int32(0); r < rows; r += itemTiles * tileRows {
			items = append(items, relevanceItem{int32(i), r, min(rows, r+itemTiles*tileRows)})
		}
	}
	return b.workers.run(ctx, backend.OpRelevance, len(items), func(i int) error {
		it := items[i]
		blk, err := b.view(&blocks[it.block], backend.OpRelevance, q)
		if err != nil {
			return fmt.Errorf("kvist/cpu: relevance: block %d: %w", it.block, err)
		}
		s := b.scratch.Get().(*scratch)
		defer b.release(s)
		return s.relevance(ctx, p, blk, it, users[ptr[it.block]:ptr[it.block+1]], lse, rel)
	})
}

// relevance works on one range of rows. Sums over the queries are float64.
func (s *scratch) relevance(ctx context.Context, p *prepared, blk blockView, it relevanceItem,
	users []int32, lse []float32, rel *backend.RelevanceOut) error {
	s.acc = grow(s.acc, int(it.to-it.from))
	clear(s.acc)
	batch := max(1, unitHeads/p.Group)
	for len(users) > 0 {
		if err := cancelled(ctx, backend.OpRelevance); err != nil {
			return err
		}
		n := min(batch, len(users))
		s.reset(p, users[:n])
		s.block(blk)
		for r := it.from; r < it.to; r += tileRows {
			rows := int(min(tileRows, it.to-r))
			if s.scorer.tile(int(r), rows) {
				s.addRelevance(s.acc[r-it.from:][:rows], lse, rel.Power)
			}
		}
		users = users[n:]
	}
	sum := rel.Sum[int(rel.RowPtr[it.block])+int(it.from):]
	for r, x := range s.acc {
		sum[r] = float32(float64(sum[r]) + x)
	}
	return nil
}

// addRelevance adds the tile at work to acc, one entry a row.
func (s *scratch) addRelevance(acc []float64, lse []float32, power int) {
	for i, q := range s.qs {
		for h := range s.p.Group {
			l := float64(lse[int(q)*s.p.Group+h])
			if l == negInf {
				continue // the query saw nothing
			}
			if _, ok := s.scores(&s.scored, i, h); !ok {
				continue
			}
			for r, x := range s.scored[:len(acc)] {
				if x == negInf {
					continue
				}
				p := math.Exp(x - l)
				if power == 2 {
					p *= p
				}
				acc[r] += p
			}
		}
	}
}
