// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"unsafe"

	"github.com/kvist-project/kvist/quant"
)

// demand is what a step needs: slots by class, and lengths of its lists.
type demand struct {
	slots    []int
	tables   int64 // descriptors of new segments and their lists
	run      int   // blocks that are set in a table together
	queries  int   // of the largest round
	index    int   // entries of its lists of blocks
	jobs     int
	spares   int
	spots    int
	closes   bool
	permuted bool // queries are brought into the order of heads
}

// plan computes what the rows of a step need. It changes nothing but the step.
func (s *step) plan(rows []Row) error {
	c, g := s.c, s.c.geo
	d := &s.need
	*d = demand{slots: d.slots, run: c.roomSize(c.segPages())}
	if d.slots == nil {
		d.slots = make([]int, len(c.sizes.classes))
	}
	clear(d.slots)
	var ok bool
	if s.rows, ok = grown(&c.led, forScratch, s.rows[:cap(s.rows)], len(rows)); !ok {
		return errNoRoom
	}
	s.rows = s.rows[:len(rows)]
	at, heads := 0, g.Layers*g.KVHeads
	for i := range rows {
		r := &s.rows[i]
		*r = stepRow{seq: rows[i].Seq, n: rows[i].Tokens, at: at, from: rows[i].Seq.n, ids: rows[i].IDs, past: r.past, kept: r.kept}
		at += r.n
		r.leaves, r.closes = r.seq.leaving(r.from + int64(r.n))
		r.spare, r.spot = d.spares, d.spots
		had := s.slotBytes()
		s.planPages(r)
		r.grows = s.slotBytes() - had + int64(r.closes*heads*c.segPages())*c.sizes.classes[c.sizes.pos]
		d.spares += r.leaves * heads
		d.spots += r.closes * heads * c.segPages()
		d.closes = d.closes || r.closes > 0
		d.permuted = d.permuted || r.n > 1
	}
	for side, cl := range c.sizes.class {
		if s.start[side] < f16 {
			d.slots[cl[s.start[side]]] += d.spares
		}
	}
	d.slots[c.sizes.pos] += d.spots
	return nil
}

// slotBytes returns the bytes of the slots that the step needs.
func (s *step) slotBytes() (n int64) {
	for cl, k := range s.need.slots {
		n += int64(k) * s.c.sizes.classes[cl]
	}
	return n
}

// planPages adds the pages that a row fills to what its step needs.
func (s *step) planPages(r *stepRow) {
	c, g, d := s.c, s.c.geo, &s.need
	q, heads, segs := r.seq, g.Layers*g.KVHeads, 0
	pages, end := 0, int64(0)
	for _, seg := range q.segs {
		pages += seg.pages
		if seg.room == 0 {
			d.tables += c.tables.bytes(c.roomSize(seg.pages))
		}
		end = seg.lo + int64(seg.have*seg.per)
		if seg.closed {
			end = seg.hi()
		}
	}
	if n := c.cfg.Sinks; len(q.segs) == 0 && n > 0 {
		for _, cl := range c.sizes.sinks {
			d.slots[cl] += heads
		}
		d.tables += c.segmentSize(1) + c.tables.bytes(c.roomSize(1))
		end, segs, pages = int64(n), 1, 1
	}
	last := int64(0) // where the last segment ends
	if len(q.segs) > 0 {
		last = q.segs[len(q.segs)-1].hi()
	}
	last, end = max(last, end, r.from), max(end, r.from) // whole segments before may be gone
	for to := r.from + int64(r.n); end < to; end += pageTokens {
		if end == last {
			d.tables += c.segmentSize(c.segPages()) + c.tables.bytes(c.roomSize(c.segPages()))
			last += int64(c.cfg.Segment)
			pages += c.segPages()
			segs++
			d.slots[c.sizes.mean] += heads
		}
		for _, cl := range c.sizes.class {
			d.slots[cl[f16]] += heads
		}
	}
	d.tables += 2 * int64(len(q.segs)+segs) * int64(unsafe.Sizeof((*segment)(nil)))
	tokens := min(r.n, pageTokens)
	d.queries += tokens * g.KVHeads
	d.index += tokens * g.KVHeads * pages
	d.jobs += 2 * g.KVHeads * (r.n/pageTokens + 3)
}

// reserve makes room for what the step needs, and grows its lists. It takes no slots.
func (s *step) reserve() error {
	c, d := s.c, &s.need
	other := d.tables + s.growth()
	need := other + fixedBytes + s.slotBytes()
	if need > c.cfg.Budget {
		return fmt.Errorf("a step of %d tokens takes %d bytes, the budget is %d (add fewer at a time): %w",
			s.tokens, need, c.cfg.Budget, quant.ErrBudget)
	}
	if err := c.pressure.makeRoom(s.ctx, d.slots, other); err != nil {
		return err
	}
	if err := s.grow(); err != nil {
		return err
	}
	return nil
}

// take takes the slots of the step. Every sequence of it is busy from now on.
func (s *step) take() error {
	c, g := s.c, s.c.geo
	for i := range s.rows {
		s.rows[i].seq.step = s
	}
	for i := range s.rows {
		if err := s.addSegments(&s.rows[i]); err != nil {
			return err
		}
	}
	if err := s.admitRows(); err != nil { // before slabs take what is left of the budget
		return err
	}
	if err := c.arena.prepare(s.need.slots); err != nil {
		return err
	}
	for i := range s.rows {
		if err := s.addPages(&s.rows[i]); err != nil {
			return err
		}
	}
	for i := range s.spares {
		s.spares[i] = spare{rung: s.start}
	}
	clear(s.spots)
	for i := range s.spares {
		for side := range sides {
			if s.start[side] == f16 {
				continue
			}
			if err := c.arena.alloc(c.sizes.class[side][s.start[side]], &s.spares[i].at[side]); err != nil {
				return err
			}
		}
	}
	for i := range s.spots {
		if err := c.arena.alloc(c.sizes.pos, &s.spots[i]); err != nil {
			return err
		}
	}
	clear(s.done[:g.Layers])
	return s.showRows()
}

// admitRows gives every segment of the step's sequences a room in the tables.
func (s *step) admitRows() error {
	for i := range s.rows {
		for _, seg := range s.rows[i].seq.segs {
			if err := s.c.tables.admit(&s.c.memory, seg); err != nil {
				return err
			}
		}
	}
	return nil
}

// showRows shows the segments of the step's sequences.
func (s *step) showRows() error {
	for i := range s.rows {
		for _, seg := range s.rows[i].seq.segs {
			if err := s.c.tables.show(&s.c.memory, seg); err != nil {
				return err
			}
		}
	}
	return nil
}

// addSegments adds segments until a row's tokens have room.
func (s *step) addSegments(r *stepRow) (err error) {
	c, q := s.c, r.seq
	if len(q.segs) == 0 && c.cfg.Sinks > 0 {
		err = q.addSegment(0, 1, c.cfg.Sinks, true)
	}
	for err == nil {
		end := int64(0)
		if n := len(q.segs); n > 0 {
			end = q.segs[n-1].hi()
		}
		if end = max(end, r.from); end >= r.from+int64(r.n) { // whole segments before may be gone
			break
		}
		err = q.addSegment(end, c.segPages(), pageTokens, false)
	}
	return err
}

// addPages takes memory for the pages of a row's tokens.
func (s *step) addPages(r *stepRow) error {
	to := r.from + int64(r.n)
	for _, seg := range r.seq.segs {
		for i := range seg.mean {
			if seg.mean[i] == 0 && !seg.sinks && !seg.closed {
				if err := s.c.arena.alloc(s.c.sizes.mean, &seg.mean[i]); err != nil {
					return err
				}
			}
		}
		for !seg.closed && seg.have < seg.pages && seg.lo+int64(seg.have*seg.per) < to {
			if err := s.c.addPage(seg); err != nil {
				return err
			}
		}
	}
	return nil
}

// fit is a list of a step that must hold n elements; its old elements are of no use.
func fit[T any](led *ledger, s []T, n int) ([]T, error) {
	if n <= cap(s) {
		return s[:n], nil
	}
	s = dropped(led, forScratch, s)
	t, ok := grown(led, forScratch, s, n)
	if !ok {
		return nil, errNoRoom
	}
	return t[:n], nil
}

// more returns the bytes by which fit grows a list.
func more[T any](s []T, n int) int64 {
	if n <= cap(s) {
		return 0
	}
	return int64(slack(n)-cap(s)) * int64(unsafe.Sizeof(*new(T)))
}

// stageSize returns the bytes of K and V of one layer in the widest element type, or of K of a page that is
// packed.
func (s *step) stageSize() int64 {
	g := s.c.geo
	return 4 * int64(g.KVHeads) * int64(max(s.tokens*(g.HeadDim+g.HeadDimV), pageTokens*g.HeadDim))
}

// keptNeed returns how many queries of a row the step keeps.
func (s *step) keptNeed(r *stepRow) int {
	st := int64(s.c.stride)
	return int(min(int64(s.c.cfg.KeptQueries), (r.from+int64(r.n))/st-r.from/st))
}

// growth returns the bytes by which grow makes the step larger.
func (s *step) growth() int64 {
	d, g := &s.need, s.c.geo
	n := more(s.done, g.Layers) + more(s.enc, d.jobs) + more(s.spares, d.spares) + more(s.spots, d.spots) +
		2*max(0, s.stageSize()-s.stageBytes) + s.lists.growth(d, g) + s.closingGrowth()
	if d.spares > 0 && s.center.rows == nil {
		n += s.c.centeringBytes()
	}
	for i := range s.rows {
		r := &s.rows[i]
		n += more(r.past, g.Layers)
		if r.seq.kept.n == 0 {
			n += s.c.keptBytes(s.c.cfg.KeptQueries)
		}
		if k := s.keptNeed(r); k > r.kept.n {
			n += s.c.keptBytes(k)
		}
	}
	return n
}

// grow makes the lists of the step large enough.
func (s *step) grow() (err error) {
	c, d, led := s.c, &s.need, &s.c.led
	set := func(e error) {
		if err == nil {
			err = e
		}
	}
	var e error
	s.done, e = fit(led, s.done, c.geo.Layers)
	set(e)
	s.enc, e = fit(led, s.enc, d.jobs)
	set(e)
	s.spares, e = fit(led, s.spares, d.spares)
	set(e)
	s.spots, e = fit(led, s.spots, d.spots)
	set(e)
	set(s.lists.grow(led, d, c.geo))
	set(s.takeClosing())
	if d.spares > 0 && s.center.rows == nil {
		if !led.take(forScratch, c.centeringBytes()) {
			return errNoRoom
		}
		s.center = c.newCentering()
	}
	set(s.growStage())
	for i := range s.rows {
		r := &s.rows[i]
		r.past, e = fit(led, r.past, c.geo.Layers)
		set(e)
		if err != nil {
			return err
		}
		clear(r.past)
		if n := c.cfg.KeptQueries; r.seq.kept.n == 0 { // it was idle
			if !led.take(forQueries, c.keptBytes(n)) {
				return errNoRoom
			}
			r.seq.kept = c.newKept(n)
		}
		if k := s.keptNeed(r); k > r.kept.n {
			led.give(forQueries, c.keptBytes(r.kept.n))
			r.kept = kept{}
			if !led.take(forQueries, c.keptBytes(k)) {
				return errNoRoom
			}
			r.kept = c.newKept(k)
		}
		r.kept.forget(0)
	}
	return err
}

// growStage makes the staging buffers large enough.
func (s *step) growStage() error {
	n := s.stageSize()
	if n <= s.stageBytes {
		return nil
	}
	if err := s.freeStage(); err != nil {
		return err
	}
	if !s.c.led.take(forScratch, 2*n) {
		return errNoRoom
	}
	s.stageBytes = n
	s.host = make([]byte, n)
	var err error
	s.stage, err = s.c.be.Alloc(n)
	return err
}

func (s *step) freeStage() (err error) {
	if s.stage != nil {
		err = s.stage.Free()
	}
	s.c.led.give(forScratch, 2*s.stageBytes)
	s.stage, s.stageBytes, s.host = nil, 0, nil
	return err
}

// shed frees the memory of an unused step.
func (s *step) shed() error {
	led := &s.c.led
	s.done, s.enc = dropped(led, forScratch, s.done), dropped(led, forScratch, s.enc)
	s.spares, s.spots = dropped(led, forScratch, s.spares), dropped(led, forScratch, s.spots)
	if s.center.rows != nil {
		led.give(forScratch, s.c.centeringBytes())
		s.center = centering{}
	}
	s.lists.drop(led)
	s.rows = s.rows[:cap(s.rows)]
	for i := range s.rows {
		s.rows[i].past = dropped(led, forScratch, s.rows[i].past)
		led.give(forQueries, s.c.keptBytes(s.rows[i].kept.n))
	}
	s.rows = dropped(led, forScratch, s.rows)
	return s.freeStage()
}
