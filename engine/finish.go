// SPDX-License-Identifier: Apache-2.0

package engine

// finish ends the step: every row keeps its first n tokens. It also undoes a step that was not begun
// in full.
func (s *step) finish(n int) error {
	for i := range s.rows {
		r := &s.rows[i]
		if r.seq.step != s {
			continue
		}
		if err := s.finishRow(r, r.from+int64(min(n, r.n))); err != nil {
			return err
		}
		r.seq.step = nil
		r.seq, r.ids = nil, nil
	}
	s.retire()
	return nil
}

// retire ends the caller's Step and keeps its memory for later ones.
func (s *step) retire() {
	c := s.c
	s.gen++
	s.ctx = nil
	if s.closing != nil {
		c.closings = append(c.closings, s.closing)
		s.closing = nil
	}
	c.steps = append(c.steps, s)
}

// finishRow ends the step for one sequence, which then has end tokens.
func (s *step) finishRow(r *stepRow, end int64) error {
	c, q := s.c, r.seq
	keep, closes := q.leaving(end)
	if err := s.settleSegments(r, closes); err != nil {
		return err
	}
	if err := s.settlePages(r, keep); err != nil {
		return err
	}
	for l := range c.geo.Layers {
		for j := r.from / int64(c.stride); j < end/int64(c.stride); j++ {
			c.copyEntry(&q.kept, &r.kept, l, j)
		}
	}
	q.left = q.exactFrom() + int64(keep)*pageTokens
	q.extend(r.ids, int(end-r.from))
	q.n, q.high, q.used = end, max(q.high, end), c.stats.Steps
	q.enlist()
	return q.trim()
}

// settleSegments closes the first n of the segments that the step has closed, and opens the others again.
func (s *step) settleSegments(r *stepRow, n int) error {
	c, i := s.c, 0
	for _, seg := range r.seq.segs {
		if seg.closed || seg.sinks || i == r.closes {
			continue
		}
		spots := s.spotsOf(r, seg.lo)
		if i >= n {
			if err := s.closing.reopen(&s.c.memory, seg); err != nil {
				return err
			}
		}
		for j := range spots {
			if err := c.arena.release(&spots[j]); err != nil {
				return err
			}
		}
		i++
	}
	// spotsOf counts from the first open segment, so segments are marked last.
	for _, seg := range r.seq.segs {
		if n > 0 && !seg.closed && !seg.sinks {
			seg.closed = true
			r.seq.stale = max(r.seq.stale, 1)
			n--
		}
	}
	return nil
}

// settlePages frees the exact rows of the first n leaving pages, and the packed rows of the others.
func (s *step) settlePages(r *stepRow, n int) error {
	c, g := s.c, s.c.geo
	for k := range r.leaves {
		for l := range g.Layers {
			for h := range g.KVHeads {
				sp := s.spareOf(r, k, l, h)
				if k >= n && int(r.past[l]) > k {
					seg, page := r.seq.find(r.seq.exactFrom() + int64(k)*pageTokens)
					c.exchange(&seg.of(l, h, g.KVHeads)[page], sp)
				}
				for side := range sides {
					if err := c.arena.release(&sp.at[side]); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
