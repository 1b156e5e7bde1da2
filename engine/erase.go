// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// stateOf reads the state of a parked sequence.
func (m *mover) stateOf(id store.Key) (*state, error) {
	p, err := m.get(id)
	if err != nil {
		return nil, err
	}
	return parseState(&m.c.memory, p)
}

// images returns the names of the images of a parked sequence that others may share.
func (m *mover) images(id store.Key) (names []store.Key, err error) {
	x, err := m.stateOf(id)
	if err != nil {
		return nil, err
	}
	for i := range x.segs {
		if x.segs[i].shared {
			names = append(names, x.segs[i].name)
		}
	}
	return names, nil
}

// erase deletes what the store has of a parked sequence alone. The state goes last: without it nobody would know
// what is left.
func (m *mover) erase(id store.Key, keep func(image store.Key) bool) error {
	x, err := m.stateOf(id)
	if err != nil {
		return err
	}
	gone := map[store.Key]bool{}
	for i := range x.segs {
		s := &x.segs[i]
		if s.shared && keep != nil && keep(s.name) {
			continue
		}
		gone[s.name] = true
		err = errors.Join(err, m.eraseImage(s.name, s.sinks(m.c)))
		if n := s.hi / prefixTokens; s.shared && n > 0 && n <= int64(len(x.keys)) {
			err = errors.Join(err, m.st.Delete(m.ctx, m.linkKey(s.name, x.keys[n-1])))
		}
	}
	err = errors.Join(err, m.eraseMarks(x.keys, gone), m.unname(gone))
	if err != nil {
		return err
	}
	return m.st.Delete(m.ctx, id)
}

// eraseMarks deletes the marks of keys that lead to images which are gone.
func (m *mover) eraseMarks(keys []key, gone map[store.Key]bool) (err error) {
	for i, k := range keys {
		x, e := m.getMark(m.markKey(k))
		if errors.Is(e, fs.ErrNotExist) || e == nil && !gone[x.name] && !gone[x.sinks] {
			continue
		}
		if e == nil {
			e = m.st.Delete(m.ctx, m.markKey(k))
		}
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		err = errors.Join(err, m.removed(keys, i))
	}
	return err
}

// discard deletes what was parked.
func (m *mover) discard(id store.Key) error {
	p, err := m.get(id)
	if err == nil {
		var x *state
		if x, err = parseState(&m.c.memory, p); err == nil {
			for i := range x.segs {
				for j := range parts(&m.c.memory, x.segs[i].sinks(m.c)) {
					if !x.segs[i].shared {
						err = errors.Join(err, m.st.Delete(m.ctx, m.partKey(x.segs[i].name, j)))
					}
				}
			}
		}
	}
	if err == nil {
		err = m.st.Delete(m.ctx, id)
	}
	return m.end(nil, nil, err)
}

// unpublish deletes the images of a text's segments that end behind its first kept tokens, and the marks that lead to
// them. Segments that only begin like those of the text, as of a conversation that has parted from it, stay. So does
// one that no key leads to because another text was first with all of them, if it is the last of this one and memory
// has it no longer. A mark that is damaged, or of another version, goes: what it leads to expires.
func (m *mover) unpublish(tokens []int32, kept int64) error {
	var x chain
	err := m.locked(func() error {
		x, _ = m.c.lookup(m.under.Salt, append(slices.Clip(tokens), 0)) // which leaves the last token out
		return nil
	})
	if err != nil {
		return err
	}
	at := make([]*parkedMark, len(x.keys)) // of each key
	bad := map[int]bool{}
	keyed := map[store.Key]bool{}
	for i, k := range x.keys {
		y, e := m.getMark(m.markKey(k))
		switch {
		case e == nil:
			at[i], keyed[y.name] = &y, true
		case damaged(e):
			bad[i] = true
		case !errors.Is(e, fs.ErrNotExist):
			return e // the store does not answer
		}
	}
	var own []parkedMark // what memory knows of them: the last one may have no key of its own
	err = m.locked(func() error {
		for _, n := range m.c.index.nodes {
			y := parkedMark{name: n.seg.name, hi: n.seg.hi(), last: n.last}
			if n.seg.published == n.seg.name && n.seg.name != (store.Key{}) && n.last != (key{}) && n.last == x.upTo(y.hi) {
				own = append(own, y)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	gone := map[store.Key]bool{}
	var links, marks []store.Key
	var of []int // keys of marks
	see := func(y *parkedMark, goes bool) bool {
		if !goes || y.last != x.upTo(y.hi) {
			return false
		}
		if !gone[y.name] {
			gone[y.name] = true
			links = append(links, m.linkKey(y.name, y.last))
			err = errors.Join(err, m.eraseImage(y.name, false))
		}
		if y.sinks != (store.Key{}) && kept < int64(m.c.cfg.Sinks) && !gone[y.sinks] {
			gone[y.sinks] = true
			err = errors.Join(err, m.eraseImage(y.sinks, true))
		}
		return true
	}
	for i, k := range x.keys {
		// What a key leads to has its tokens in common up to its last key: those behind may be others.
		if bad[i] || at[i] != nil && see(at[i], at[i].hi/prefixTokens*prefixTokens > kept) {
			marks, of = append(marks, m.markKey(k)), append(of, i)
		}
		if at[i] == nil || i+1 < len(at) && at[i+1] != nil && at[i+1].name == at[i].name || at[i].last != x.upTo(at[i].hi) {
			continue
		}
		for y := *at[i]; y.lo > int64(m.c.cfg.Sinks) && !keyed[y.prev] && !gone[y.prev]; { // those that no key leads to
			var e error
			if y, e = m.getMark(m.linkKey(y.prev, y.prevLast)); e != nil {
				if !errors.Is(e, fs.ErrNotExist) && !damaged(e) {
					return errors.Join(err, e)
				}
				break
			}
			see(&y, true)
		}
	}
	for _, y := range own {
		see(&y, y.hi/prefixTokens*prefixTokens > kept || !keyed[y.name])
	}
	slices.Reverse(links) // what is left of them after a failure is still led to
	for i, k := range append(links, marks...) {
		if err != nil {
			return err
		}
		if err = m.st.Delete(m.ctx, k); err == nil && i >= len(links) {
			err = m.removed(x.keys, of[i-len(links)])
		}
	}
	return errors.Join(err, m.unname(gone))
}

// damaged reports whether a record can never be read.
func damaged(err error) bool {
	var foreign *store.ForeignError
	return errors.Is(err, quant.ErrCorrupt) || errors.As(err, &foreign)
}

// eraseImage deletes the image of a segment.
func (m *mover) eraseImage(name store.Key, sinks bool) (err error) {
	for j := range parts(&m.c.memory, sinks) {
		err = errors.Join(err, m.st.Delete(m.ctx, m.partKey(name, j)))
	}
	return err
}

// removed tells that the store has no longer what a key leads to.
func (m *mover) removed(keys []key, i int) error {
	var parent key
	if i > 0 {
		parent = keys[i-1]
	}
	return m.locked(func() error {
		emitKeys(&m.c.cfg, Removed, InStore, parent, keys[i:i+1], int64(i+1)*prefixTokens)
		return nil
	})
}

// unname forgets that segments in memory have images that are gone.
func (m *mover) unname(gone map[store.Key]bool) error {
	return m.locked(func() error {
		forget := func(g *segment) {
			if g != nil && gone[g.name] {
				g.name = store.Key{}
			}
			if g != nil && m.shared && gone[g.published] {
				g.published = store.Key{}
			}
		}
		for _, n := range m.c.index.nodes {
			forget(n.seg)
			forget(n.sinks)
		}
		for _, s := range m.c.seqs {
			for _, g := range s.segs {
				forget(g)
			}
		}
		return nil
	})
}

// forgetPrefix removes the nodes of a text from the index that no sequence holds and no other text goes on from.
func forgetPrefix(c *Cache, salt []byte, tokens []int32) (n int, err error) {
	x, _ := c.lookup(salt, append(slices.Clip(tokens), 0)) // which leaves the last token out
	of := map[*prefix]bool{}
	is := map[key]bool{}
	for _, k := range x.keys {
		if at, ok := c.index.at[k]; ok {
			of[at.node] = true
		}
		is[k] = true
	}
	for done := false; !done; { // from the ends of the chains
		done = true
		for i := len(c.index.nodes) - 1; i >= 0; i-- {
			at := c.index.nodes[i]
			if is[at.last] || len(at.keys) == 0 && of[at.parent] { // computed twice; or too short for a key of its own
				of[at] = true
			}
			if !of[at] || at.children > 0 || at.seg.refs > at.seg.listed {
				continue
			}
			if err := c.index.unlist(c, i); err != nil {
				return n, err
			}
			n, done = n+1, false
		}
	}
	return n, nil
}
