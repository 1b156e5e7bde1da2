// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io/fs"
	"slices"

	"github.com/kvist-project/kvist/engine/store"
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
		for j := range parts(&m.c.memory, s.sinks(m.c)) {
			err = errors.Join(err, m.st.Delete(m.ctx, m.partKey(s.name, j)))
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
		x, e := m.getMark(k)
		if errors.Is(e, fs.ErrNotExist) || e == nil && !gone[x.name] && !gone[x.sinks] {
			continue
		}
		if e == nil {
			e = m.st.Delete(m.ctx, m.under.Key("prefix", k[:]))
		}
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		var parent key
		if i > 0 {
			parent = keys[i-1]
		}
		err = errors.Join(err, m.locked(func() error {
			emitKeys(&m.c.cfg, Removed, InStore, parent, []key{k}, int64(i+1)*prefixTokens)
			return nil
		}))
	}
	return err
}

// unname forgets that segments in memory have images that are gone.
func (m *mover) unname(gone map[store.Key]bool) error {
	return m.locked(func() error {
		forget := func(g *segment) {
			if g != nil && gone[g.name] {
				g.name = store.Key{}
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
	for _, k := range x.keys {
		if at, ok := c.index.at[k]; ok {
			of[at.node] = true
		}
	}
	for done := false; !done; { // from the ends of the chains
		done = true
		for i := len(c.index.nodes) - 1; i >= 0; i-- {
			at := c.index.nodes[i]
			if len(at.keys) == 0 && of[at.parent] { // too short for a key of its own
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
