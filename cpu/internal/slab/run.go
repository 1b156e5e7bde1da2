// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"math/bits"
	"slices"
)

// Slots have a multiple of Align bytes. Up to steps*Align every multiple is a class, above that
// there are steps classes between a power of two and the next.
const (
	steps       = 16
	slotClasses = steps + 4*steps // up to slotMost
)

// classOf returns the class of slots for n bytes, 1 to slotMost, and their size.
func classOf(n int) (class, size int) {
	if n <= steps*Align {
		class = (n - 1) / Align
		return class, (class + 1) * Align
	}
	octave := bits.Len(uint((n - 1) / (steps * Align))) // 1 and up
	step := Align << (octave - 1)
	i := (n - 1 - steps*step) / step
	return octave*steps + i, (steps + i + 1) * step
}

// run is a range of an arena that is cut into slots.
type run struct {
	arena   *arena
	at      int // offset in the arena
	class   int
	size    int // bytes of a slot
	count   int
	used    int        // slots in use
	touched int        // no slot from here on was ever in use, so that all are zero
	taken   [16]uint64 // a bit for every slot in use
	open    bool       // listed in Pool.slots
}

// maxSlots is the most slots in a run.
const maxSlots = 16 * 64

func (p *Pool) allocSlot(n int) (Piece, error) {
	class, size := classOf(n)
	if len(p.slots[class]) == 0 {
		r := &run{class: class, size: size, count: min(runBytes/size, maxSlots), open: true}
		var err error
		if r.arena, r.at, err = p.allocRange(r.count * size); err != nil {
			return Piece{}, err
		}
		p.slots[class] = append(p.slots[class], r)
	}
	r := p.slots[class][0]
	i := r.firstFree()
	r.taken[i/64] |= 1 << (i % 64)
	r.used++
	if r.used == r.count {
		p.slots[class] = p.slots[class][1:]
		r.open = false
	}
	at := r.at + i*size
	mem := r.arena.mem[at : at+n : at+n]
	if i < r.touched {
		clear(mem)
	}
	r.touched = max(r.touched, i+1)
	return Piece{Mem: mem, run: r, at: i}, nil
}

// firstFree returns the first free slot of a run that has one.
func (r *run) firstFree() int {
	w := 0
	for r.taken[w] == ^uint64(0) {
		w++
	}
	return 64*w + bits.TrailingZeros64(^r.taken[w])
}

func (p *Pool) freeSlot(r *run, i int) {
	r.taken[i/64] &^= 1 << (i % 64)
	r.used--
	list := &p.slots[r.class]
	if r.used == 0 {
		if r.open {
			*list = slices.DeleteFunc(*list, func(x *run) bool { return x == r })
		}
		p.freeRange(r.arena, r.at, r.count*r.size)
		return
	}
	if !r.open {
		r.open = true
		// The fullest run is used first: of late it was full.
		*list = slices.Insert(*list, 0, r)
	}
}
