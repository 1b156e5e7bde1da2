// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"
)

// A window is exact because the next queries read it most. A conversation that waits has no next queries, and
// hundreds of them may wait: 96 exact tokens of each then take what all their other tokens need. So pressure
// closes what an idle sequence has open. Its rows are weighed, sorted and priced as those of any closed
// segment, and the cheapest go first, whatever part of the conversation they come from. Nothing is coded by
// that alone. When the conversation goes on, it fills a new window.

// isIdle reports whether nobody is taken to wait for a sequence: it was said to rest, or has been in none of the
// last Config.IdleSteps steps. Steps are counted and not the time, so that what fades does not depend on the
// speed of the machine.
func isIdle(q *Sequence) bool {
	if q.step != nil || q.held || q.pinned {
		return false
	}
	after := q.c.cfg.IdleSteps
	return q.resting || after > 0 && q.c.stats.Steps-q.used >= uint64(after)
}

// foldIdle closes the open segments of idle sequences. It reports whether there were any.
func foldIdle(p *pressure, units *int) (did bool, err error) {
	c := p.c
	for _, q := range c.seqs {
		if *units <= 0 {
			return did, nil
		}
		if folded(q) || p.only != nil && p.only != q || !isIdle(q) {
			continue
		}
		ok, err := fold(q, units)
		if err != nil {
			return did, err
		}
		did = did || ok
	}
	return did, nil
}

// folded reports whether a sequence has no open segment.
func folded(q *Sequence) bool {
	n := len(q.segs)
	return n == 0 || q.segs[n-1].sinks || q.segs[n-1].closed
}

// fold closes the open segments of a sequence. ok is false if there is no memory to do it in.
func fold(q *Sequence, units *int) (ok bool, err error) {
	c, n := q.c, make([]int, len(q.c.sizes.classes))
	for _, s := range q.segs {
		if !s.closed && !s.sinks {
			n[c.sizes.pos] += s.have * c.geo.Layers * c.geo.KVHeads
		}
	}
	if n[c.sizes.pos] == 0 || !c.arena.room(n, c.closingBytes()) {
		return false, nil
	}
	w, err := c.takeClosing()
	if err != nil {
		return false, nil
	}
	defer func() { c.closings = append(c.closings, w) }()
	if err := c.arena.prepare(n); err != nil {
		return false, err
	}
	for l := range c.geo.Layers {
		if err := c.pressure.remeasure(w, q, l); err != nil {
			return false, err
		}
	}
	for _, s := range q.segs {
		if s.closed || s.sinks {
			continue
		}
		*units -= sides * s.have * c.geo.Layers * c.geo.KVHeads
		if err := foldSegment(w, q, s); err != nil {
			return false, err
		}
	}
	// All that its queries had to tell is in the masses now.
	c.led.give(forQueries, c.keptBytes(q.kept.n))
	q.left, q.stale, q.kept = q.n, 0, kept{}
	c.stats.Folded++
	q.enlist()
	return true, unshow(q)
}

// foldSegment closes an open segment of a sequence where the sequence ends.
func foldSegment(w *closing, q *Sequence, s *segment) error {
	c, g := q.c, q.c.geo
	rows := int(min(s.hi(), q.n) - s.lo)
	for l := range g.Layers {
		n := c.keptBefore(w, l, q.n, &q.kept)
		if err := c.relevance(context.Background(), w, l, s, n); err != nil {
			return err
		}
		for h := range g.KVHeads {
			blocks := s.of(l, h, g.KVHeads)[:s.have]
			// Blocks behind the last one are not there, so those of a head follow each other closely.
			weight := w.weight[h*s.have*pageTokens:][:rows]
			w.level(weight, s.lo, n, g.KVHeads)
			if err := w.sortRows(&c.memory, blocks, weight); err != nil {
				return err
			}
			for i := range blocks {
				b := &blocks[i]
				if err := c.arena.alloc(c.sizes.pos, &b.pos); err != nil {
					return err
				}
				if err := c.putPositions(b, w.perm[i*pageTokens:][:b.rows], w.to); err != nil {
					return err
				}
				c.touch(b)
			}
		}
	}
	s.closed = true
	if end := s.lo + int64(rows); end < s.hi() {
		s.end = end
	}
	return nil
}

// level makes the weights of the last rows of a sequence those that they would have if all n kept queries had
// come after them. What no query came after is worth the mean of the others.
func (w *closing) level(weight []float32, lo int64, n, kvHeads int) {
	if n == 0 {
		return
	}
	var sum, seen float64
	last := len(weight)
	for t := range weight {
		after := 0
		for i := n - 1; i >= 0 && w.pos[i*kvHeads] >= lo+int64(t); i-- {
			after++
		}
		if after == 0 {
			last = t
			break
		}
		weight[t] *= float32(n) / float32(after)
		if x := float64(weight[t]); x > 0 && !math.IsInf(x, 0) {
			sum += x
		}
		seen++
	}
	for t := last; t < len(weight); t++ {
		weight[t] = float32(sum / max(seen, 1))
	}
}

// unshow takes the segments that only an idle sequence holds out of the tables, so that others use their rooms.
func unshow(q *Sequence) error {
	c := q.c
	for _, s := range q.segs {
		if s.room == 0 || s.refs-s.listed > 1 {
			continue
		}
		if err := c.tables.give(s.room-1, c.roomSize(s.pages)); err != nil {
			return err
		}
		s.room, s.shown = 0, 0
		for i := range s.blocks {
			c.touch(&s.blocks[i])
			if s.blocks[i].pos != 0 {
				s.blocks[i].pos |= fresh
			}
		}
		for i := range s.mean {
			if s.mean[i] != 0 {
				s.mean[i] |= fresh
			}
		}
	}
	return nil
}

// reopens returns the first of the segments that are open in a sequence of n tokens: those that closed behind token
// n open again, if that loses nothing. No closed one stays behind an open one, so what an idle sequence has closed
// keeps those before it closed.
func reopens(s *Sequence, n int64) int {
	first := len(s.segs)
	for i := len(s.segs) - 1; i >= 0; i-- {
		g := s.segs[i]
		if g.lo >= n {
			continue
		}
		if g.sinks || g.closed && (g.hi()+int64(s.c.cfg.Window) < n || !g.exact()) {
			break
		}
		first = i
	}
	return first
}
