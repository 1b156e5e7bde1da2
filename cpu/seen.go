// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"encoding/binary"

	"github.com/kvist-project/kvist/cpu/internal/attend"
)

// see computes which query sees which row.
func (s *scorer) see(r0, n int) bool {
	all := uint32(1<<uint(n) - 1)
	if s.blk.form.Key.Limit > 0 {
		all = s.below(r0, n)
	}
	if s.p.Pos == nil || all == 0 {
		for i := range s.seen {
			s.seen[i] = all
		}
		return len(s.seen) > 0 && all != 0
	}
	least, most := s.bounds(r0, n)
	if s.seeAll(least, most) {
		for i := range s.seen {
			s.seen[i] = all
		}
		return true
	}
	least, most = s.positions(r0, n)
	var any uint32
	for i, q := range s.qs {
		at, window := s.p.Pos[q], s.p.Window
		var mask uint32
		if at >= most && (window == 0 || at-least < window) {
			mask = all
		} else if at >= least {
			s.fillPositions(r0, n)
			for r, pos := range s.pos[:n] {
				if d := at - pos; d >= 0 && (window == 0 || d < window) {
					mask |= 1 << r
				}
			}
			mask &= all
		}
		s.seen[i] = mask
		any |= mask
	}
	return any != 0
}

// place returns the position of row r relative to the block's base.
func (w *blockView) place(r int) int64 {
	switch {
	case w.pos != nil:
		return int64(binary.LittleEndian.Uint16(w.pos[2*r:]))
	case w.form.Key.Stride > 1:
		return int64(r) * int64(w.form.Key.Stride)
	}
	return int64(r)
}

// below returns the mask of the rows before the block's limit.
func (s *scorer) below(r0, n int) (mask uint32) {
	limit := int64(s.blk.form.Key.Limit)
	if s.blk.pos == nil && s.blk.place(r0+n-1) < limit {
		return uint32(1<<uint(n) - 1)
	}
	for i := range n {
		if s.blk.place(r0+i) < limit {
			mask |= 1 << i
		}
	}
	return mask
}

// bounds returns a position that no row of [r0, r0+n) comes before, and one that none comes after.
func (s *scorer) bounds(r0, n int) (least, most int64) {
	b := &s.blk
	if b.pos == nil {
		return b.base + b.place(r0), b.base + b.place(r0+n-1)
	}
	lo, hi := attend.Bounds16(b.pos[2*r0 : 2*(r0+n)])
	return b.base + int64(lo), b.base + int64(hi)
}

// seeAll reports whether every query sees every position from least to most.
func (s *scorer) seeAll(least, most int64) bool {
	for _, q := range s.qs {
		at := s.p.Pos[q]
		if at < most || s.p.Window > 0 && at-least >= s.p.Window {
			return false
		}
	}
	return len(s.qs) > 0
}

// positions returns the first and the last position of rows [r0, r0+n).
func (s *scorer) positions(r0, n int) (least, most int64) {
	b := &s.blk
	if b.pos == nil {
		return b.base + b.place(r0), b.base + b.place(r0+n-1)
	}
	lo, hi := attend.Span16(b.pos[2*r0 : 2*(r0+n)])
	return b.base + int64(lo), b.base + int64(hi)
}

func (s *scorer) fillPositions(r0, n int) {
	for i := range n {
		s.pos[i] = s.blk.base + s.blk.place(r0+i)
	}
}
