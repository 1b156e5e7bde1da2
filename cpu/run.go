// SPDX-License-Identifier: Apache-2.0

package cpu

import "github.com/kvist-project/kvist/cpu/internal/attend"

// runner attends to tiles in runs: those of neighbouring blocks in bit planes whose rows all heads see. Its
// results have the bits of scorer.tile and scratch.addTile, one tile after the other.
type runner struct {
	attend.Run
	able        bool   // the unit can attend in runs
	wait        bool   // the next tile has to be done otherwise
	least, most int64  // positions of the unit's queries
	at, end     cut    // of the tile to put next, and of the end of the piece
	cuts        [4]cut // of tiles that were put
}

// beginRuns finds out whether the current unit can attend in runs.
func (s *scratch) beginRuns(heads int) {
	p, r := s.p, &s.runner
	r.wait, r.able = false, heads <= attend.RunHeads && p.Softcap <= 0
	if !r.able || p.Pos == nil {
		return
	}
	r.least, r.most = p.Pos[s.qs[0]], p.Pos[s.qs[0]]
	for _, q := range s.qs[1:] {
		r.least, r.most = min(r.least, p.Pos[q]), max(r.most, p.Pos[q])
	}
}

// before reports whether a position comes before another.
func (a cut) before(b cut) bool { return a.entry < b.entry || a.entry == b.entry && a.row < b.row }

// run attends to the tiles from at on that make a run, and returns the position after them: at if there are
// none. The form of the block at at has tiles for runs.
func (s *scratch) run(c *call, u *unit, dst *part, from, at, end cut) (cut, error) {
	r := &s.runner
	if r.wait {
		r.wait = false
		return at, nil
	}
	if err := s.openBlock(c, u, dst, from, at.entry); err != nil {
		return at, err
	}
	r.at, r.end = at, end
	if !s.put(c, u, 0) {
		return at, nil
	}
	heads := len(dst.top)
	for _, e := range s.heads.Energy[:heads] {
		if e-e != 0 { // zero times it is NaN, which runs leave out
			return at, nil
		}
	}
	state := r.Begin(c.kern, c.cut[s.first[0]*c.cutBytes():], heads, c.Scale)
	copy(state.Energy[:heads], s.heads.Energy)
	copy(state.Tops[:], dst.top)
	r.Dots(0)
	for i, n := 0, 1; i < n; i++ {
		for n < i+3 && s.put(c, u, n) {
			n++
		}
		if e := r.cuts[i%len(r.cuts)].entry; c.to.Mass != nil && e != at.entry {
			s.keep(massTally, dst, e-from.entry)
			at.entry = e
		}
		bad, rose := r.Weigh(i, n == i+3)
		if rose {
			copy(s.before, dst.top)
			copy(dst.top, state.Tops[:])
			for h := range heads {
				if dst.top[h] != s.before[h] {
					s.raise(dst, h)
				}
			}
		}
		if bad {
			r.wait, r.at = true, r.cuts[i%len(r.cuts)]
			break
		}
		s.addSums(dst, 0, state.Sums[:heads])
		r.Add(s.sideFor(bytesSide), i, i+1 < n)
		s.countTile(dst)
	}
	return r.at, nil
}

// put makes the tile at the runner's position tile i of a run. It returns false if that is not a tile for it.
func (s *scratch) put(c *call, u *unit, i int) bool {
	r, b := &s.runner, &s.blk
	if !r.at.before(r.end) {
		return false
	}
	if i > 0 && r.at.row == 0 {
		e := c.view.At(int(u.list[r.at.entry]))
		if e.Form != b.kind {
			f := c.view.Form(e.Form)
			if f.Own.tiles.Rows() == 0 || f.Own.angles != s.angles || f.Key.Metric != s.metric {
				return false
			}
		}
		if e.Group != b.group || !b.next(e) && b.again(e, true) != nil {
			return false
		}
	}
	f := b.form
	if f.Key.Limit > 0 {
		return false
	}
	if s.p.Pos != nil {
		least := b.base + int64(r.at.row)
		most := least + tileRows - 1
		if b.pos != nil || f.Key.Stride > 1 {
			least, most = s.bounds(r.at.row, tileRows)
		}
		if r.least < most || s.p.Window > 0 && r.most-least >= s.p.Window {
			return false
		}
	}
	tiles := &f.Own.tiles
	r.Put(i, tiles, b.k, b.v, r.at.row)
	r.cuts[i%len(r.cuts)] = r.at
	if r.at.row += tileRows; r.at.row == tiles.Rows() {
		r.at = cut{r.at.entry + 1, 0}
	}
	return true
}
