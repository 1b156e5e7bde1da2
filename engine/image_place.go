// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// classes adds the slots that an image needs to n[class].
func (s *image) classes(c *memory, n []int) {
	for i := range s.blocks {
		b := &s.blocks[i]
		if b.rows == 0 {
			continue
		}
		for side := range sides {
			n[s.classOf(c, side, b)]++
		}
		if b.pos != nil {
			n[c.sizes.pos]++
		}
	}
	for _, m := range s.mean {
		if m != nil {
			n[c.sizes.mean]++
		}
	}
}

func (s *image) classOf(c *memory, side int, b *imageBlock) int {
	if s.sinks {
		return c.sizes.sinks[side]
	}
	return c.sizes.class[side][b.rung[side]]
}

// slice returns the part of an image from head h.from on.
func (s *image) slice(h part) *image {
	x := *s
	x.from, x.to = h.from, h.to
	x.blocks = s.blocks[(h.from-s.from)*s.pages : (h.to-s.from)*s.pages]
	x.mean = s.mean[h.from-s.from : h.to-s.from]
	return &x
}

// place gives a sequence the rows of an image: the first part of a segment begins it, the others add to it.
func (s *image) place(ctx context.Context, q *Sequence) error {
	c, tables := q.c, int64(0)
	n := make([]int, len(c.sizes.classes))
	s.classes(&c.memory, n)
	if s.from == 0 {
		tables = c.segmentSize(s.pages)
	}
	if err := c.pressure.makeRoom(ctx, n, tables+int64(2*len(q.segs)+8)*8); err != nil {
		return err
	}
	if s.from == 0 {
		if err := q.addSegment(s.lo, s.pages, s.per, s.sinks); err != nil {
			return err
		}
		g := q.segs[len(q.segs)-1]
		g.have, g.closed, g.end, g.lost = s.have, s.closed, s.end, s.lost
	}
	g := q.segs[len(q.segs)-1]
	if g.lo != s.lo || g.end != s.end || g.closed != s.closed || g.sinks != s.sinks || g.have != s.have {
		return fmt.Errorf("parts of different segments: %w", quant.ErrCorrupt)
	}
	if err := c.arena.prepare(n); err != nil {
		return err
	}
	return s.fill(&c.memory, g)
}

// fill uploads the rows of an image to a segment that has none.
func (s *image) fill(c *memory, g *segment) error {
	put := func(owner *slot, class int, data []byte) error {
		if err := c.arena.alloc(class, owner); err != nil {
			return err
		}
		if len(data) == 0 {
			return nil
		}
		at := c.arena.at(*owner, int64(len(data)))
		return at.Buf.Upload(at.Off, data)
	}
	for i, m := range s.mean {
		if m == nil {
			continue
		}
		if err := put(&g.mean[s.from+i], c.sizes.mean, m); err != nil {
			return err
		}
	}
	for i := range s.blocks {
		from, b := &s.blocks[i], &g.blocks[s.from*s.pages+i]
		if from.rows == 0 {
			continue
		}
		b.rung, b.energy = from.rung, from.energy
		for side := range sides {
			if err := put(&b.at[side], s.classOf(c, side, from), from.data[side]); err != nil {
				return err
			}
		}
		if from.pos == nil && from.rows < s.per { // the rest of the last page
			if err := c.clear(b.at[sideV], s.per, from.rows); err != nil {
				return err
			}
		}
		if from.pos != nil {
			b.rows = uint8(from.rows)
			if err := put(&b.pos, c.sizes.pos, from.pos); err != nil {
				return err
			}
		}
	}
	return nil
}
