// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// slot names a piece of memory: a class of equal sizes in the high bits, and a number in the class. The
// zero slot is none.
type slot uint32

const (
	slotBits = 25            // of the number
	fresh    = slot(1) << 31 // the piece is another one than before; see tables
)

func (s slot) class() int  { return int(s&^fresh>>slotBits) - 1 }
func (s slot) number() int { return int(s & (1<<slotBits - 1)) }

// arena sub-allocates slabs of backend memory without fragmentation. Slots of one size form a class, and
// the slots of a class are dense: a freed one is filled with the last one, whose owner is told. So a
// class wastes less than one run, whatever is freed in whatever order, and what a demotion frees can
// be used for rows of any other coding.
//
// Slabs are cut into runs of equal size, and a class takes whole runs. Runs can be moved too, so that
// slabs that are hardly used can be emptied and freed.
type arena struct {
	be       backend.Backend
	led      *ledger
	runBytes int64
	slabRuns int
	slabs    []*slab
	spare    []place // unused runs; there is room for all runs
	total    int     // runs of all slabs
	classes  []class
	tmp      []byte        // a run
	changes  atomic.Uint64 // of slots that blocks hold
}

type slab struct {
	buf  backend.Buffer
	runs int
	used int
}

type place struct {
	slab *slab
	off  int64
}

// class is the slots of one size.
type class struct {
	bytes  int64
	perRun int
	runs   []place
	n      int     // slots in use: numbers [0, n)
	owners []*slot // by number: the variable that holds the slot
}

const slabOverhead = int64(unsafe.Sizeof(slab{})) + 64 // and the backend's handle

func newArena(be backend.Backend, led *ledger, runBytes int64, slabRuns int, sizes []int64) *arena {
	a := &arena{be: be, led: led, runBytes: runBytes, slabRuns: slabRuns}
	for _, n := range sizes {
		n = (n + 15) &^ 15 // packed sides start on 16 bytes
		a.classes = append(a.classes, class{bytes: n, perRun: int(runBytes / n)})
	}
	return a
}

// alloc gives a slot of a class to owner, which must be 0 and must stay where it is.
func (a *arena) alloc(cl int, owner *slot) error {
	c := &a.classes[cl]
	if c.n == len(c.runs)*c.perRun {
		if err := a.addRun(c); err != nil {
			return err
		}
	}
	*owner = slot(cl+1)<<slotBits | slot(c.n) | fresh
	a.changes.Add(1)
	c.owners = append(c.owners, owner)
	c.n++
	return nil
}

// addRun gives a class one more run, with room for its owners.
func (a *arena) addRun(c *class) error {
	if (len(c.runs)+1)*c.perRun > 1<<slotBits {
		return fmt.Errorf("%d slots of %d bytes are the most of a cache: %w", c.n, c.bytes, quant.ErrTooLarge)
	}
	if len(a.spare) == 0 {
		if err := a.addSlab(); err != nil {
			return err
		}
	}
	var ok bool
	if c.owners, ok = grown(a.led, forTables, c.owners, (len(c.runs)+1)*c.perRun); !ok {
		return errNoRoom
	}
	if c.runs, ok = grown(a.led, forTables, c.runs, len(c.runs)+1); !ok {
		return errNoRoom
	}
	r := a.spare[len(a.spare)-1]
	a.spare = a.spare[:len(a.spare)-1]
	r.slab.used++
	c.runs = append(c.runs, r)
	return nil
}

// errNoRoom says that the budget is used up. Callers make room and try again, or report quant.ErrFull.
var errNoRoom = fmt.Errorf("the budget is used up: %w", quant.ErrFull)

// addSlab takes the memory of a slab, or what is left of the budget if that is less.
func (a *arena) addSlab() error {
	var ok bool
	if a.spare, ok = grown(a.led, forTables, a.spare, a.total+a.slabRuns); !ok {
		return errNoRoom
	}
	runs := a.slabRuns
	if left := (a.led.left() - slabOverhead) / a.runBytes; left < int64(runs) {
		runs = int(left)
	}
	if runs <= 0 {
		return errNoRoom
	}
	n := int64(runs) * a.runBytes
	if !a.led.take(forRows, n+slabOverhead) {
		return errNoRoom
	}
	buf, err := a.be.Alloc(n)
	if err != nil {
		a.led.give(forRows, n+slabOverhead)
		return fmt.Errorf("a slab of %d bytes: %w", n, err)
	}
	s := &slab{buf: buf, runs: runs}
	a.total += runs
	a.slabs = append(a.slabs, s)
	for i := runs - 1; i >= 0; i-- {
		a.spare = append(a.spare, place{s, int64(i) * a.runBytes})
	}
	return nil
}

// at returns the memory of a slot: its first n bytes.
func (a *arena) at(s slot, n int64) backend.Span {
	c := &a.classes[s.class()]
	i := s.number()
	r := c.runs[i/c.perRun]
	return backend.Span{Buf: r.slab.buf, Off: r.off + int64(i%c.perRun)*c.bytes, Len: n}
}

// release frees the slot that owner holds, and sets it to 0. It moves the last slot of the class into
// the hole.
func (a *arena) release(owner *slot) error {
	s := *owner
	if s == 0 {
		return nil
	}
	c := &a.classes[s.class()]
	last := c.n - 1
	if i := s.number(); i != last {
		from := s&^(1<<slotBits-1) | slot(last)
		if err := a.move(a.at(s, c.bytes), a.at(from, c.bytes)); err != nil {
			return err
		}
		c.owners[i] = c.owners[last]
		*c.owners[i] = s | fresh
		a.changes.Add(1)
	}
	c.owners[last] = nil
	c.owners = c.owners[:last]
	c.n = last
	*owner = 0
	if keep := (c.n + c.perRun - 1) / c.perRun; keep < len(c.runs) {
		r := c.runs[keep]
		c.runs[keep] = place{}
		c.runs = c.runs[:keep]
		return a.freeRun(r)
	}
	return nil
}

func (a *arena) move(dst, src backend.Span) error {
	if a.tmp == nil {
		a.tmp = make([]byte, a.runBytes)
	}
	if err := src.Buf.Download(src.Off, a.tmp[:src.Len]); err != nil {
		return err
	}
	return dst.Buf.Upload(dst.Off, a.tmp[:src.Len])
}

// freeRun makes a run usable for any class, and frees its slab if nothing else is in it. One slab's worth
// of runs is kept, so that a cache at the edge of a slab does not allocate and free in turns.
func (a *arena) freeRun(r place) error {
	r.slab.used--
	a.spare = append(a.spare, r)
	if r.slab.used == 0 && len(a.spare) >= 2*r.slab.runs {
		return a.freeSlab(r.slab)
	}
	return nil
}

// freeSlab frees a slab of which no run is used.
func (a *arena) freeSlab(s *slab) error {
	kept := a.spare[:0]
	for _, r := range a.spare {
		if r.slab != s {
			kept = append(kept, r)
		}
	}
	clear(a.spare[len(kept):])
	a.spare = kept
	for i := range a.slabs {
		if a.slabs[i] == s {
			a.slabs = append(a.slabs[:i], a.slabs[i+1:]...)
			break
		}
	}
	a.total -= s.runs
	a.led.give(forRows, int64(s.runs)*a.runBytes+slabOverhead)
	return s.buf.Free()
}

// swap exchanges two slots and their owners.
func (a *arena) swap(x, y *slot) {
	*x, *y = *y, *x
	for _, p := range []*slot{x, y} {
		if *p != 0 {
			a.classes[p.class()].owners[p.number()] = p
			*p |= fresh
		}
	}
	a.changes.Add(1)
}

// free returns the bytes that slots can be made of without other memory being freed: unused runs and
// the rest of the budget.
func (a *arena) free() int64 { return int64(len(a.spare))*a.runBytes + a.led.left() }

// runsFor returns how many more runs a class needs for n more slots.
func (a *arena) runsFor(cl, n int) int {
	c := &a.classes[cl]
	need := (c.n + n + c.perRun - 1) / c.perRun
	return max(0, need-len(c.runs))
}

// room reports whether n[class] more slots fit beside other bytes outside of slabs.
func (a *arena) room(n []int, other int64) bool {
	runs, owners := 0, int64(0)
	for cl, k := range n {
		if k == 0 {
			continue
		}
		r := a.runsFor(cl, k)
		runs += r
		c := &a.classes[cl]
		if want := (len(c.runs) + r) * c.perRun; want > cap(c.owners) {
			// grown may hold the old and the new owners at once.
			owners += int64(slack(want)) * int64(unsafe.Sizeof((*slot)(nil)))
		}
		if want := len(c.runs) + r; want > cap(c.runs) {
			owners += int64(slack(want)) * int64(unsafe.Sizeof(place{}))
		}
	}
	left := a.led.left() - other - owners
	if left < 0 {
		return false
	}
	more := max(0, runs-len(a.spare))
	if more == 0 {
		return true
	}
	slabs := int64((more + a.slabRuns - 1) / a.slabRuns)
	table := int64(slack(a.total+more+a.slabRuns)) * int64(unsafe.Sizeof(place{}))
	return int64(more)*a.runBytes+slabs*slabOverhead+table <= left
}

// prepare takes the memory of n[class] more slots, tables first, so that alloc cannot fail for them. room
// tells whether it can.
func (a *arena) prepare(n []int) error {
	ok, runs := true, 0
	for cl, k := range n {
		c, r := &a.classes[cl], a.runsFor(cl, k)
		if r == 0 {
			continue
		}
		runs += r
		if c.owners, ok = grown(a.led, forTables, c.owners, (len(c.runs)+r)*c.perRun); !ok {
			return errNoRoom
		}
		if c.runs, ok = grown(a.led, forTables, c.runs, len(c.runs)+r); !ok {
			return errNoRoom
		}
	}
	for len(a.spare) < runs {
		if err := a.addSlab(); err != nil {
			return err
		}
	}
	return nil
}

// shrink empties slabs and frees them until other bytes of the budget are left, or no slab can be
// emptied. It moves the runs of the slab that has the fewest.
func (a *arena) shrink(other int64) error {
	for a.led.left() < other {
		var least *slab
		for _, s := range a.slabs {
			if least == nil || s.used < least.used {
				least = s
			}
		}
		if least == nil || len(a.spare)-(least.runs-least.used) < least.used {
			return nil
		}
		if err := a.empty(least); err != nil {
			return err
		}
	}
	return nil
}

// empty moves the used runs of a slab to unused runs of others, and frees it.
func (a *arena) empty(s *slab) error {
	free := 0
	for i := range a.classes {
		c := &a.classes[i]
		for j := range c.runs {
			if c.runs[j].slab != s {
				continue
			}
			for a.spare[free].slab == s {
				free++
			}
			to := a.spare[free]
			if err := a.move(backend.Span{Buf: to.slab.buf, Off: to.off, Len: a.runBytes},
				backend.Span{Buf: s.buf, Off: c.runs[j].off, Len: a.runBytes}); err != nil {
				return err
			}
			a.spare[free], c.runs[j] = c.runs[j], to
			for k := j * c.perRun; k < min((j+1)*c.perRun, c.n); k++ {
				*c.owners[k] |= fresh
			}
			a.changes.Add(1)
			to.slab.used++
			s.used--
			free++
		}
	}
	return a.freeSlab(s)
}

// close frees every slab.
func (a *arena) close() (err error) {
	for _, s := range a.slabs {
		if e := s.buf.Free(); err == nil {
			err = e
		}
	}
	a.slabs, a.spare, a.classes = nil, nil, nil
	return err
}
