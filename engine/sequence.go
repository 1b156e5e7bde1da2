// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"unsafe"

	"github.com/kvist-project/kvist/quant"
)

// Sequence is the cache of one conversation.
type Sequence struct {
	c      *Cache
	id     uint64
	segs   []*segment
	n      int64 // committed tokens
	high   int64 // the most tokens it has had
	kept   kept
	chain  chain
	step   *step // the step that is under way
	closed bool
	pinned bool
	held   bool  // a call goes through segs: making room must not remove any
	left   int64 // position of the first page that has not left the window
	stale  bool  // segments closed since blocks were priced
}

const sequenceBytes = int64(unsafe.Sizeof(Sequence{})) + 64

// ID returns the number of the sequence, which errors name.
func (s *Sequence) ID() uint64 { return s.id }

// Len returns the number of committed tokens.
func (s *Sequence) Len() int64 {
	s.c.mu.RLock()
	defer s.c.mu.RUnlock()
	return s.n
}

// Close frees what only this sequence holds. Closing again does nothing.
//
// Errors: quant.ErrShape while a step is under way; those of the backend.
func (s *Sequence) Close() error {
	const call = "close sequence"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closed || c.closed {
		return nil
	}
	if s.step != nil {
		return fail(call, s.id, "a step is under way: %w", quant.ErrShape)
	}
	return wrap(call, s.id, c.broken(s.release()))
}

// release frees what only the sequence holds.
func (s *Sequence) release() error {
	c := s.c
	s.closed = true
	for i := range c.seqs {
		if c.seqs[i] == s {
			last := len(c.seqs) - 1
			c.seqs[i], c.seqs[last] = c.seqs[last], nil
			c.seqs = c.seqs[:last]
			break
		}
	}
	for _, g := range s.segs {
		if s.pinned {
			g.pinned--
		}
		if err := c.unref(g); err != nil {
			return err
		}
	}
	s.segs = dropped(&c.led, forTables, s.segs)
	s.unfollow()
	c.led.give(forQueries, sequenceBytes+c.keptBytes(s.kept.n))
	s.kept = kept{}
	return nil
}

// ready reports why a sequence cannot be used by a call that needs it idle.
func (s *Sequence) ready(call string) error {
	switch {
	case s.closed:
		return closed(call, s.id, "sequence")
	case s.step != nil:
		return fail(call, s.id, "a step is under way: %w", quant.ErrShape)
	}
	return nil
}

// leaving returns how many pages leave the window, and how many segments close, until the sequence has
// end tokens.
func (q *Sequence) leaving(end int64) (pages, closes int) {
	p0 := q.exactFrom()
	n := (end - 1 - int64(q.c.cfg.Window) - p0) / pageTokens
	if n <= 0 {
		return 0, 0
	}
	open := p0
	for _, s := range q.segs {
		if !s.closed && !s.sinks {
			open = s.lo
			break
		}
	}
	return int(n), int((p0 + n*pageTokens - open) / int64(q.c.cfg.Segment))
}

// exactFrom returns the position of the first page that has not left the window.
func (q *Sequence) exactFrom() int64 { return max(q.left, int64(q.c.cfg.Sinks)) }

// find returns the segment and the page of a position that is not in a closed segment.
func (q *Sequence) find(p int64) (*segment, int) {
	for i := len(q.segs) - 1; ; i-- {
		if s := q.segs[i]; s.lo <= p {
			return s, int(p-s.lo) / s.per
		}
	}
}

// horizon returns a position before which a query at position p sees nothing in a layer. It is the same for
// queries between which no page leaves the window, so that their lists of blocks are.
func (q *Sequence) horizon(layer int, p int64) int64 {
	w := q.c.cfg.layerWindow(layer)
	if w == 0 {
		return 0
	}
	since := (p - q.exactFrom()) % pageTokens
	if since < 0 {
		since += pageTokens
	}
	return max(0, p-since-w+1)
}

// addSegment adds an open segment.
func (q *Sequence) addSegment(lo int64, pages, per int, sinks bool) error {
	c, ok := q.c, false
	if q.segs, ok = grown(&c.led, forTables, q.segs, len(q.segs)+1); !ok {
		return errNoRoom
	}
	if !c.led.take(forTables, c.segmentSize(pages)) {
		return errNoRoom
	}
	s := c.newSegment(lo, pages, per, sinks)
	if q.pinned {
		s.pinned++
	}
	q.segs = append(q.segs, s)
	return nil
}

// trim frees the pages and segments of a sequence that lie behind its end, and in sliding-window layers
// the segments before every window.
func (q *Sequence) trim() error {
	c := q.c
	for i := len(q.segs) - 1; i >= 0; i-- {
		s := q.segs[i]
		if s.lo < q.n {
			if !s.closed {
				if err := c.dropPages(s, int(q.n-s.lo+int64(s.per)-1)/s.per); err != nil {
					return err
				}
			}
			break
		}
		if q.pinned {
			s.pinned--
		}
		if err := c.unref(s); err != nil {
			return err
		}
		q.segs[i] = nil
		q.segs = q.segs[:i]
	}
	return q.trimWindows()
}

// trimWindows frees closed segments in the layers whose windows have passed them. A segment that others
// share stays: they may be at other positions.
func (q *Sequence) trimWindows() error {
	c := q.c
	if c.cfg.LayerWindow == nil {
		return nil
	}
	per := c.geo.KVHeads
	for l := range c.geo.Layers {
		past := q.horizon(l, q.n)
		if past == 0 {
			continue
		}
		for _, s := range q.segs {
			if s.hi() > past {
				break
			}
			if s.refs > 1 || !s.closed && !s.sinks {
				continue
			}
			blocks := s.blocks[l*per*s.pages : (l+1)*per*s.pages]
			for i := range blocks {
				if err := c.free(&blocks[i]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
