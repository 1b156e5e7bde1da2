// SPDX-License-Identifier: Apache-2.0

package slab

import "slices"

// arena is a mapping that is cut into ranges. free holds the free ranges in order; no two touch.
type arena struct {
	mem  []byte
	free []span
	most int // no free range is larger; it may be less than that
}

// span is the bytes [from, to) of an arena.
type span struct{ from, to int }

func (s span) len() int { return s.to - s.from }

// allocRange takes a range from the first arena and address that has room.
func (p *Pool) allocRange(size int) (*arena, int, error) {
	for _, a := range p.arenas {
		if at := a.take(size); at >= 0 {
			return a, at, nil
		}
	}
	mem, err := p.mapBytes(arenaBytes)
	if err != nil {
		return nil, 0, err
	}
	smallPages(mem)
	a := &arena{mem: mem, free: []span{{0, arenaBytes}}, most: arenaBytes}
	p.arenas = append(p.arenas, a)
	return a, a.take(size), nil
}

// take returns the offset of a new range, or -1.
func (a *arena) take(size int) int {
	if size > a.most {
		return -1
	}
	most := 0
	for i := range a.free {
		f := &a.free[i]
		if f.len() < size {
			most = max(most, f.len())
			continue
		}
		at := f.from
		if f.from += size; f.len() == 0 {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return at
	}
	a.most = most // every range was looked at
	return -1
}

// freeRange frees size bytes at an offset of an arena.
func (p *Pool) freeRange(a *arena, at, size int) {
	a.give(span{at, at + size})
	if len(a.free) != 1 || a.free[0].len() != len(a.mem) {
		return
	}
	for _, other := range p.arenas {
		if other != a && len(other.free) == 1 && other.free[0].len() == len(other.mem) {
			p.arenas = slices.DeleteFunc(p.arenas, func(x *arena) bool { return x == a })
			p.mapped -= int64(len(a.mem))
			unmapMemory(a.mem)
			return
		}
	}
}

// give makes a range free and zero.
func (a *arena) give(s span) {
	i, _ := slices.BinarySearchFunc(a.free, s.from, func(f span, at int) int { return f.from - at })
	all := s // with the free ranges beside it
	from, to := i, i
	if i > 0 && a.free[i-1].to == s.from {
		from, all.from = i-1, a.free[i-1].from
	}
	if i < len(a.free) && a.free[i].from == s.to {
		to, all.to = i+1, a.free[i].to
	}
	a.free = slices.Replace(a.free, from, to, all)
	a.most = max(a.most, all.len())
	// The pages that have a byte of s and are now free as a whole.
	low := max((all.from+pageBytes-1)&^(pageBytes-1), s.from&^(pageBytes-1))
	high := min(all.to&^(pageBytes-1), (s.to+pageBytes-1)&^(pageBytes-1))
	if low >= high || !releaseMemory(a.mem[low:high]) {
		clear(a.mem[s.from:s.to])
		return
	}
	clear(a.mem[s.from:max(low, s.from)])
	clear(a.mem[min(high, s.to):s.to])
}
