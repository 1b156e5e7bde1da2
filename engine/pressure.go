// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// How full a cache likes to be. Between steps pressure begins above high and ends below low, so that it
// works in batches; what a step needs is freed whatever these say.
const (
	high = 0.98
	low  = 0.96
	// maxUnits bounds the work after a step. A unit recodes, merges or drops the rows of one side of a block.
	maxUnits = 4096
	// batch is how many units one call to the backend does.
	batch = 64
	// reserveRuns are left for pressure to work with: a class that the demoted rows need may have no
	// slot left.
	reserveRuns = 4
)

// buckets divide prices: 4 an octave, from 2^-64 up. One histogram finds the price below which enough bytes
// are freed, so that no list of all items is held.
const (
	buckets       = 512
	bucketsOctave = 4
	lowestPrice   = -64
)

// pressure is the scratch memory of demotion.
type pressure struct {
	bytes   [buckets]int64 // freed by items of a price
	demote  [batch]backend.DemoteJob
	encode  [batch]backend.EncodeJob
	to      [batch]slot
	blocks  [batch]*block
	side    [batch]uint8
	rung    [batch]rung
	n       int
	factor  []float64 // [sides, layers * kv_heads]: damage of an error of the whole row energy at mass 1
	count   []float64
	floor   []float64 // [layers * kv_heads]: attention that every row is taken to get at least
	visited uint64
}

// used returns the share of the budget that cannot be made slots of.
func (c *Cache) used() float64 {
	return 1 - float64(c.arena.free())/float64(c.cfg.Budget)
}

// relieve makes room after a step, if the cache is fuller than it likes to be.
func (c *Cache) relieve() error {
	c.chooseStart()
	if c.used() <= high {
		return nil
	}
	want := int64((1 - low) * float64(c.cfg.Budget))
	return c.demoteUntil(func() int64 { return want - c.arena.free() }, maxUnits)
}

// starts are the codings that pages may be packed at when they leave the window, finest first. Below the
// last, rows are demoted by what they are worth.
var starts = [][sides]rung{{f16, f16}, {lm4, lm4}, {lm4, lm3}, {lm3, lm3}, {lm3, lm2}, {lm2, lm2}}

// chooseStart picks the coding of pages that leave the window. Rows stay f16 up to Config.Exact of the
// budget, and are again when half of that is free. Above it, the open segments of all sequences shall take an eighth of the budget at most: rows
// that are not weighed yet must not crowd out those that are known to matter.
func (c *Cache) chooseStart() {
	used := c.used()
	if c.start == starts[0] && used <= c.cfg.Exact || used <= c.cfg.Exact/2 {
		c.start = starts[0]
		return
	}
	blocks := int64(len(c.seqs) * c.geo.Layers * c.geo.KVHeads * c.segPages())
	for _, r := range starts[1:] {
		c.start = r
		if blocks*(c.sizes.bytes(sideK, r[sideK])+c.sizes.bytes(sideV, r[sideV])) <= c.cfg.Budget/8 {
			return
		}
	}
}

// makeRoom frees memory until n[class] slots and other bytes fit.
func (c *Cache) makeRoom(ctx context.Context, n []int, other int64) error {
	other += reserveRuns * c.arena.runBytes
	for !c.arena.room(n, other) {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := c.arena.free()
		if err := c.arena.shrink(other); err != nil {
			return c.broken(err)
		}
		if c.arena.room(n, other) {
			return nil
		}
		need := other + c.arena.runBytes
		for cl, k := range n {
			need += int64(c.arena.runsFor(cl, k)) * c.arena.runBytes
		}
		// The step may need slots of a class although other classes have room: ask for more than is free.
		want := max(need-c.arena.free(), c.arena.runBytes)
		goal := c.arena.free() + want
		if err := c.demoteUntil(func() int64 { return goal - c.arena.free() }, math.MaxInt); err != nil {
			return c.broken(err)
		}
		if c.arena.free() <= before { // nothing was freed
			if shed, err := c.shed(); err != nil || !shed {
				if err == nil {
					err = errNoRoom
				}
				return err
			}
		}
	}
	return nil
}

// shed frees the memory of unused steps. It reports whether there were any.
func (c *Cache) shed() (bool, error) {
	n := len(c.steps)
	for _, s := range c.steps {
		if err := s.shed(); err != nil {
			return false, c.broken(err)
		}
	}
	c.steps = c.steps[:0]
	c.led.give(forScratch, int64(len(c.closings))*c.closingBytes())
	n += len(c.closings)
	c.closings = c.closings[:0]
	return n > 0, nil
}

// demoteUntil recodes rows, cheapest damage first, until missing reports nothing or the units are used up
// or there is nothing left to give.
func (c *Cache) demoteUntil(missing func() int64, units int) error {
	if err := c.reprice(); err != nil {
		return err
	}
	c.weighHeads()
	for missing() > 0 && units > 0 {
		did, err := c.packLate(missing, &units)
		if err == nil && missing() > 0 && !did {
			did, err = c.demoteCheapest(missing, &units)
		}
		if err != nil {
			return err
		}
		if !did {
			return nil
		}
	}
	return nil
}

// packLate codes pages that left the window when rows were still kept exact.
func (c *Cache) packLate(missing func() int64, units *int) (did bool, err error) {
	if c.start == starts[0] {
		c.start = starts[1]
	}
	for _, q := range c.seqs {
		if q.step != nil {
			continue
		}
		for _, s := range q.segs {
			if s.closed || s.sinks {
				continue
			}
			for p := 0; p < s.have && s.lo+int64((p+1)*s.per) <= q.left; p++ {
				for i := range c.geo.Layers * c.geo.KVHeads {
					b := &s.blocks[i*s.pages+p]
					for side := range sides {
						if b.rung[side] != f16 || *units <= 0 {
							continue
						}
						if err := c.change(b, side, c.start[side], units); err != nil {
							return true, err
						}
						did = true
					}
				}
				if err := c.flush(); err != nil {
					return true, err
				}
				if missing() <= 0 {
					return true, nil
				}
			}
		}
	}
	return did, c.flush()
}

// demoteCheapest does the items of the least price that free what is missing.
func (c *Cache) demoteCheapest(missing func() int64, units *int) (did bool, err error) {
	w := &c.pressure
	w.bytes = [buckets]int64{}
	c.eachItem(func(b *block, side, head int) bool {
		w.bytes[bucket(c.priceOf(b, side, head))] += c.frees(b, side)
		return true
	})
	most, sum := -1, int64(0)
	for i, n := range w.bytes {
		if n > 0 {
			most = i
		}
		if sum += n; sum >= missing() {
			break
		}
	}
	if most < 0 {
		return false, nil
	}
	c.eachItem(func(b *block, side, head int) bool {
		if bucket(c.priceOf(b, side, head)) > most {
			return true
		}
		did = true
		if err = c.change(b, side, c.next(b, side), units); err != nil {
			return false
		}
		return *units > 0 && (w.n > 0 || missing() > 0)
	})
	if e := c.flush(); err == nil {
		err = e
	}
	return did, err
}

// eachItem calls f for every side of a closed block that can go down, until f returns false. The order
// depends on the order of sequences and segments only.
func (c *Cache) eachItem(f func(b *block, side, head int) bool) {
	stop := false
	c.eachSegment(func(s *segment) {
		for i := 0; i < len(s.blocks) && !stop; i++ {
			b := &s.blocks[i]
			for side := range sides {
				if b.at[sideK] != 0 && c.frees(b, side) > 0 && !stop {
					stop = !f(b, side, i/s.pages)
				}
			}
		}
	})
}

// next returns the rung that a side goes down to. Rows are dropped as a whole: K goes last.
func (c *Cache) next(b *block, side int) rung { return b.rung[side] - 1 }

// frees returns the bytes that the next demotion of a side frees, 0 if there is none.
func (c *Cache) frees(b *block, side int) int64 {
	r := b.rung[side]
	if r == lm1 {
		if side == sideV || b.rung[sideV] != lm1 {
			return 0
		}
		return c.sizes.bytes(sideK, lm1) + c.sizes.bytes(sideV, lm1) + c.sizes.classes[c.sizes.pos]
	}
	return c.sizes.bytes(side, r) - c.sizes.bytes(side, r-1)
}

// change lists a unit: side of b goes to a rung. Full batches are done at once.
func (c *Cache) change(b *block, side int, to rung, units *int) error {
	*units--
	c.stats.Units++
	if to == gone {
		if err := c.flush(); err != nil { // b may be among the jobs
			return err
		}
		c.stats.Dropped++
		return c.free(b)
	}
	w := &c.pressure
	for i := range w.n {
		if w.blocks[i] == b && int(w.side[i]) == side {
			if err := c.flush(); err != nil {
				return err
			}
			break
		}
	}
	cl := c.sizes.class[side][to]
	if err := c.arena.alloc(cl, &w.to[w.n]); err != nil {
		if w.n == 0 {
			return err
		}
		if err := c.flush(); err != nil { // that frees slots
			return err
		}
		if err := c.arena.alloc(cl, &w.to[0]); err != nil {
			return err
		}
	}
	w.blocks[w.n], w.side[w.n] = b, uint8(side)
	w.rung[w.n] = to
	if w.n++; w.n == batch {
		return c.flush()
	}
	return nil
}

// flush recodes the rows of the listed units and frees what they took before.
func (c *Cache) flush() error {
	w := &c.pressure
	if w.n == 0 {
		return nil
	}
	enc, dem := w.encode[:0], w.demote[:0]
	for i := range w.n {
		b, side := w.blocks[i], int(w.side[i])
		dim, to := c.sizes.dim[side], w.rung[i]
		rows := pageTokens
		if b.pos != 0 {
			rows = int(b.rows)
		}
		dst := c.arena.at(w.to[i], int64(to.coding().PackedBytes(rows, dim)))
		from := c.side(b, side, rows)
		if b.rung[side] == f16 {
			enc = append(enc, backend.EncodeJob{Src: from.Data, DType: quant.Float16, Rows: rows, Dim: dim,
				Dst: backend.Side{Coding: to.coding(), Seed: c.cfg.Seed, Data: dst}})
			continue
		}
		dem = append(dem, backend.DemoteJob{Src: from, To: to.coding(), Rows: rows, Dim: dim, Dst: dst})
	}
	ctx := context.Background() // what has begun is not cancelled
	err := c.be.Encode(ctx, enc)
	if err == nil {
		err = c.be.Demote(ctx, dem)
	}
	clear(enc)
	clear(dem)
	for i := range w.n {
		b, side := w.blocks[i], int(w.side[i])
		if err == nil {
			c.arena.swap(&b.at[side], &w.to[i])
			b.rung[side] = w.rung[i]
		}
		if e := c.arena.release(&w.to[i]); err == nil {
			err = e
		}
		w.blocks[i] = nil
	}
	w.n = 0
	return err
}

// refuse counts and logs a refusal.
func (c *Cache) refuse(call string, seq uint64, err error) {
	c.stats.Refusals++
	if c.cfg.Logger != nil {
		c.cfg.Logger.Warn("kvist: "+call+" refused", "sequence", seq, "error", err, "held", c.led.held,
			"budget", c.led.budget)
	}
}

const pressureBytes = int64(unsafe.Sizeof(pressure{}))
