// SPDX-License-Identifier: Apache-2.0

// Package slab holds the memory of buffers outside of the Go heap. The heap keeps up to as much
// garbage as live memory, and it gives pages back late. A slab gives them back when they are freed.
// Only package cpu uses it.
//
// # Concepts
//
// A Pool maps arenas of 64 MiB and cuts them into pieces, at the lowest address first. A piece of
// more than 16 KiB is a range of its own arena. Smaller ones share runs: a run is such a range, cut
// into slots of one size. Sizes of slots are at most a sixteenth apart. A piece of more than 16 MiB
// is a mapping of its own.
//
// A free range of an arena is always zero. When a piece is freed, the system takes back the pages
// that no other piece touches, and what is left of it is cleared. An arena without pieces is
// unmapped, except for one.
//
// Arenas have no huge pages. A huge page would stay resident for the last of its pieces, and the
// system may merge pages that were given back into huge ones.
//
// Memory is mapped on Linux. Elsewhere pieces are slices of the heap.
//
// # Errors
//
// Alloc returns the system's error if it maps no more memory. Freeing a piece twice panics or
// corrupts the pool: package cpu frees each piece once.
//
// # Concurrency
//
// A Pool is not safe for concurrent use.
package slab

import (
	"fmt"
	"os"
	"unsafe"
)

// Align is the alignment of a piece: a cache line, and the widest vector register.
const Align = 64

const (
	arenaBytes = 64 << 20
	// ownMost is the largest piece in an arena. So no arena stays mostly unused behind one piece.
	ownMost = 16 << 20
	// slotMost is the largest slot, runBytes the size of a run.
	slotMost = 16 << 10
	runBytes = 64 << 10
)

// Piece is allocated memory.
type Piece struct {
	Mem   []byte // zero when allocated; its capacity is its length
	arena *arena // the arena of a range, of its own or of a run
	run   *run   // nil for other pieces than slots
	at    int    // offset in the arena, or index of the slot
	whole []byte // a mapping of its own
}

// Pool allocates pieces. The zero value is ready to use.
type Pool struct {
	arenas []*arena
	wholes map[*byte][]byte    // mappings of single pieces
	slots  [slotClasses][]*run // runs with a free slot, by class
	mapped int64
}

// Mapped returns the number of bytes of address space that the pool has.
func (p *Pool) Mapped() int64 { return p.mapped }

// Alloc returns a zeroed piece of n bytes. n is not negative.
func (p *Pool) Alloc(n int) (Piece, error) {
	size := (n + Align - 1) &^ (Align - 1)
	switch {
	case !canMap:
		return Piece{Mem: heapBytes(n)}, nil
	case size == 0:
		return Piece{Mem: []byte{}}, nil
	case size > ownMost:
		return p.allocWhole(n)
	case size > slotMost:
		a, at, err := p.allocRange(size)
		if err != nil {
			return Piece{}, err
		}
		return Piece{Mem: a.mem[at : at+n : at+n], arena: a, at: at}, nil
	}
	return p.allocSlot(n)
}

// Free gives a piece back. Nothing may use its memory any more.
func (p *Pool) Free(m Piece) {
	switch {
	case m.whole != nil:
		p.mapped -= int64(len(m.whole))
		delete(p.wholes, &m.whole[0])
		unmapMemory(m.whole)
	case m.run != nil:
		p.freeSlot(m.run, m.at)
	case m.arena != nil:
		p.freeRange(m.arena, m.at, (len(m.Mem)+Align-1)&^(Align-1))
	}
}

// Close unmaps everything. Nothing may use a piece any more.
func (p *Pool) Close() {
	for _, mem := range p.wholes {
		unmapMemory(mem)
	}
	for _, a := range p.arenas {
		unmapMemory(a.mem)
	}
	*p = Pool{}
}

// heapBytes returns aligned memory of the heap.
func heapBytes(n int) []byte {
	raw := make([]byte, n+Align)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (Align - 1)
	return raw[off : off+n : off+n]
}

func (p *Pool) allocWhole(n int) (Piece, error) {
	mem, err := p.mapBytes(n)
	if err != nil {
		return Piece{}, err
	}
	if p.wholes == nil {
		p.wholes = map[*byte][]byte{}
	}
	p.wholes[&mem[0]] = mem
	return Piece{Mem: mem[:n:n], whole: mem}, nil
}

// mapBytes maps at least n bytes.
func (p *Pool) mapBytes(n int) ([]byte, error) {
	size := (n + pageBytes - 1) &^ (pageBytes - 1)
	mem, err := mapMemory(size)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", size, err)
	}
	p.mapped += int64(size)
	return mem, nil
}

// pageBytes is the size of a page, a power of two.
var pageBytes = os.Getpagesize()
