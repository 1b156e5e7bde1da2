// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// How full a cache likes to be. Between steps pressure begins above high and ends below low, so that it
// works in batches; what a step needs is freed whatever these say.
const (
	high = 0.98
	low  = 0.96
	// startShare: see chooseStart.
	startShare = 2
	// openShare: see chooseStart.
	openShare = 0.5
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
	c       *Cache
	bytes   [buckets]int64 // freed by items of a price
	demote  [batch]backend.DemoteJob
	encode  [batch]backend.EncodeJob
	floats  backend.Buffer // of 8 sides of blocks that are coded from float32
	to      [batch]slot
	segs    [batch]*segment
	index   [batch]int32 // of the block in its segment
	center  centering
	side    [batch]uint8
	rung    [batch]rung
	n       int
	factor  []float64 // [sides, layers * kv_heads]: damage of an error of the whole row energy at mass 1
	out     []float64 // [layers * kv_heads]: energy of the head's output over the mean of its layer
	visited uint64
	owner   *Sequence // that eachSegment came to a segment by
	only    *Sequence // a hint concerns this one alone; nil: all
	fixed   bool      // tests hold the starting coding
}

// used returns the share of the budget that cannot be made slots of.
func (p *pressure) used() float64 {
	c := p.c
	return 1 - float64(c.arena.free())/float64(c.cfg.Budget)
}

// relieve makes room after a step, if the cache is fuller than it likes to be.
func (p *pressure) relieve() error {
	c := p.c
	p.chooseStart()
	if p.used() <= high {
		return nil
	}
	want := int64((1 - low) * float64(c.cfg.Budget))
	return p.demoteUntil(func() int64 { return want - c.arena.free() }, maxUnits)
}

// starts are the codings that pages may be packed at when they leave the window, finest first. Below the
// last, rows are demoted by what they are worth.
var starts = [][sides]rung{{f16, f16}, {u8, u8}, {lm4, lm4}, {lm4, lm3}, {lm3, lm3}, {lm3, lm2}, {lm2, lm2}, {lm1, lm1}}

// chooseStart picks the coding of pages that leave the window: the finest that two limits allow.
//
// Up to Config.Exact of the budget it is f16. Once left, f16 returns when half of that is free.
// Beyond that, a new row may take startShare times the average of all rows, because it is not weighed yet and
// what a coding loses does not come back. All open segments together may take openShare of the memory for old
// rows, so that new rows do not crowd out rows that are known to matter.
func (p *pressure) chooseStart() {
	c := p.c
	if p.fixed {
		return
	}
	used := p.used()
	if c.start == starts[0] && used <= c.cfg.Exact || used <= c.cfg.Exact/2 {
		c.start = starts[0]
		return
	}
	var exact, old, live int64
	for _, q := range c.seqs {
		if folded(q) {
			old += q.n
			continue
		}
		n := min(q.n, int64(c.cfg.Window+pageTokens))
		exact, old, live = exact+n, old+q.n-n, live+1
	}
	g := c.geo
	token := int64(2 * g.Layers * g.KVHeads * (g.HeadDim + g.HeadDimV))
	room := c.cfg.Budget - (c.led.held - c.led.by[forRows]) - exact*token
	blocks := max(1, old*int64(g.Layers*g.KVHeads)/pageTokens)
	open := live * int64(g.Layers*g.KVHeads*c.segPages())
	most := min(int64(startShare*float64(room/blocks)), int64(openShare*float64(room))/max(1, open))
	for _, r := range starts[1 : len(starts)-1] { // the last is for want of anything else
		c.start = r
		if c.sizes.bytes(sideK, r[sideK])+c.sizes.bytes(sideV, r[sideV]) <= most {
			return
		}
	}
}

// makeRoom frees memory until n[class] slots and other bytes fit.
func (p *pressure) makeRoom(ctx context.Context, n []int, other int64) error {
	c := p.c
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
		if err := p.demoteUntil(func() int64 { return goal - c.arena.free() }, math.MaxInt); err != nil {
			return c.broken(err)
		}
		if c.arena.free() <= before { // nothing was freed
			if shed, err := p.shed(); err != nil || !shed {
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
func (p *pressure) shed() (bool, error) {
	c := p.c
	n := len(c.steps)
	for _, s := range c.steps {
		if err := s.shed(); err != nil {
			return false, c.broken(err)
		}
	}
	c.steps = c.steps[:0]
	c.led.give(forScratch, int64(len(c.closings))*c.closingBytes())
	for _, w := range c.closings {
		if err := w.table.close(); err != nil {
			return false, c.broken(err)
		}
	}
	n += len(c.closings)
	c.closings = c.closings[:0]
	return n > 0, nil
}

// demoteUntil recodes rows, cheapest damage first, until missing reports nothing or the units are used up
// or there is nothing left to give.
func (p *pressure) demoteUntil(missing func() int64, units int) (err error) {
	if p.only == nil {
		if _, err := p.c.index.evict(p.c, missing); err != nil || missing() <= 0 {
			return err
		}
	}
	if _, err := foldIdle(p, &units); err != nil {
		return err
	}
	if err := p.reprice(); err != nil {
		return err
	}
	p.weighHeads()
	before := p.c.stats.Dropped
	defer func() {
		if e := p.reap(before); err == nil {
			err = e
		}
	}()
	for missing() > 0 && units > 0 {
		did, err := p.packLate(missing, &units)
		if err == nil && missing() > 0 && !did {
			did, err = p.demoteCheapest(missing, &units)
		}
		if errors.Is(err, quant.ErrFull) { // not even for the first batch
			return p.flush()
		}
		if err != nil {
			return err
		}
		if !did && (p.only != nil || !p.coarserStart()) {
			return nil
		}
	}
	return nil
}

// reap removes segments of which nothing is left, if blocks were dropped since before: a conversation that
// goes on for ever must not gather descriptors.
func (p *pressure) reap(before uint64) error {
	if p.c.stats.Dropped == before {
		return nil
	}
	if err := p.c.index.prune(p.c); err != nil {
		return err
	}
	for _, q := range p.c.seqs {
		if q.step != nil || q.held {
			continue
		}
		kept := q.segs[:0]
		for _, s := range q.segs {
			if !s.closed || s.sinks || !s.empty() {
				kept = append(kept, s)
				continue
			}
			if q.pinned {
				s.pinned--
			}
			if err := p.c.unref(s); err != nil {
				return err
			}
		}
		clear(q.segs[len(kept):])
		q.segs = kept
	}
	return nil
}

// coarserStart lowers the coding of pages that are not weighed yet: there is nothing else to give.
func (p *pressure) coarserStart() bool {
	c := p.c
	for i, r := range starts[:len(starts)-1] {
		if c.start == r {
			c.start = starts[i+1]
			return true
		}
	}
	return false
}

// packLate codes pages of open segments that left the window when finer codings were affordable.
func (p *pressure) packLate(missing func() int64, units *int) (did bool, err error) {
	c := p.c
	if c.start == starts[0] {
		c.start = starts[1]
	}
	p.countTenants()
	for _, q := range c.seqs {
		if q.step != nil || q.pinned || p.only != nil && p.only != q {
			continue
		}
		for _, s := range q.segs {
			if s.closed || s.sinks {
				continue
			}
			for i := 0; i < s.have && s.lo+int64((i+1)*s.per) <= q.left; i++ {
				for j := range c.geo.Layers * c.geo.KVHeads {
					b := &s.blocks[j*s.pages+i]
					for side := range sides {
						if b.rung[side] <= c.start[side] || *units <= 0 {
							continue
						}
						n := c.sizes.bytes(side, b.rung[side]) - c.sizes.bytes(side, c.start[side])
						if !p.mayTake(q, n) {
							continue
						}
						p.took(q, n)
						if err := p.change(s, j*s.pages+i, side, c.start[side], units); err != nil {
							return true, err
						}
						did = true
					}
				}
				if err := p.flush(); err != nil {
					return true, err
				}
				if missing() <= 0 {
					return true, nil
				}
			}
		}
	}
	return did, p.flush()
}

// demoteCheapest takes the steps of the least price that free what is missing. A side goes to its last such step
// at once: it is coded once, and a large demand takes no more from what matters than many small ones do.
func (p *pressure) demoteCheapest(missing func() int64, units *int) (did bool, err error) {
	p.countTenants()
	p.bytes = [buckets]int64{}
	p.eachBlock(func(s *segment, i int) bool {
		p.eachStep(&s.blocks[i], i/s.pages, func(_ int, to rung, price float64, n int64) bool {
			if p.mayTake(p.owner, n) {
				p.bytes[p.rank(s, to, price)] += n
			}
			return true
		})
		return true
	})
	most, sum := -1, int64(0)
	for i, n := range p.bytes {
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
	for i := most - 1; p.c.cfg.Shared != nil && most == buckets-1 && i >= 0; i-- { // all else before what is published
		if p.bytes[i] > 0 {
			most = i
		}
	}
	p.eachBlock(func(s *segment, i int) bool {
		b := &s.blocks[i]
		to, sum := b.rung, int64(0)
		p.eachStep(b, i/s.pages, func(side int, r rung, price float64, n int64) bool {
			if p.rank(s, r, price) > most || !p.mayTake(p.owner, sum+n) {
				return false
			}
			to[side], sum = r, sum+n
			p.c.stats.Damage += price * float64(n)
			return true
		})
		if to == b.rung {
			return true
		}
		did = true
		p.took(p.owner, sum)
		if to[sideK] == gone {
			err = p.change(s, i, sideK, gone, units)
		}
		for side := range sides {
			if err == nil && to[sideK] != gone && to[side] != b.rung[side] {
				err = p.change(s, i, side, to[side], units)
			}
		}
		return err == nil && *units > 0 && (p.n > 0 || missing() > 0)
	})
	if e := p.flush(); err == nil {
		err = e
	}
	return did, err
}
