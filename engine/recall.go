// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// parkedMark says where in the store the segment is that holds the last token of a key: 32 bytes name, 32
// bytes name of the sinks before it or zeros, i64 lo, i64 hi.
type parkedMark struct {
	name, sinks store.Key
	lo, hi      int64
}

const markBytes = 80

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
		var sinks store.Key
		next := int64(m.c.cfg.Sinks)
		for i, g := range s.segs {
			switch {
			case g.sinks && g.lo == 0 && named[i].shared:
				sinks = named[i].name
				continue
			case !g.closed || !g.complete() || !named[i].shared || g.lo != next || m.c.cfg.Sinks > 0 && sinks == (store.Key{}):
				return nil
			}
			x := parkedMark{name: named[i].name, lo: g.lo, hi: g.hi()}
			if g.lo == int64(m.c.cfg.Sinks) {
				x.sinks = sinks
			}
			first := g.lo / prefixTokens
			puts = append(puts, put{s.chain.keys[first : g.hi()/prefixTokens], x, key{}})
			if first > 0 {
				puts[len(puts)-1].parent = s.chain.keys[first-1]
			}
			next = g.hi()
		}
		return nil
	})
	for _, p := range puts {
		for _, k := range p.keys {
			if err != nil {
				return err
			}
			name := m.under.Key("prefix", k[:])
			b := make([]byte, store.SealBytes, store.SealBytes+markBytes)
			b = append(append(b, p.mark.name[:]...), p.mark.sinks[:]...)
			b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(b, uint64(p.mark.lo)), uint64(p.mark.hi))
			m.under.Seal(name, b)
			err = m.st.Put(m.ctx, name, b, expires)
			if errors.Is(err, fs.ErrExist) { // rows that were coded at another time are as good
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

// getMark returns the mark of a key.
func (m *mover) getMark(k key) (x parkedMark, err error) {
	p, err := m.get(m.under.Key("prefix", k[:]))
	if err != nil {
		return x, err
	}
	if len(p) != markBytes {
		return x, fmt.Errorf("a mark of %d bytes: %w", len(p), quant.ErrCorrupt)
	}
	x = parkedMark{store.Key(p), store.Key(p[32:]), int64(binary.LittleEndian.Uint64(p[64:])),
		int64(binary.LittleEndian.Uint64(p[72:]))}
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
	marks, upTo := m.findMarks(x.keys, found)
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
		again, ok := c.index.at[x.at(found.tokens)]
		if found.node != nil && (!ok || again.node.seg.hi() != found.node.seg.hi()) {
			return fmt.Errorf("a shared prefix was freed meanwhile: %w", quant.ErrFull)
		}
		if found.node == nil {
			return s.follow(x)
		}
		defer again.node.keep()() // following may make room
		if err := s.follow(x); err != nil {
			return err
		}
		return s.adoptPath(again.node)
	})
	got := int64(0)
	if found.node != nil {
		got = found.node.seg.hi()
	}
	for i := 0; i < len(marks) && err == nil; i++ {
		whole := len(s.segs)
		if e := m.addMarked(s, marks[i]); e != nil { // what was found before it is good
			if err = m.locked(func() error { return s.shorten(whole) }); err != nil {
				break
			}
			if len(s.segs) == 0 || i == 0 || errors.Is(e, quant.ErrClosed) {
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

// at returns the key of the first tokens, a multiple of prefixTokens.
func (x *chain) at(tokens int64) key {
	if tokens == 0 {
		return x.root
	}
	return x.keys[tokens/prefixTokens-1]
}

// findMarks returns the marks of the segments that follow what memory has, and how many tokens are known
// then.
func (m *mover) findMarks(keys []key, found mark) (marks []parkedMark, upTo int64) {
	next := int64(m.c.cfg.Sinks)
	if found.node != nil {
		next = found.node.seg.hi()
	}
	upTo = found.tokens
	for i := int(found.tokens / prefixTokens); i < len(keys); i++ {
		x, err := m.getMark(keys[i])
		last := len(marks) - 1
		if err != nil {
			m.skipped(err)
			break
		}
		if last < 0 || marks[last].name != x.name {
			if x.lo != next || x.hi <= x.lo {
				break
			}
			marks = append(marks, x)
			next = x.hi
		}
		upTo = int64(i+1) * prefixTokens
	}
	return marks, upTo
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
				g.name, g.coarse = named[i].name, false
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
			x.name, x.shared = g.name, whole && g.name != (store.Key{}) && !g.coarse
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
