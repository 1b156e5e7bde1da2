// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"slices"

	"github.com/kvist-project/kvist/quant/trellis"
)

const (
	segmentTiles = 256
	segmentRows  = segmentTiles * trellis.TileRows
	maxRows      = 1<<31 - trellis.TileRows
)

// segment holds up to segmentTiles tiles. Tiles that a published state has never change; those behind them
// may be written.
type segment struct {
	head, tail, factors []byte
	norms               []float32
	ids                 []uint64 // nil while the id of every row of the index is its number
}

// state is an index at one time. It is immutable but for what find says.
type state struct {
	segments []*segment
	rows     int
	last     *segment // the rows behind the last whole tile, a tile of its own
	ids      *idMap   // shared by all states of an index
	dense    bool     // the id of every row is its number
	stats    added
}

// added counts what was added.
type added struct {
	rows, bounded  int
	energy, damage float64
}

// tiles returns the number of whole tiles.
func (s *state) tiles() int { return s.rows / trellis.TileRows }

// view returns the tiles of segment i that the state has. The last segment may be the tile that is not
// whole; its rows are fewer than its tiles hold.
func (s *state) view(c *coding, i int) (v segment, rows int) {
	if i == len(s.segments) {
		return *s.last, s.rows % trellis.TileRows
	}
	n := min(segmentTiles, s.tiles()-i*segmentTiles)
	g := s.segments[i]
	rows = n * trellis.TileRows
	v = segment{head: g.head[:n*c.parts[0].TileBytes()], tail: g.tail[:n*c.parts[1].TileBytes()],
		factors: g.factors[:rows*c.factorBytes()]}
	if g.norms != nil {
		v.norms = g.norms[:rows]
	}
	if g.ids != nil {
		v.ids = g.ids[:rows]
	}
	return v, rows
}

// views returns the number of views.
func (s *state) views() int {
	if s.rows%trellis.TileRows > 0 {
		return len(s.segments) + 1
	}
	return len(s.segments)
}

// id returns the id of a row.
func (s *state) id(row int) uint64 {
	if s.dense {
		return uint64(row)
	}
	if row >= s.tiles()*trellis.TileRows {
		return s.last.ids[row%trellis.TileRows]
	}
	return s.segments[row/segmentRows].ids[row%segmentRows]
}

// place returns where a row is: the segment and the tile in it.
func (s *state) place(row int) (g *segment, tile int) {
	if row >= s.tiles()*trellis.TileRows {
		return s.last, 0
	}
	return s.segments[row/segmentRows], row % segmentRows / trellis.TileRows
}

// at returns the bytes of tile t of tiles of n bytes.
func at(tiles []byte, t, n int) []byte { return tiles[t*n : (t+1)*n] }

// newSegment returns a segment for so many tiles.
func (c *coding) newSegment(tiles int, ids bool) *segment {
	g := &segment{head: make([]byte, tiles*c.parts[0].TileBytes()), tail: make([]byte, tiles*c.parts[1].TileBytes()),
		factors: make([]byte, tiles*trellis.TileRows*c.factorBytes())}
	if c.Metric == L2 {
		g.norms = make([]float32, tiles*trellis.TileRows)
	}
	if ids {
		g.ids = make([]uint64, tiles*trellis.TileRows)
	}
	return g
}

// tilesOf returns the tiles that a segment has memory for.
func (c *coding) tilesOf(g *segment) int {
	return len(g.factors) / (trellis.TileRows * c.factorBytes())
}

// grow returns a segment with the first tiles of g and memory for n tiles.
func (c *coding) grow(g *segment, n int) *segment {
	out := c.newSegment(n, g.ids != nil)
	copy(out.head, g.head)
	copy(out.tail, g.tail)
	copy(out.factors, g.factors)
	copy(out.norms, g.norms)
	copy(out.ids, g.ids)
	return out
}

// copyRow copies a row with its factor, norm and id. Rows count from the start of a segment.
func (c *coding) copyRow(dst *segment, to int, src *segment, from int) {
	const rows = trellis.TileRows
	for i, tiles := range [...][2][]byte{{dst.head, src.head}, {dst.tail, src.tail}} {
		n := c.parts[i].TileBytes()
		// The cells and rows are those of a valid coding.
		_ = trellis.CopyRow(at(tiles[0], to/rows, n), to%rows, at(tiles[1], from/rows, n), from%rows, c.part(i))
	}
	f := c.factorBytes()
	copy(dst.factors[f*to:f*to+f], src.factors[f*from:])
	if dst.norms != nil {
		dst.norms[to] = src.norms[from]
	}
	if dst.ids != nil && src.ids != nil {
		dst.ids[to] = src.ids[from]
	}
}

// with returns the state with rows added.
func (s *state) with(c *coding, ids []uint64, tiles []*coded) *state {
	out := *s
	if s.rows == 0 {
		out.dense = true
	}
	out.dense = out.dense && ascending(ids, s.rows)
	out.segments = slices.Clone(s.segments)
	if s.dense && !out.dense {
		out.spellIDs(c)
	}
	first := 0
	for _, t := range tiles {
		src := &segment{head: t.head, tail: t.tail, factors: t.factors, norms: t.norms}
		if !out.dense {
			src.ids = make([]uint64, trellis.TileRows)
			copy(src.ids, ids[first:])
		}
		out.append(c, src, t.n)
		first += t.n
		out.stats.rows += t.n
		out.stats.bounded += t.bounded
		out.stats.energy += t.energy
		out.stats.damage += t.damage
	}
	return &out
}

func ascending(ids []uint64, first int) bool {
	for i, id := range ids {
		if id != uint64(first+i) {
			return false
		}
	}
	return true
}

// append adds the first n rows of a tile.
func (s *state) append(c *coding, src *segment, n int) {
	const rows = trellis.TileRows
	if s.rows%rows == 0 {
		s.last = nil
		if n == rows {
			s.appendTile(c, src)
		} else {
			s.last = src
		}
		s.rows += n
		return
	}
	last := c.grow(s.last, 1)
	for r := range n {
		c.copyRow(last, s.rows%rows, src, r)
		s.rows++
		if s.rows%rows == 0 {
			s.rows -= rows // appendTile counts whole tiles
			s.appendTile(c, last)
			s.rows += rows
			last = c.newSegment(1, src.ids != nil)
		}
	}
	s.last = last
}

// appendTile writes a whole tile behind the others.
func (s *state) appendTile(c *coding, src *segment) {
	n := s.tiles()
	i, t := n/segmentTiles, n%segmentTiles
	if i == len(s.segments) {
		s.segments = append(s.segments, c.newSegment(16, src.ids != nil))
	}
	if g := s.segments[i]; t == c.tilesOf(g) {
		s.segments[i] = c.grow(g, min(segmentTiles, max(16, 2*t)))
	}
	g := s.segments[i]
	copy(at(g.head, t, c.parts[0].TileBytes()), src.head)
	copy(at(g.tail, t, c.parts[1].TileBytes()), src.tail)
	copy(at(g.factors, t, trellis.TileRows*c.factorBytes()), src.factors)
	if g.norms != nil {
		copy(g.norms[t*trellis.TileRows:], src.norms)
	}
	if g.ids != nil {
		copy(g.ids[t*trellis.TileRows:], src.ids)
	}
}

// spellIDs gives every row an id of its own.
func (s *state) spellIDs(c *coding) {
	for i, g := range s.segments {
		with := *g
		with.ids = make([]uint64, c.tilesOf(g)*trellis.TileRows)
		for r := range with.ids {
			with.ids[r] = uint64(i*segmentRows + r)
		}
		s.segments[i] = &with
	}
	if s.last != nil {
		with := *s.last
		with.ids = make([]uint64, trellis.TileRows)
		for r := range with.ids {
			with.ids[r] = uint64(s.tiles()*trellis.TileRows + r)
		}
		s.last = &with
	}
}

// without returns the state without the rows at, which ascend. moved lists the rows that took their places,
// and where to.
func (s *state) without(c *coding, at []int) (out *state, moved [][2]int) {
	out = &state{}
	*out = *s
	out.segments = slices.Clone(s.segments)
	left := s.rows - len(at)
	if at[0] < left && s.dense {
		out.dense = false
		out.spellIDs(c)
	}
	holes := at
	for i := len(at) - 1; i >= 0 && at[i] >= left; i-- {
		holes = at[:i]
	}
	own := map[int]bool{}
	from := left
	gone := at[len(holes):]
	for _, hole := range holes {
		for len(gone) > 0 && gone[0] == from {
			from, gone = from+1, gone[1:]
		}
		moved = append(moved, [2]int{from, hole})
		src, _ := out.place(from)
		row := from % segmentRows
		if src == out.last {
			row = from % trellis.TileRows
		}
		i := hole / segmentRows
		switch {
		case hole >= s.tiles()*trellis.TileRows:
			out.last = c.grow(out.last, 1)
			c.copyRow(out.last, hole%trellis.TileRows, out.last, row)
		default:
			if !own[i] {
				own[i] = true
				out.segments[i] = c.grow(out.segments[i], c.tilesOf(out.segments[i]))
				if src != out.last {
					src, _ = out.place(from)
				}
			}
			c.copyRow(out.segments[i], hole%segmentRows, src, row)
		}
		from++
	}
	out.cut(c, left)
	return out, moved
}

// cut keeps the first rows only. What is behind them is copied, because states that are still read have it.
func (s *state) cut(c *coding, rows int) {
	const tile = trellis.TileRows
	whole := rows / tile
	if rest := rows % tile; rest > 0 && whole < s.tiles() {
		g := s.segments[whole/segmentTiles]
		last := c.newSegment(1, g.ids != nil)
		for r := range rest {
			c.copyRow(last, r, g, whole%segmentTiles*tile+r)
		}
		s.last = last
	} else if rest == 0 {
		s.last = nil
	}
	if whole < s.tiles() {
		s.segments = s.segments[:(whole+segmentTiles-1)/segmentTiles]
		if n := len(s.segments); n > 0 {
			g := s.segments[n-1]
			s.segments[n-1] = c.grow(g, c.tilesOf(g))
		}
	}
	s.rows = rows
}
