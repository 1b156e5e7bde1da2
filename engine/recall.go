// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// newSharer returns a mover to where prefixes are shared.
func newSharer(ctx context.Context, c *Cache, call string, seq uint64, salt []byte) (*mover, error) {
	if c.cfg.Shared == nil {
		return newMover(ctx, c, call, seq, salt)
	}
	m := moverTo(ctx, c, c.cfg.Shared, call, seq, salt)
	m.shared = true
	return m, nil
}

// told notes that the store has the image of a segment, under a name.
func (m *mover) told(g *segment, name store.Key, coarse bool) {
	if g.name, g.coarse = name, coarse; m.shared {
		g.published = name
	}
}

// parkedMark says where in the store a segment is, and which one comes before it: 32 bytes name, 32 bytes name of the
// sinks before it or zeros, i64 lo, i64 hi, 32 bytes last key of its tokens, 32 bytes name and 32 bytes last key of the
// segment before it, or zeros. It is found by every key of its tokens that no other sequence was first with, and by its
// name and last key: whoever comes from a later segment finds those of the same sequence, and of no other that has only
// keys in common with it.
type parkedMark struct {
	name, sinks store.Key
	lo, hi      int64
	last        key
	prev        store.Key
	prevLast    key
}

const markBytes = 5*32 + 16

func (x *parkedMark) append(b []byte) []byte {
	b = append(append(b, x.name[:]...), x.sinks[:]...)
	b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, uint64(x.lo)), uint64(x.hi))
	return append(append(append(b, x.last[:]...), x.prev[:]...), x.prevLast[:]...)
}

// markKey is where the mark of a key is.
func (m *mover) markKey(k key) store.Key { return m.under.Key("mark", k[:]) }

// linkKey is where the mark of a segment is.
func (m *mover) linkKey(name store.Key, last key) store.Key {
	return m.under.Key("link", append(name[:len(name):len(name)], last[:]...))
}

// putMarks puts where the prefixes of a sequence are found, under the keys of its tokens: those of its first
// segments that are whole.
func (m *mover) putMarks(s *Sequence, named []segmentState, expires time.Time) error {
	type put struct {
		keys   []key
		mark   parkedMark
		parent key
	}
	var puts []put
	err := m.locked(func() error {
		if !s.chain.follows {
			return nil
		}
		var sinks, prev store.Key
		next := int64(m.c.cfg.Sinks)
		for i, g := range s.segs {
			switch {
			case g.sinks && g.lo == 0 && named[i].shared:
				sinks = named[i].name
				continue
			case !g.closed || !g.complete() || !named[i].shared || g.lo != next || m.c.cfg.Sinks > 0 && sinks == (store.Key{}):
				return nil
			}
			x := parkedMark{name: named[i].name, lo: g.lo, hi: g.hi(), last: s.chain.upTo(g.hi()), prev: prev}
			if g.lo == int64(m.c.cfg.Sinks) {
				x.sinks = sinks
			} else {
				x.prevLast = s.chain.upTo(g.lo)
			}
			first := g.lo / prefixTokens
			puts = append(puts, put{s.chain.keys[first : g.hi()/prefixTokens], x, s.chain.upTo(g.lo)})
			next, prev = g.hi(), x.name
		}
		return nil
	})
	for _, p := range puts {
		at := []store.Key{m.linkKey(p.mark.name, p.mark.last)}
		for _, k := range p.keys {
			at = append(at, m.markKey(k))
		}
		for _, name := range at {
			if err != nil {
				return err
			}
			b := p.mark.append(make([]byte, store.SealBytes, store.SealBytes+markBytes))
			m.under.Seal(name, b)
			err = m.st.Put(m.ctx, name, b, expires)
			if errors.Is(err, fs.ErrExist) { // rows that were coded at another time, or go another way later, are as good
				err = nil
			}
		}
		if err == nil {
			err = m.locked(func() error {
				emitKeys(&m.c.cfg, Stored, InStore, p.parent, p.keys, p.mark.hi)
				return nil
			})
		}
	}
	return err
}

// getMark returns a mark.
func (m *mover) getMark(at store.Key) (x parkedMark, err error) {
	p, err := m.get(at)
	if err != nil {
		return x, err
	}
	if len(p) != markBytes {
		return x, fmt.Errorf("a mark of %d bytes: %w", len(p), quant.ErrCorrupt)
	}
	le := binary.LittleEndian
	x = parkedMark{name: store.Key(p), sinks: store.Key(p[32:]), lo: int64(le.Uint64(p[64:])), hi: int64(le.Uint64(p[72:])),
		last: key(p[80:]), prev: store.Key(p[112:]), prevLast: key(p[144:])}
	if x.hi <= x.lo || x.lo < int64(m.c.cfg.Sinks) {
		return x, fmt.Errorf("a mark of tokens %d to %d: %w", x.lo, x.hi, quant.ErrCorrupt)
	}
	return x, nil
}

// keep pins the segments of a node and those before it, until let: making room would free what nobody but the index
// holds. A nil node has none.
func (n *prefix) keep() (let func()) {
	by := func(x int) {
		for p := n; p != nil; p = p.parent {
			p.seg.pinned += x
		}
	}
	by(1)
	return func() { by(-1) }
}

// recall makes a sequence of the first tokens that memory and the store know.
func (m *mover) recall(tokens []int32) (*Sequence, error) {
	c := m.c
	var x chain
	var found mark
	err := m.locked(func() error {
		x, found = c.lookup(m.under.Salt, tokens)
		return nil
	})
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	marks, base, upTo := m.findMarks(x.keys, found)
	if len(marks) == 0 {
		if err := m.end(nil, nil, nil); err != nil {
			return nil, err
		}
		return c.MatchPrefix(m.under.Salt, tokens)
	}
	x.keys = x.keys[:upTo/prefixTokens]
	var s *Sequence
	var free func()
	err = m.locked(func() (err error) {
		if s, err = c.newSequence(); err != nil {
			return err
		}
		free = s.occupy("restored")
		if base == nil {
			return s.follow(x)
		}
		if !slices.Contains(c.index.nodes, base) {
			return fmt.Errorf("a shared prefix was freed meanwhile: %w", quant.ErrFull)
		}
		defer base.keep()() // following may make room
		if err := s.follow(x); err != nil {
			return err
		}
		return s.adoptPath(base)
	})
	got := int64(0)
	if base != nil {
		got = base.seg.hi()
	}
	for i := 0; i < len(marks) && err == nil; i++ {
		whole := len(s.segs)
		if e := m.addMarked(s, marks[i]); e != nil { // what was found before it is good
			if err = m.locked(func() error { return s.shorten(whole) }); err != nil {
				break
			}
			if len(s.segs) == 0 || i == 0 || got < found.tokens || errors.Is(e, quant.ErrClosed) {
				err = e
			}
			m.skipped(e)
			break
		}
		got = marks[i].hi
	}
	if err == nil {
		err = m.locked(func() error { return s.settle(got, min(upTo, got/prefixTokens*prefixTokens)) })
	}
	if err != nil && !errors.Is(err, quant.ErrClosed) && !errors.Is(err, quant.ErrFull) {
		// The store does not serve what it has promised: memory does.
		if e := m.end(s, free, err); errors.Is(e, quant.ErrClosed) {
			return nil, e
		}
		return c.MatchPrefix(m.under.Salt, tokens)
	}
	if err = m.end(s, free, err); err != nil {
		return nil, err
	}
	return s, m.locked(func() error {
		c.stats.PrefixQueries += uint64(len(tokens))
		c.stats.PrefixHits += uint64(s.n)
		return nil
	})
}

// findMarks returns the marks of the segments that lead to most of the tokens behind those that memory has: from the
// first segment on, or behind a node of the index; and how many tokens are known then.
func (m *mover) findMarks(keys []key, found mark) (marks []parkedMark, base *prefix, upTo int64) {
	var ends []parkedMark // of every segment that a key leads to
	var known []int64     // tokens up to the last such key
	for i := int(found.tokens / prefixTokens); i < len(keys); i++ {
		x, err := m.getMark(m.markKey(keys[i]))
		if err != nil {
			m.skipped(err)
			break
		}
		if n := len(ends); n == 0 || ends[n-1].name != x.name {
			ends, known = append(ends, x), append(known, 0)
		}
		known[len(known)-1] = int64(i+1) * prefixTokens
	}
	for i := len(ends) - 1; i >= 0; i-- {
		if marks, base, ok := m.path(ends[i], found.node); ok {
			return marks, base, known[i]
		}
	}
	return nil, nil, 0
}

// path returns the marks of a segment and those before it in its sequence, up to one that a node of the index has.
func (m *mover) path(x parkedMark, found *prefix) (marks []parkedMark, base *prefix, ok bool) {
	for {
		marks = append(marks, x)
		if x.lo == int64(m.c.cfg.Sinks) {
			break
		}
		_ = m.locked(func() error {
			for n := found; n != nil && base == nil; n = n.parent {
				if n.seg.name == x.prev && n.last == x.prevLast && n.seg.hi() == x.lo {
					base = n
				}
			}
			return nil
		})
		if base != nil {
			break
		}
		before, err := m.getMark(m.linkKey(x.prev, x.prevLast))
		if err == nil && (before.name != x.prev || before.hi != x.lo) {
			err = fmt.Errorf("the segment before token %d ends at %d: %w", x.lo, before.hi, quant.ErrCorrupt)
		}
		if err != nil {
			m.skipped(err)
			return nil, nil, false
		}
		x = before
	}
	slices.Reverse(marks)
	return marks, base, true
}

// skipped counts and logs a record that cannot be used. One that is not there is nothing to tell.
func (m *mover) skipped(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	_ = m.locked(func() error {
		m.c.stats.Skipped++
		if l := m.c.cfg.Logger; l != nil {
			l.Warn("kvist: "+m.call+" skips a record", "error", err)
		}
		return nil
	})
}

// addMarked appends the segment of a mark to a sequence.
func (m *mover) addMarked(s *Sequence, x parkedMark) error {
	heads := m.c.geo.Layers * m.c.geo.KVHeads
	var none store.Key
	if n := int64(m.c.cfg.Sinks); n > 0 && x.lo == n {
		sinks := segmentState{name: x.sinks, shared: true, hi: n, mass: make([]float32, heads)}
		if x.sinks == none {
			return fmt.Errorf("a mark without sinks: %w", quant.ErrCorrupt)
		}
		if err := m.addSegment(s, &sinks); err != nil {
			return err
		}
	}
	err := m.addSegment(s, &segmentState{name: x.name, shared: true, lo: x.lo, hi: x.hi,
		mass: make([]float32, heads*m.c.segPages())})
	if err != nil {
		return err
	}
	return m.locked(func() error {
		if g := s.segs[len(s.segs)-1]; !g.closed || !g.complete() {
			return fmt.Errorf("a mark of a segment that is not whole: %w", quant.ErrCorrupt)
		}
		return nil
	})
}

// publish puts the segments of a sequence that others may share, and where they are found.
func (m *mover) publish(s *Sequence, expires time.Time) error {
	c := m.c
	free, buf, named, err := m.hold(s, "published")
	if err == nil {
		err = m.putShared(s, buf, named, expires)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if free != nil && !c.closed {
		_ = m.lend(0)
		free()
		for i, g := range s.segs {
			if err == nil && named[i].shared {
				m.told(g, named[i].name, false)
			}
		}
	}
	return err
}

// putShared puts the segments that are not in the store yet, and marks all of them if there were any.
func (m *mover) putShared(s *Sequence, buf []byte, named []segmentState, expires time.Time) error {
	fresh := false
	for i, g := range s.segs {
		x := &named[i]
		whole := false
		_ = m.locked(func() error {
			whole = g.refs > 1 && g.whole(s.n)
			x.name, x.shared = g.name, whole && g.name != (store.Key{}) && g.name == g.published && !g.coarse
			return nil
		})
		if !whole || x.shared {
			continue
		}
		if err := m.name(s, g, x, store.Key{}, i, buf); err != nil {
			return err
		}
		err := m.eachPart(s, g, buf, func(j int, image []byte) error {
			k := m.partKey(x.name, j)
			m.under.Seal(k, image)
			return m.st.Put(m.ctx, k, image, expires)
		})
		if err != nil {
			return err
		}
		fresh = true
	}
	if !fresh {
		return nil
	}
	return m.putMarks(s, named, expires)
}
