// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// tables are the blocks of the cache as the backend reads them: one table for each layer. They stay from
// step to step, so that a step costs what it changes. A segment has a room in every table, the same
// indices in each, from the first step that reads it until it goes. Entry head*pages + page of its room is
// that page of that head.
//
// An entry follows its block late: whoever changes a block marks its slots as fresh, and the next step that
// lists the block sets the entry. Entries that no list names may be out of date.
type tables struct {
	led   *ledger
	entry int64 // bytes that one table keeps of a block
	all   []backend.Table
	n     int // indices in use, rooms that are free included
	free  []room
	none  []backend.Block // blocks without rows, for rooms without a segment
	run   []backend.Block // blocks that are set together, for the holder of the cache's lock
}

// room is n indices from at on.
type room struct{ at, n int }

// tableOverhead is what an empty table is taken to hold.
const tableOverhead = 4096

func newTables(be backend.Backend, led *ledger, g quant.Geometry, segPages int) (t tables, err error) {
	most := g.KVHeads * segPages
	t = tables{led: led, entry: int64(be.Caps().TableBytes), none: make([]backend.Block, most),
		run: make([]backend.Block, 0, most)}
	if t.entry == 0 {
		t.entry = unknownTableBytes
	}
	empty := backend.Side{Coding: f16.coding()}
	for i := range t.none {
		t.none[i].K, t.none[i].V = empty, empty
	}
	for range g.Layers {
		made, err := be.NewTable(backend.Shape{HeadDim: g.HeadDim, HeadDimV: g.HeadDimV})
		if err != nil {
			return t, err
		}
		t.all = append(t.all, made)
	}
	return t, nil
}

// unknownTableBytes is what a backend that does not say is taken to keep of a block.
const unknownTableBytes = 512

// bytes returns what n indices take in all tables.
func (t *tables) bytes(n int) int64 { return int64(n*len(t.all)) * t.entry }

// take returns a room of n indices that hold blocks without rows.
func (t *tables) take(n int) (at int, err error) {
	for i := range t.free {
		f := &t.free[i]
		if f.n < n {
			continue
		}
		at = f.at
		f.at, f.n = f.at+n, f.n-n
		if f.n == 0 {
			t.free = slices.Delete(t.free, i, i+1)
		}
		return at, nil
	}
	if !t.led.take(forTables, t.bytes(n)) {
		return 0, errNoRoom
	}
	at = t.n
	if err := t.clear(at, n); err != nil {
		return 0, err
	}
	t.n += n
	return at, nil
}

// clear puts blocks without rows into a room.
func (t *tables) clear(at, n int) error {
	for _, layer := range t.all {
		if err := layer.Set(at, t.none[:n]...); err != nil {
			return err
		}
	}
	return nil
}

// give frees a room. Rooms at the end shorten the tables.
func (t *tables) give(at, n int) error {
	i, _ := slices.BinarySearchFunc(t.free, at, func(r room, at int) int { return r.at - at })
	t.free = slices.Insert(t.free, i, room{at, n})
	if i+1 < len(t.free) && at+n == t.free[i+1].at {
		t.free[i].n += t.free[i+1].n
		t.free = slices.Delete(t.free, i+1, i+2)
	}
	if i > 0 && t.free[i-1].at+t.free[i-1].n == at {
		t.free[i-1].n += t.free[i].n
		t.free = slices.Delete(t.free, i, i+1)
		i--
	}
	last := t.free[i]
	if last.at+last.n < t.n {
		return t.clear(at, n)
	}
	t.free = t.free[:i]
	for _, layer := range t.all {
		if err := layer.Remove(last.at, last.n); err != nil {
			return err
		}
	}
	t.n = last.at
	t.led.give(forTables, t.bytes(last.n))
	return nil
}

func (t *tables) close() (err error) {
	for _, layer := range t.all {
		if e := layer.Close(); err == nil {
			err = e
		}
	}
	t.all = nil
	return err
}

// admit gives a segment a room. Its blocks are marked as fresh, because no table has shown them.
func (t *tables) admit(c *memory, s *segment) error {
	if s.room > 0 {
		return nil
	}
	at, err := t.take(c.roomSize(s.pages))
	if err == nil {
		s.room = at + 1
	}
	return err
}

// show brings the entries of a segment up to date in every layer. The cache's lock is held.
func (t *tables) show(c *memory, s *segment) error {
	now := c.arena.changes.Load()
	if s.shown == now {
		return nil
	}
	for l := range c.geo.Layers {
		if err := t.showLayer(c, s, l, t.run); err != nil {
			return err
		}
		n := c.roomSize(s.pages)
		for i := l * n; i < (l+1)*n; i++ {
			s.blocks[i].settle()
		}
		for i := range c.geo.KVHeads {
			s.mean[l*c.geo.KVHeads+i] &^= fresh
		}
	}
	s.shown = now
	return nil
}

// showLayer sets the entries of the blocks of a layer that changed. run is scratch memory.
func (t *tables) showLayer(c *memory, s *segment, layer int, run []backend.Block) error {
	n := c.roomSize(s.pages)
	blocks, mean := s.blocks[layer*n:(layer+1)*n], s.mean[layer*c.geo.KVHeads:]
	run = run[:0]
	for i := range blocks {
		b, head := &blocks[i], i/s.pages
		if b.fresh() || b.centered() && mean[head]&fresh != 0 {
			if v, ok := c.view(s, b, layer, head, i%s.pages, math.MaxInt64, true); ok {
				if run = append(run, v); i+1 < n {
					continue
				}
				i++
			}
		}
		if len(run) > 0 {
			if err := t.all[layer].Set(s.room-1+i-len(run), run...); err != nil {
				return err
			}
			run = run[:0]
		}
	}
	return nil
}
