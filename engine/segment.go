// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// memory is where rows live, and what tells how they are stored.
type memory struct {
	be       backend.Backend
	geo      quant.Geometry
	cfg      Config
	sizes    *sizes
	stride   int // positions from kept query to kept query
	led      ledger
	tables   tables
	arena    *arena
	closings []*closing // unused ones
	blank    []byte     // zeros: V of 32 exact rows
}

// block is up to 32 rows of one layer and KV head. Without pos they are consecutive tokens; with it
// they are rows of equal worth from all over the segment.
type block struct {
	at     [sides]slot
	pos    slot
	rung   [sides]rung
	rows   uint8
	mass   float32        // sum over kept queries of p^2, decayed; see reprice
	energy [sides]float32 // mean of |row|^2
}

// fresh reports whether the block may be another one than its entry in a table says; see tables.
func (b *block) fresh() bool { return (b.at[sideK]|b.at[sideV]|b.pos)&fresh != 0 }

// settle says that the entry is right.
func (b *block) settle() {
	b.at[sideK], b.at[sideV], b.pos = b.at[sideK]&^fresh, b.at[sideV]&^fresh, b.pos&^fresh
}

// touch says that the rows of a block changed although they stand where they stood.
func (c *memory) touch(b *block) {
	if b.at[sideK] != 0 {
		b.at[sideK] |= fresh
		c.arena.changes.Add(1)
	}
}

const blockBytes = int64(unsafe.Sizeof(block{}))

// segment is a run of consecutive tokens of all layers. It is open while its pages fill and leave the
// window; then it closes: the rows of each head are sorted by weight over its pages. From then on
// sequences may share it, and only pressure changes it.
type segment struct {
	lo     int64 // position of the first token
	end    int64 // where a closed segment was cut, 0 if it was not
	pages  int
	per    int // rows of a page: 32, or the number of sinks
	have   int // pages with memory, while it is open
	refs   int // sequences and index entries that hold it
	listed int // of refs: index entries
	sinks  bool
	closed bool
	lost   bool      // pressure has dropped rows
	name   store.Key // of its image in the store, zero if it has none or has changed since
	coarse bool      // that image has rows in archive form
	// published is the name when its image was put into Config.Shared: it is there if both are the same.
	published store.Key
	pinned    int     // by how many sequences
	visited   uint64  // by pressure
	room      int     // index of the first entry in the tables, plus 1; 0: none
	shown     uint64  // arena.changes when its entries were right
	blocks    []block // [layers, kv_heads, pages]
	mean      []slot  // [layers, kv_heads]: means of K; none for sinks
}

const segmentBytes = int64(unsafe.Sizeof(segment{}))

// hi returns the position behind the last token that the segment has room for.
func (s *segment) hi() int64 {
	if s.end != 0 {
		return s.end
	}
	return s.lo + int64(s.pages*s.per)
}

// empty reports whether every block was dropped.
func (s *segment) empty() bool {
	for i := range s.blocks {
		if s.blocks[i].at[sideK] != 0 {
			return false
		}
	}
	return true
}

// segmentBytes returns the bytes of the rows and positions of a segment.
func (c *memory) segmentBytes(s *segment) (n int64) {
	for i := range s.blocks {
		for _, at := range s.blocks[i].slots() {
			if *at != 0 {
				n += c.arena.classes[at.class()].bytes
			}
		}
	}
	return n
}

// complete reports whether a closed segment still has the rows of all its tokens, in all layers.
func (s *segment) complete() bool {
	for i := range s.mean {
		rows := int64(0)
		for _, b := range s.blocks[i*s.pages : (i+1)*s.pages] {
			rows += int64(b.rows)
		}
		if rows != s.hi()-s.lo { // dropped under pressure, or a window has passed it
			return false
		}
	}
	return true
}

// of returns the blocks of a layer and head.
func (s *segment) of(layer, head, kvHeads int) []block {
	i := (layer*kvHeads + head) * s.pages
	return s.blocks[i : i+s.pages : i+s.pages]
}

// view describes the block of a page as a backend reads it. end is the position behind the last token
// of the sequence in this layer. ok is false if there are no rows. With whole, a page that is not full yet
// counts as full: the backend then groups the rows of a page in the same way whatever the size of a step was.
// Queries do not see rows that come after them.
func (c *memory) view(s *segment, b *block, layer, head, page int, end int64, whole bool) (v backend.Block, ok bool) {
	if b.at[sideK] == 0 {
		return v, false
	}
	rows := int64(b.rows)
	if b.pos == 0 && !s.closed {
		rows = min(int64(s.per), end-s.lo-int64(page*s.per))
	}
	if rows <= 0 {
		return v, false
	}
	if whole && b.pos == 0 && !s.closed {
		rows = int64(s.per)
	}
	v = backend.Block{Layer: int32(layer), KVHead: int32(head), Rows: int32(rows),
		K: c.side(b, sideK, int(rows)), V: c.side(b, sideV, int(rows)),
		Base: s.lo + int64(page*s.per), Noise: b.rung[sideK].noise()}
	if b.centered() {
		v.MeanK = c.arena.at(s.mean[layer*c.geo.KVHeads+head], int64(frame.MeanBytes(c.geo.HeadDim)))
	}
	if b.pos != 0 {
		v.Base = s.lo
		v.Pos = c.arena.at(b.pos, 2*rows)
	}
	return v, true
}

// side describes the packed rows of a side.
func (c *memory) side(b *block, side, rows int) backend.Side {
	cd := b.rung[side].coding()
	return backend.Side{Coding: cd, Seed: c.cfg.Seed,
		Data: c.arena.at(b.at[side], int64(cd.PackedBytes(rows, c.sizes.dim[side])))}
}

// newSegment makes an open segment at a position, with descriptors but no rows. The bytes must have
// been counted.
func (c *memory) newSegment(lo int64, pages, per int, sinks bool) *segment {
	heads := c.geo.Layers * c.geo.KVHeads
	return &segment{lo: lo, pages: pages, per: per, sinks: sinks, refs: 1, blocks: make([]block, heads*pages),
		mean: make([]slot, heads)}
}

// segmentSize returns the bytes of the descriptors of a segment.
func (c *memory) segmentSize(pages int) int64 {
	return segmentBytes + int64(c.geo.Layers*c.geo.KVHeads)*(int64(pages)*blockBytes+int64(unsafe.Sizeof(slot(0))))
}

// addPage takes memory for the next page of an open segment.
func (c *memory) addPage(s *segment) error {
	for i := range c.geo.Layers * c.geo.KVHeads {
		b := &s.blocks[i*s.pages+s.have]
		for side := range sides {
			b.rung[side] = f16
			cl := c.sizes.class[side][f16]
			if s.sinks {
				cl = c.sizes.sinks[side]
			}
			if err := c.arena.alloc(cl, &b.at[side]); err != nil {
				s.have++ // so that dropPages frees what there is
				return err
			}
		}
		if err := c.clear(b.at[sideV], s.per, 0); err != nil {
			s.have++
			return err
		}
	}
	s.have++
	return nil
}

// blankBytes returns the bytes of memory.blank.
func (c *memory) blankBytes() int64 { return int64(2 * pageTokens * c.geo.HeadDimV) }

// clear sets rows of V from one on to zero. Whole pages are attended to; what lies behind the last token gets no
// weight, but a NaN in it would bring a backend to add in another order.
func (c *memory) clear(at slot, rows, from int) error {
	row := 2 * c.geo.HeadDimV
	if rows == from {
		return nil
	}
	to := c.arena.at(at, int64(rows*row))
	return to.Buf.Upload(to.Off+int64(from*row), c.blank[:(rows-from)*row])
}

// dropPages frees the pages of an open segment from page n on.
func (c *memory) dropPages(s *segment, n int) error {
	for ; s.have > n; s.have-- {
		for i := range c.geo.Layers * c.geo.KVHeads {
			if err := c.free(&s.blocks[i*s.pages+s.have-1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// free releases the rows of a block.
func (c *memory) free(b *block) error {
	for _, p := range []*slot{&b.at[sideK], &b.at[sideV], &b.pos} {
		if err := c.arena.release(p); err != nil {
			return err
		}
	}
	*b = block{}
	return nil
}

// unref lets go of a segment and frees it if nothing else holds it.
func (c *memory) unref(s *segment) error {
	if s.refs--; s.refs > 0 {
		return nil
	}
	for i := range s.blocks {
		if err := c.free(&s.blocks[i]); err != nil {
			return err
		}
	}
	for i := range s.mean {
		if err := c.arena.release(&s.mean[i]); err != nil {
			return err
		}
	}
	c.led.give(forTables, c.segmentSize(s.pages))
	if s.room > 0 {
		return c.tables.give(s.room-1, c.roomSize(s.pages))
	}
	return nil
}

// recode is the job that codes 32 exact rows.
func (c *memory) recode(from, to slot, r rung, dim int) backend.EncodeJob {
	src := c.arena.at(from, int64(2*pageTokens*dim))
	return backend.EncodeJob{Src: src, DType: quant.Float16, Rows: pageTokens, Dim: dim,
		Dst: backend.Side{Coding: r.coding(), Seed: c.cfg.Seed,
			Data: c.arena.at(to, int64(r.coding().PackedBytes(pageTokens, dim)))}}
}

// exchange swaps the sides of a block with those of a spare that has them.
func (c *memory) exchange(b *block, sp *spare) {
	for side := range sides {
		if sp.at[side] != 0 {
			c.arena.swap(&b.at[side], &sp.at[side])
			b.rung[side], sp.rung[side] = sp.rung[side], b.rung[side]
		}
	}
}

// roomSize returns the indices of a segment in a table.
func (c *memory) roomSize(pages int) int { return c.geo.KVHeads * pages }

// segPages returns the pages of a segment.
func (c *memory) segPages() int { return c.cfg.Segment / pageTokens }

// copySlot gives owner a slot with the same bytes as another; nothing if that is none.
func (c *memory) copySlot(owner *slot, from slot) error {
	if from == 0 {
		return nil
	}
	if err := c.arena.alloc(from.class(), owner); err != nil {
		return err
	}
	n := c.arena.classes[from.class()].bytes
	return c.arena.move(c.arena.at(*owner, n), c.arena.at(from, n))
}
