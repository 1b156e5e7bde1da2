// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Fork returns a sequence with the same tokens. Segments that are closed are shared, and their bytes are
// charged once; the open ones, at most Segment + Window + 32 tokens, are copied. From then on the two
// sequences go their own ways.
//
// Errors: quant.ErrShape while a step is under way; quant.ErrFull if the budget does not hold the copy;
// quant.ErrClosed; those of the backend.
func (s *Sequence) Fork() (*Sequence, error) {
	const call = "fork"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return nil, err
	}
	s.held = true
	defer func() { s.held = false }()
	f, err := c.newSequence()
	if err != nil {
		return nil, wrap(call, s.id, err)
	}
	for i := range s.kept.entry {
		if j := s.kept.entry[i]; j >= 0 {
			c.copyEntry(&f.kept, &s.kept, i/f.kept.n, j)
		}
	}
	f.n, f.left, f.high, f.stale, f.tenant, f.most = s.n, s.left, s.high, s.stale, s.tenant, s.most
	if err := f.setState(s.opaque); err != nil {
		return nil, f.undo(call, s.id, err)
	}
	if s.chain.follows {
		if err := f.follow(s.chain); err != nil {
			f.unfollow() // it shares what it has, and nothing later
		}
	}
	for _, g := range s.segs {
		if err := f.adopt(g, !g.whole(s.n)); err != nil {
			return nil, f.undo(call, s.id, err)
		}
	}
	return f, nil
}

// whole reports whether nothing will be written to a segment any more, in a sequence of n tokens.
func (g *segment) whole(n int64) bool { return g.closed || g.sinks && n >= g.hi() }

// adopt appends a segment to the sequence: itself, or a copy.
func (s *Sequence) adopt(g *segment, private bool) error {
	c := s.c
	if private {
		var err error
		if g, err = s.copyOf(g); err != nil {
			return err
		}
	} else {
		g.refs++
	}
	tables := int64(2*len(s.segs)+8) * 8
	err := c.pressure.makeRoom(context.Background(), nil, tables)
	var ok bool
	if err == nil {
		if s.segs, ok = grown(&c.led, forTables, s.segs, len(s.segs)+1); !ok {
			err = errNoRoom
		}
	}
	if err != nil {
		if e := c.broken(c.unref(g)); e != nil {
			return e
		}
		return err
	}
	s.segs = append(s.segs, g)
	if s.pinned {
		g.pinned++
	}
	return nil
}

// copyOf returns a segment of its own with the same rows.
func (s *Sequence) copyOf(g *segment) (*segment, error) {
	c := s.c
	n := make([]int, len(c.sizes.classes))
	g.pinned++ // making room must not change what is copied
	defer func() { g.pinned-- }()
	for i := range g.blocks {
		for _, p := range g.blocks[i].slots() {
			if *p != 0 {
				n[p.class()]++
			}
		}
	}
	for i := range g.mean {
		if g.mean[i] != 0 {
			n[c.sizes.mean]++
		}
	}
	if err := c.pressure.makeRoom(context.Background(), n, c.segmentSize(g.pages)); err != nil {
		return nil, err
	}
	if !c.led.take(forTables, c.segmentSize(g.pages)) {
		return nil, errNoRoom
	}
	d := c.newSegment(g.lo, g.pages, g.per, g.sinks)
	d.have, d.closed, d.end, d.lost = g.have, g.closed, g.end, g.lost
	err := c.arena.prepare(n)
	for i := 0; i < len(g.mean) && err == nil; i++ {
		err = c.copySlot(&d.mean[i], g.mean[i])
	}
	for i := 0; i < len(g.blocks) && err == nil; i++ {
		from, to := &g.blocks[i], &d.blocks[i]
		*to = *from
		to.at, to.pos = [sides]slot{}, 0
		for j, p := range from.slots() {
			if err == nil {
				err = c.copySlot(to.slots()[j], *p)
			}
		}
	}
	if err != nil {
		if e := c.broken(c.unref(d)); e != nil {
			return nil, e
		}
		return nil, err
	}
	return d, nil
}

// slots returns where a block holds its slots.
func (b *block) slots() [3]*slot { return [3]*slot{&b.at[sideK], &b.at[sideV], &b.pos} }

// Truncate keeps the first n tokens. Tokens that come after replace the others.
//
// As long as rows are exact, the sequence is then what it was when it had n tokens. Rows that were coded
// stay coded, also those that the window would hold. A segment that other sequences share is copied if
// the cut is inside it.
//
// Errors: quant.ErrShape for n below 0 or above Len, or while a step is under way; quant.ErrUnsupported
// if sliding-window layers have freed what they would need again; quant.ErrFull if the budget does not hold
// the copy of a segment; quant.ErrClosed; those of the backend.
func (s *Sequence) Truncate(n int64) error {
	const call = "truncate"
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.ready(call); err != nil {
		return err
	}
	if n < 0 || n > s.n {
		return fail(call, s.id, "to %d tokens of %d: %w", n, s.n, quant.ErrShape)
	}
	if n == s.n {
		return nil
	}
	if l, ok := s.windowsHold(n); !ok {
		return fail(call, s.id, "to %d tokens: layer %d has freed rows that its window of %d holds there: %w", n, l,
			c.cfg.LayerWindow[l], quant.ErrUnsupported)
	}
	return wrap(call, s.id, s.truncate(n))
}

// windowsHold reports whether sliding-window layers still have what a query at position n sees, or the
// first layer that does not.
func (s *Sequence) windowsHold(n int64) (layer int, ok bool) {
	for l := range s.c.cfg.LayerWindow {
		w := s.c.cfg.layerWindow(l)
		for _, g := range s.segs {
			if w > 0 && g.lo < n && g.hi() <= s.high-w+1 && g.hi() > n-w+1 {
				return l, false
			}
		}
	}
	return 0, true
}

func (s *Sequence) truncate(n int64) error {
	c, open, begun, first := s.c, int64(0), false, reopens(s, n)
	s.held = true
	defer func() { s.held = false }()
	for i, g := range s.segs {
		if g.lo >= n {
			break
		}
		late := i >= first && g.closed
		if inside := g.hi() > n; inside || late || !g.whole(n) {
			if err := s.own(i); err != nil {
				return err
			}
			if g = s.segs[i]; late {
				if err := s.reopen(g); err != nil {
					return err
				}
			} else if g.closed && inside {
				if err := c.broken(s.cut(g, n)); err != nil {
					return err
				}
			}
		}
		switch {
		case g.closed || g.sinks:
			open = g.hi()
		case !begun: // whole segments before it may be gone
			open, begun = g.lo, true
		}
	}
	if !begun { // the next token begins a segment, whether or not there is one before it
		open = max(open, n)
	}
	if err := s.rewind(n, open); err != nil {
		return err
	}
	s.n = n
	s.opaque = dropped(&c.led, forState, s.opaque)
	if s.chain.follows && !s.chain.rewindTo(n) {
		s.unfollow()
	}
	s.kept.forget(n / int64(c.stride))
	return c.broken(s.trim())
}

// own makes a copy of a segment if others share it.
func (s *Sequence) own(i int) error {
	c, g := s.c, s.segs[i]
	if g.refs == 1 {
		return nil
	}
	d, err := s.copyOf(g)
	if err != nil {
		return err
	}
	s.segs[i] = d
	if s.pinned {
		g.pinned--
		d.pinned++
	}
	return c.broken(c.unref(g))
}

// reopen brings the rows of an exact segment back into the order of their tokens.
func (s *Sequence) reopen(g *segment) error {
	c := s.c
	w, err := c.takeClosing()
	if err != nil {
		return err
	}
	err = c.broken(w.reopen(&c.memory, g))
	c.closings = append(c.closings, w)
	g.closed, g.have, g.name = false, g.pages, store.Key{}
	return err
}

// exact reports whether every row of a segment is as it came.
func (g *segment) exact() bool {
	if g.end != 0 {
		return false
	}
	for i := range g.blocks {
		if g.blocks[i].rung != [sides]rung{f16, f16} {
			return false
		}
	}
	return true
}

// rewind sets the first page that has not left the window to what it was at n tokens; open segments begin
// at position open. Packed pages have left the window for ever, but the page that new rows go to must be
// exact: it is decoded.
func (s *Sequence) rewind(n, open int64) error {
	c, g := s.c, s.c.geo
	s.left -= max(0, s.left-open) % pageTokens // an idle sequence ends inside a page
	if open >= n {
		s.left = open
	}
	for s.left > open && s.left >= n-int64(c.cfg.Window) {
		at := s.left - pageTokens
		seg, page := s.find(at)
		packed := false
		for i := range g.Layers * g.KVHeads {
			packed = packed || seg.blocks[i*seg.pages+page].rung != [sides]rung{f16, f16}
		}
		if packed && at+pageTokens <= n {
			return nil
		}
		if packed && at < n {
			if err := s.unpack(seg, page); err != nil {
				return err
			}
		}
		s.left = at
	}
	return nil
}

// unpack decodes the packed rows of a page to f16.
func (s *Sequence) unpack(seg *segment, page int) error {
	c, p := s.c, &s.c.pressure
	n := make([]int, len(c.sizes.classes))
	heads := c.geo.Layers * c.geo.KVHeads
	n[c.sizes.class[sideK][f16]] += heads
	n[c.sizes.class[sideV][f16]] += heads
	seg.pinned++ // pressure does not recode what is about to be decoded
	defer func() { seg.pinned-- }()
	if err := p.makeRoom(context.Background(), n, 0); err != nil {
		return err
	}
	units := 2 * heads
	for i := range heads {
		b := &seg.blocks[i*seg.pages+page]
		for side := range sides {
			if b.rung[side] == f16 {
				continue
			}
			if err := p.change(seg, i*seg.pages+page, side, f16, &units); err != nil {
				return c.broken(err)
			}
		}
	}
	return c.broken(p.flush())
}

// cut drops the rows of a closed segment that lie behind position n.
func (s *Sequence) cut(g *segment, n int64) error {
	c := s.c
	g.end, g.name = n, store.Key{}
	w, err := c.takeClosing()
	if err != nil {
		return err
	}
	defer func() { c.closings = append(c.closings, w) }()
	for i := range g.blocks {
		b := &g.blocks[i]
		if b.at[sideK] == 0 {
			continue
		}
		err := w.cut(&c.memory, b, int(n-g.lo))
		if err == nil && b.rows == 0 {
			err = c.free(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cut keeps the rows of a block whose positions are below limit.
func (w *closing) cut(c *memory, b *block, limit int) error {
	rows := int(b.rows)
	at := c.arena.at(b.pos, int64(2*rows))
	if err := at.Buf.Download(at.Off, w.to[:at.Len]); err != nil {
		return err
	}
	keep := w.perm[:0]
	for r := range rows {
		if p := binary.LittleEndian.Uint16(w.to[2*r:]); int(p) < limit {
			binary.LittleEndian.PutUint16(w.to[2*len(keep):], p)
			keep = append(keep, int32(r))
		}
	}
	if len(keep) == rows {
		return nil
	}
	if err := at.Buf.Upload(at.Off, w.to[:2*len(keep)]); err != nil {
		return err
	}
	for side, dim := range c.sizes.dim {
		from := c.side(b, side, rows)
		src := w.from[:from.Data.Len]
		if err := from.Data.Buf.Download(from.Data.Off, src); err != nil {
			return err
		}
		dst := w.to[:from.Coding.PackedBytes(len(keep), dim)]
		clear(dst)
		for i, r := range keep {
			copyPacked(dst, len(keep), i, src, rows, int(r), from.Coding, dim)
		}
		if err := from.Data.Buf.Upload(from.Data.Off, dst); err != nil {
			return err
		}
	}
	b.rows = uint8(len(keep))
	c.touch(b)
	return nil
}
