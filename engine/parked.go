// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"
	"unsafe"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// stateVersion is that of the bytes of images and states.
const stateVersion = 1

// layout names everything that the bytes of images and states depend on.
func (c *Config) layout(g quant.Geometry) string {
	windows := ""
	for l := range c.LayerWindow {
		windows += fmt.Sprintf(" %d", c.LayerWindow[l])
	}
	return fmt.Sprintf("kvist sequence: layers=%d heads=%d kv_heads=%d head_dim=%d head_dim_v=%d window=%d sinks=%d segment=%d "+
		"kept_queries=%d seed=%d scale=%v softcap=%v layer_windows=%s", g.Layers, g.Heads, g.KVHeads, g.HeadDim, g.HeadDimV,
		c.Window, c.Sinks, c.Segment, c.KeptQueries, c.Seed, c.Scale, c.Softcap, windows)
}

// mover moves a sequence between the slabs and a store. It holds the cache's lock only while it copies.
type mover struct {
	c      *Cache
	ctx    context.Context
	call   string
	seq    uint64
	st     store.Store
	shared bool // st is where prefixes are shared
	under  store.Context
	base   int64 // scratch memory that is counted until the end
	loan   int64 // and all that is
}

// newMover returns one for a call.
func newMover(ctx context.Context, c *Cache, call string, seq uint64, salt []byte) (*mover, error) {
	if c.cfg.Store == nil {
		return nil, fail(call, seq, "the cache has no store (Config.Store): %w", quant.ErrUnsupported)
	}
	return moverTo(ctx, c, c.cfg.Store, call, seq, salt), nil
}

// moverTo returns one for a call and a store.
func moverTo(ctx context.Context, c *Cache, st store.Store, call string, seq uint64, salt []byte) *mover {
	return &mover{c: c, ctx: ctx, call: call, seq: seq, st: st, shared: c.cfg.Shared == nil, under: store.Context{Salt: salt,
		Model: c.cfg.Model, Profile: c.cfg.Profile, Layout: c.cfg.layout(c.geo), Version: stateVersion}}
}

// lend counts n bytes of scratch memory in the place of those that were lent before.
func (m *mover) lend(n int64) error {
	c := m.c
	c.led.give(forScratch, m.loan)
	m.loan = 0
	if n += m.base; n == 0 {
		return nil
	}
	if err := c.pressure.makeRoom(m.ctx, nil, n); err != nil {
		return err
	}
	if !c.led.take(forScratch, n) {
		return errNoRoom
	}
	m.loan = n
	return nil
}

// locked runs f with the cache's lock, unless the cache was closed meanwhile.
func (m *mover) locked(f func() error) error {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if err := m.c.usable(m.call); err != nil {
		return err
	}
	return f()
}

// hold keeps a sequence as it is while it is put, and lends memory for the image of a part of it. free is nil if it
// does not.
func (m *mover) hold(s *Sequence, what string) (free func(), buf []byte, named []segmentState, err error) {
	c := m.c
	err = m.locked(func() error {
		if err := s.ready(m.call); err != nil {
			return err
		}
		if s.chain.follows && s.chain.root != c.cfg.rootKey(m.under.Salt) {
			return fail(m.call, s.id, "the salt is not that of its tokens: %w", quant.ErrShape)
		}
		free = s.occupy(what)
		n := max(stateSize(s), mostImage(s, func(g *segment) []part { return parts(&c.memory, g.sinks) }))
		if m.call == "park" {
			err = m.lend(n + shrinkBytes(&c.memory, n) + store.SealBytes)
		} else {
			err = m.lend(n + store.SealBytes)
		}
		if err != nil {
			return err
		}
		buf = make([]byte, store.SealBytes, n+store.SealBytes)
		named = make([]segmentState, len(s.segs))
		return nil
	})
	return free, buf, named, err
}

// park writes a sequence to the store and returns what it is found by.
func (m *mover) park(s *Sequence, expires time.Time) (id store.Key, err error) {
	c := m.c
	free, buf, named, err := m.hold(s, "parked")
	if err == nil {
		_, _ = rand.Read(id[:]) // never fails
		err = m.putAll(s, id, buf, named, expires)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if free != nil && !c.closed {
		_ = m.lend(0)
		free()
		if err == nil {
			for i, g := range s.segs {
				if named[i].shared {
					m.told(g, named[i].name, named[i].coarse)
				}
			}
			c.stats.Parked++
			err = c.broken(s.release())
		}
	}
	return id, err
}

// putAll puts the images of a sequence, then where its prefixes are found, and its state last: what is not
// complete is not found.
func (m *mover) putAll(s *Sequence, id store.Key, buf []byte, named []segmentState, expires time.Time) (err error) {
	c := m.c
	put := 0
	defer func() {
		for i, x := range named[:put] {
			if err != nil && !x.shared { // nobody else refers to it
				for j := range parts(&c.memory, s.segs[i].sinks) {
					_ = m.st.Delete(context.WithoutCancel(m.ctx), m.partKey(x.name, j))
				}
			}
		}
	}()
	smaller, err := newShrinker(m, s, cap(buf))
	if err != nil {
		return err
	}
	for i, g := range s.segs {
		if err := m.name(s, g, &named[i], id, i, buf); err != nil {
			return err
		}
		put = i + 1
		if done, err := smaller.put(s, g, &named[i], expires); done || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		err := m.eachPart(s, g, buf, func(j int, image []byte) error {
			k := m.partKey(named[i].name, j)
			m.under.Seal(k, image)
			return m.st.Put(m.ctx, k, image, expires)
		})
		if err != nil {
			return err
		}
	}
	if err := m.putMarks(s, named, expires); err != nil {
		return err
	}
	var p []byte
	err = m.locked(func() error {
		p = appendState(buf[:store.SealBytes], s, named)
		return nil
	})
	if err != nil {
		return err
	}
	m.under.Seal(id, p)
	return m.st.Put(m.ctx, id, p, expires)
}

// name chooses the name of a segment: by what is in it, if others share it.
func (m *mover) name(s *Sequence, g *segment, x *segmentState, id store.Key, i int, buf []byte) error {
	_ = m.locked(func() error { x.shared = g.refs > 1 && g.whole(s.n); return nil })
	if !x.shared {
		x.name = m.under.Key("private", binary.LittleEndian.AppendUint64(id[:len(id):len(id)], uint64(i)))
		return nil
	}
	sum := sha256.New()
	err := m.eachPart(s, g, buf, func(_ int, image []byte) error {
		sum.Write(image[store.SealBytes:])
		return nil
	})
	x.name = m.under.Key("segment", sum.Sum(nil))
	return err
}

// eachPart calls f with the image of every part of a segment, behind room for a seal.
func (m *mover) eachPart(s *Sequence, g *segment, buf []byte, f func(j int, image []byte) error) error {
	c := m.c
	for j, h := range parts(&c.memory, g.sinks) {
		var image []byte
		err := m.locked(func() (err error) {
			image, err = appendImage(&c.memory, buf[:store.SealBytes], g, s.n, h, whole)
			return err
		})
		if err == nil {
			err = f(j, image)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// partKey returns the key of a part of the image of a segment.
func (m *mover) partKey(name store.Key, j int) store.Key {
	return m.under.Key("part", binary.LittleEndian.AppendUint32(name[:len(name):len(name)], uint32(j)))
}

// get returns a checked payload, and counts its bytes.
func (m *mover) get(k store.Key) ([]byte, error) {
	p, err := m.st.Get(m.ctx, k)
	if err != nil {
		return nil, err
	}
	payload, err := m.under.Open(k, p)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", k.String()[:16], err)
	}
	c := m.c
	parsed := int64(c.geo.Layers*c.geo.KVHeads*c.segPages()) * int64(unsafe.Sizeof(imageBlock{}))
	return payload, m.locked(func() error { return m.lend(int64(cap(p)) + parsed) })
}

// resume reads a sequence.
func (m *mover) resume(id store.Key) (*Sequence, error) {
	c := m.c
	p, err := m.get(id)
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	x, err := parseState(&c.memory, p)
	if err != nil {
		return nil, m.end(nil, nil, err)
	}
	m.base = int64(cap(p)) + c.keptBytes(c.cfg.KeptQueries) // x aliases p
	var s *Sequence
	var free func()
	err = m.locked(func() (err error) {
		if s, err = c.newSequence(); err == nil {
			free = s.occupy("restored")
		}
		return err
	})
	for i := 0; i < len(x.segs) && err == nil; i++ {
		err = m.addSegment(s, &x.segs[i])
	}
	if err == nil {
		err = m.locked(func() error { c.stats.Resumed++; return x.restore(s, m.under.Salt) })
	}
	if err = m.end(s, free, err); err != nil {
		return nil, err
	}
	return s, nil
}

// end gives the scratch memory back and ends what began a sequence, which goes if it has failed.
func (m *mover) end(s *Sequence, free func(), err error) error {
	c := m.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.usable(m.call)
	}
	m.base = 0
	_ = m.lend(0)
	if free != nil {
		free()
	}
	if err != nil && s != nil {
		return s.undo(m.call, s.id, err)
	}
	return err
}

// addSegment appends a segment to a sequence: the one that is in memory already, or that of the store.
func (m *mover) addSegment(s *Sequence, x *segmentState) error {
	c, found := m.c, false
	err := m.locked(func() error {
		if g := named(c, x.name); g != nil && x.shared {
			found = true
			m.told(g, x.name, g.coarse)
			return s.adopt(g, false)
		}
		return nil
	})
	if err != nil || found {
		return err
	}
	for j, h := range parts(&c.memory, x.sinks(c)) {
		if err := m.addPart(s, x, m.partKey(x.name, j), h); err != nil {
			return err
		}
	}
	return m.locked(func() error {
		g := s.segs[len(s.segs)-1]
		for i, v := range x.mass {
			g.blocks[i].mass = v
		}
		if x.shared {
			m.told(g, x.name, x.coarse)
		}
		return m.lend(0)
	})
}

// sinks reports whether a segment is that of the sinks.
func (x *segmentState) sinks(c *Cache) bool { return x.lo == 0 && c.cfg.Sinks > 0 }

// addPart gives a sequence a part of a segment.
func (m *mover) addPart(s *Sequence, x *segmentState, k store.Key, h part) error {
	p, err := m.get(k)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a segment of it is gone: %w (%w)", quant.ErrCorrupt, err)
	}
	if err != nil {
		return err
	}
	if n := openBytes(&m.c.memory, p); n > 0 {
		if err := m.locked(func() error { return m.lend(m.loan - m.base + n) }); err != nil {
			return err
		}
	}
	im, err := openPart(&m.c.memory, p)
	if err != nil {
		return err
	}
	x.coarse = x.coarse || im.archived
	if im.lo != x.lo || im.hi() != x.hi || im.from != h.from || im.to != h.to {
		return fmt.Errorf("a part of tokens %d to %d, heads %d to %d, where %d to %d, %d to %d are: %w", im.lo, im.hi(), im.from,
			im.to, x.lo, x.hi, h.from, h.to, quant.ErrCorrupt)
	}
	return m.locked(func() error { return im.place(m.ctx, s) })
}
