// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// unit is a run of queries with the same list.
type unit struct {
	qs       []int32
	list     []int32
	from, to int  // range of call.cuts: the starts of the pieces, and the end of the list
	v0, v1   int  // range of prepared.variants: those of its blocks
	long     bool // the list has at least tableRows rows
	means    bool // some V side has a mean
	tallies  int  // kept by its parts: for masses that are asked for, and for means
	at       int  // index of its first part in the wave
}

// cut is a position in a list of blocks: an entry and a row of its block.
type cut struct{ entry, row int }

// cutUnits groups neighbouring queries with the same list, at most most of them. With pieces, it
// divides the lists.
func (c *call) cutUnits(most int, pieces bool) {
	q := c.Queries
	c.all = grow(c.all, q.Len())
	c.units, c.cuts = c.units[:0], c.cuts[:0]
	for i := range c.all {
		c.all[i] = int32(i)
		list := q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]]
		if last := len(c.units) - 1; last >= 0 && len(c.units[last].qs) < most &&
			slices.Equal(c.units[last].list, list) {
			u := &c.units[last]
			u.qs = c.all[i-len(u.qs) : i+1]
			continue
		}
		u := unit{qs: c.all[i : i+1], list: list, from: len(c.cuts)}
		if pieces {
			var rows int
			c.cuts, rows = cutList(c.cuts, list, c.view)
			u.long = rows >= tableRows
		}
		u.to = len(c.cuts)
		c.units = append(c.units, u)
	}
}

// mostQueries returns the number of queries that share a unit.
func (c *call) mostQueries() int {
	if c.looksUp() {
		return max(1, tableHeads/c.Group)
	}
	return max(1, unitHeads/c.Group)
}

// looksUp reports whether tables are used for the inner products with some K side of a list.
func (c *call) looksUp() bool {
	if c.Group > tableHeads || !c.kern.Tables(quant.LM1, c.HeadDim) {
		return false
	}
	for _, i := range c.BlockIdx {
		if c.formOf(i).Own.k.lookUp {
			return true
		}
	}
	return false
}

// formOf returns the form of block i of the view.
func (c *call) formOf(i int32) *form { return c.view.Form(c.view.At(int(i)).Form) }

// cutList divides a list into pieces of at least chunkRows rows, at multiples of tileRows in a
// block, and appends the cuts. It also returns the number of rows in the list.
func cutList(cuts []cut, list []int32, v *view) (all []cut, rows int) {
	form, n, same := uint32(0), 0, true
	for j, i := range list {
		if e := v.At(int(i)); e.Form != form {
			form, n, same = e.Form, int(v.Form(e.Form).Key.Rows), j == 0
		}
		rows += n
	}
	if rows == 0 {
		return cuts, 0
	}
	size := max(chunkRows, (rows+maxChunks-1)/maxChunks)
	cuts = append(cuts, cut{})
	if rows <= size {
		return append(cuts, cut{len(list), 0}), rows
	}
	left := size
	for e, i := range list {
		if !same {
			n = int(v.Rows(int(i)))
		}
		if n <= left {
			left -= n
			continue
		}
		at := 0
		for n-at > left {
			at += (left + tileRows - 1) / tileRows * tileRows
			left = size
			if at >= n {
				break
			}
			cuts = append(cuts, cut{e, at})
		}
		if at < n {
			left -= n - at
		} else if at > 0 {
			cuts = append(cuts, cut{e + 1, 0})
		}
	}
	if last := cuts[len(cuts)-1]; last.entry < len(list) {
		cuts = append(cuts, cut{len(list), 0})
	}
	return cuts, rows
}

// pieces returns the number of pieces in a unit's list.
func (u *unit) pieces() int { return max(0, u.to-u.from-1) }

// piece returns the cuts around piece i.
func (c *call) piece(u *unit, i int) (from, to cut) { return c.cuts[u.from+i], c.cuts[u.from+i+1] }

// entriesOf returns the number of entries of a list between two cuts, those that a cut divides
// included.
func entriesOf(from, to cut) int {
	n := to.entry - from.entry
	if to.row > 0 {
		n++
	}
	return n
}

// partFloats is the size of part i of a unit in float64.
func (c *call) partFloats(u *unit, i int) int {
	heads := len(u.qs) * c.Group
	n := heads * (1 + sides*c.padV)
	if u.tallies > 0 {
		n += u.tallies * heads * entriesOf(c.piece(u, i))
	}
	return n
}

// topFloats is the number of float32 of part i of a unit.
func (c *call) topFloats(u *unit, i int) int {
	heads := len(u.qs) * c.Group
	if u.tallies > 0 {
		return heads * (1 + u.tallies*entriesOf(c.piece(u, i)))
	}
	return heads
}

// fitting returns the number of units in the next wave: as many as fit waveFloats, at least one. It
// sets the indices of their parts, and returns how much memory the parts take.
func (c *call) fitting(units []unit) (n, doubles, floats int) {
	parts := 0
	for n = range units {
		u := &units[n]
		d, f := 0, 0
		for i := range u.pieces() {
			d, f = d+c.partFloats(u, i), f+c.topFloats(u, i)
		}
		if n > 0 && doubles+d > waveFloats {
			return n, doubles, floats
		}
		u.at = parts
		parts, doubles, floats = parts+u.pieces(), doubles+d, floats+f
	}
	return len(units), doubles, floats
}
