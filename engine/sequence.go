// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"io"
	"time"
	"unsafe"

	"github.com/kvist-project/kvist/engine/store"
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
	// resting and used say how long nobody waits for the sequence; see isIdle.
	resting bool
	used    uint64 // steps of the cache at its last one
	held    bool   // a call goes through segs: making room must not remove any
	left    int64  // position of the first page that has not left the window
	stale   uint8  // segments closed since blocks were priced: 1 + the part that is measured next; see reprice
	busy    string // what goes on without the cache's lock: "parked", "saved", "restored"
	tenant  *Tenant
	most    int64  // bytes of rows that it may hold, 0 for no limit
	opaque  []byte // state of the server's own; see SetState
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
	if s.busy != "" {
		return fail(call, s.id, "it is being %s: %w", s.busy, quant.ErrShape)
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
	s.opaque = dropped(&c.led, forState, s.opaque)
	return nil
}

// undo releases a sequence that could not be made of sequence id, and returns why.
func (s *Sequence) undo(call string, id uint64, err error) error {
	if e := s.c.broken(s.release()); e != nil {
		err = fmt.Errorf("%w (and then: %w)", err, e)
	}
	s.c.refuse(call, id, err)
	return wrap(call, id, err)
}

// ready reports why a sequence cannot be used by a call that needs it idle, or its cache by any.
func (s *Sequence) ready(call string) error {
	if err := s.c.usable(call); err != nil {
		return err
	}
	switch {
	case s.closed:
		return closed(call, s.id, "sequence")
	case s.step != nil:
		return fail(call, s.id, "a step is under way: %w", quant.ErrShape)
	case s.busy != "":
		return fail(call, s.id, "it is being %s: %w", s.busy, quant.ErrShape)
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
				if blocks[i].at[sideK] != 0 {
					s.name = store.Key{}
				}
				if err := c.free(&blocks[i]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// occupy keeps a sequence and its segments as they are until free.
func (s *Sequence) occupy(what string) (free func()) {
	pinned := s.pinned
	s.busy, s.held = what, true
	s.pin(true)
	return func() {
		s.busy, s.held = "", false
		s.pin(pinned)
	}
}

// shorten frees the segments of a sequence from number n on.
func (s *Sequence) shorten(n int) error {
	for len(s.segs) > n {
		last := len(s.segs) - 1
		g := s.segs[last]
		s.segs[last], s.segs = nil, s.segs[:last]
		if s.pinned {
			g.pinned--
		}
		if err := s.c.broken(s.c.unref(g)); err != nil {
			return err
		}
	}
	return nil
}

// settle makes a sequence of whole segments up to position got one of n tokens.
func (s *Sequence) settle(got, n int64) error {
	s.n, s.left, s.high, s.stale = got, got, got, 1
	keys := int(got / prefixTokens)
	if s.chain.keys = s.chain.keys[:min(len(s.chain.keys), keys)]; len(s.chain.keys) == keys {
		s.enlist() // so that others need not ask the store
	}
	if n < got {
		if err := s.truncate(n); err != nil {
			return err
		}
	}
	s.high = s.n
	return nil
}

// SetState keeps bytes of the server's own with the sequence: the state of recurrent layers, or a sampler's.
// They count against the budget, forks copy them, and they are parked and saved. Truncate forgets them,
// because they are those of the last token. Empty bytes take them away.
//
// Errors: quant.ErrShape while a step is under way; quant.ErrFull; quant.ErrClosed.
func (s *Sequence) SetState(p []byte) error {
	const call = "set state"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return err
	}
	return wrap(call, s.id, s.setState(p))
}

func (s *Sequence) setState(p []byte) error {
	c := s.c
	if len(p) == 0 {
		s.opaque = dropped(&c.led, forState, s.opaque)
		return nil
	}
	if err := c.pressure.makeRoom(context.Background(), nil, int64(slack(len(p)))); err != nil {
		return err
	}
	x, ok := grown(&c.led, forState, s.opaque[:0], len(p))
	if !ok {
		return errNoRoom
	}
	s.opaque = append(x, p...)
	return nil
}

// State returns a copy of what SetState was given, nil if that is nothing.
func (s *Sequence) State() []byte {
	s.c.mu.RLock()
	defer s.c.mu.RUnlock()
	return append([]byte(nil), s.opaque...)
}

// Park moves the sequence to the store, exactly as it is, and closes it. What it returns resumes it, in this
// process or another one with a cache of the same settings. What expires is gone after that time; the zero
// time is never. Segments that other sequences share, or may share later, are put once. With a
// Config.Archiver exact rows are put in archive form; a call to Demote before makes what is parked smaller too.
// bench/results/parking.md says at what cost.
//
// The salt is that of those who may resume it: MatchPrefix's, where the sequence has one. It does not
// encrypt: who reads the store reads the rows.
//
// If Park fails, the sequence is what it was.
//
// Errors: quant.ErrUnsupported without a Config.Store; quant.ErrShape while a step is under way, or if the
// salt is not that of the sequence; quant.ErrFull if the budget does not hold a copy of one segment;
// quant.ErrClosed; those of the store and the backend.
func (s *Sequence) Park(ctx context.Context, salt []byte, expires time.Time) (store.Key, error) {
	m, err := newMover(ctx, s.c, "park", s.id, salt)
	if err != nil {
		return store.Key{}, err
	}
	id, err := m.park(s, expires)
	if err != nil {
		return store.Key{}, wrap("park", s.id, err)
	}
	return id, nil
}

// Publish puts the first tokens of the sequence into the store, as they are, where RecallPrefix finds them in any cache
// of the same settings. The sequence stays. What it has published, and what it recalled, is not put again. Tokens that
// are not in a segment that is closed and whole yet are left out, and all of a sequence that MatchPrefix and
// RecallPrefix did not begin.
//
// Errors: as Park.
func (s *Sequence) Publish(ctx context.Context, salt []byte, expires time.Time) error {
	m, err := newSharer(ctx, s.c, "publish", s.id, salt)
	if err != nil {
		return err
	}
	return wrap("publish", s.id, m.publish(s, expires))
}

// Save writes the sequence to w as a .kvist file, exactly as it is; it stays in the cache. The keys of its
// tokens are not written: once loaded, it is not found by MatchPrefix. Whoever needs a file that appears
// whole or not at all writes to an atomicfile.File.
//
// Errors: quant.ErrShape while a step is under way; quant.ErrFull if the budget does not hold copies of one
// segment; quant.ErrClosed; those of w and the backend.
func (s *Sequence) Save(ctx context.Context, w io.Writer) error {
	return wrap("save", s.id, newLoader(ctx, s.c, "save", s.id).save(s, w))
}

// Limit says whose the sequence is, nil for nobody's, and how many bytes of rows it may hold, 0 for no limit.
// At the limit its own detail fades, whatever else is free; a step that does not fit then fails with
// quant.ErrFull. A fork has the same limits. They are not parked or saved.
//
// Errors: quant.ErrShape for a tenant of another cache, a limit below 0, or while a step is under way;
// quant.ErrClosed.
func (s *Sequence) Limit(t *Tenant, most int64) error {
	const call = "limit"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return err
	}
	return wrap(call, s.id, setLimits(s, t, most))
}
