// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// image is a part of a segment outside of the slabs, some of its layers: packed rows as they are, and what is
// needed to put them back. What attention has made of the rows, the masses, is not part of it, so that a
// shared segment has one image. Parts are small, because a copy of one is all the memory that moving a
// segment takes.
//
// Its bytes, all little-endian:
//
//	u8 flags, u8 0, u16 pages, u16 rows of a page, u16 pages with memory, i64 lo, i64 end, u32 from, u32 to
//	for every layer * kv_heads + kv_head from from to to, to excluded:
//	  u8 0: no mean of K, 1: memory for one, 2: head_dim binary16 follow
//	  for every page: u8 rung of K, u8 of V, u8 rows, u8 1 if positions follow; unless rows is 0:
//	    f32 energy of K, of V; u16 positions; rows of K; rows of V, as their codings pack them
//
// A skeleton is the same without what records of a .kvist file hold: means, positions and rows. An outline has the
// means.
type image struct {
	lo, end          int64
	pages, per, have int
	sinks, closed    bool
	lost             bool
	archived         bool         // its rows came in archive form
	from, to         int          // heads: layer * kv_heads + kv_head
	blocks           []imageBlock // [to - from, pages]
	mean             [][]byte     // nil: no memory for one; empty: memory, but no row is coded without it
}

type imageBlock struct {
	rung   [sides]rung
	rows   int
	energy [sides]float32
	pos    []byte // nil: consecutive rows
	data   [sides][]byte
}

const (
	imageHeader   = 32
	imageSinks    = 1
	imageClosed   = 2
	imageLost     = 4
	imageArchived = 8 // an outline, and rows in archive form behind it; see shrinker
)

// imageKind says what of an image is there.
type imageKind uint8

const (
	whole imageKind = iota
	skeleton
	outline
)

func (s *image) hi() int64 {
	if s.end != 0 {
		return s.end
	}
	return s.lo + int64(s.pages*s.per)
}

// rowsOf returns the rows of a block of a sequence of n tokens that an image keeps.
func rowsOf(s *segment, b *block, page int, n int64) int {
	switch {
	case b.at[sideK] == 0:
		return 0
	case b.pos != 0:
		return int(b.rows)
	}
	return int(max(0, min(int64(s.per), n-s.lo-int64(page*s.per))))
}

// part is a range of heads.
type part struct{ from, to int }

// parts divides the heads of a segment into parts of about Config.partBytes of exact rows.
func parts(c *memory, sinks bool) (all []part) {
	g := c.geo
	layers := g.Layers
	if !sinks {
		layers = max(1, c.cfg.partBytes/(2*c.cfg.Segment*g.KVHeads*(g.HeadDim+g.HeadDimV)))
	}
	for l := 0; l < g.Layers; l += layers {
		all = append(all, part{l * g.KVHeads, min(l+layers, g.Layers) * g.KVHeads})
	}
	return all
}

// mostImage returns the most bytes of the image of a part of a sequence.
func mostImage(s *Sequence, divide func(g *segment) []part) (n int64) {
	for _, g := range s.segs {
		for _, h := range divide(g) {
			n = max(n, imageSize(&s.c.memory, g, s.n, h))
		}
	}
	return n
}

// imageSize returns the bytes of the image of a part of a segment.
func imageSize(c *memory, s *segment, n int64, h part) int64 {
	size := int64(imageHeader)
	for i := h.from; i < h.to; i++ {
		size++
		centered := false
		for p := range s.pages {
			b := &s.blocks[i*s.pages+p]
			size += 4
			rows := rowsOf(s, b, p, n)
			if rows == 0 {
				continue
			}
			centered = centered || b.centered()
			size += 8
			if b.pos != 0 {
				size += int64(2 * rows)
			}
			for side, dim := range c.sizes.dim {
				size += int64(b.rung[side].coding().PackedBytes(rows, dim))
			}
		}
		if centered {
			size += int64(frame.MeanBytes(c.geo.HeadDim))
		}
	}
	return size
}

// appendImage appends the image of a part of a segment of a sequence of n tokens to dst, which has room for it.
func appendImage(c *memory, dst []byte, s *segment, n int64, h part, kind imageKind) ([]byte, error) {
	le := binary.LittleEndian
	var flags byte
	for bit, on := range map[byte]bool{imageSinks: s.sinks, imageClosed: s.closed, imageLost: s.lost} {
		if on {
			flags |= bit
		}
	}
	dst = append(dst, flags, 0)
	for _, v := range []int{s.pages, s.per, s.have} {
		dst = le.AppendUint16(dst, uint16(v))
	}
	dst = le.AppendUint64(le.AppendUint64(dst, uint64(s.lo)), uint64(s.end))
	dst = le.AppendUint32(le.AppendUint32(dst, uint32(h.from)), uint32(h.to))
	get := func(at backend.Span) error {
		if kind == skeleton {
			return nil
		}
		dst = dst[:len(dst)+int(at.Len)]
		return at.Buf.Download(at.Off, dst[len(dst)-int(at.Len):])
	}
	for i := h.from; i < h.to; i++ {
		blocks := s.blocks[i*s.pages : (i+1)*s.pages]
		centered := false
		for p := range blocks {
			centered = centered || blocks[p].centered() && rowsOf(s, &blocks[p], p, n) > 0
		}
		switch {
		case centered:
			dst = append(dst, 2)
			if err := get(c.arena.at(s.mean[i], int64(frame.MeanBytes(c.geo.HeadDim)))); err != nil {
				return nil, err
			}
		case s.mean[i] != 0:
			dst = append(dst, 1)
		default:
			dst = append(dst, 0)
		}
		for p := range blocks {
			b := &blocks[p]
			rows := rowsOf(s, b, p, n)
			if rows == 0 {
				dst = append(dst, 0, 0, 0, 0)
				continue
			}
			sorted := byte(0)
			if b.pos != 0 {
				sorted = 1
			}
			dst = append(dst, byte(b.rung[sideK]), byte(b.rung[sideV]), byte(rows), sorted)
			for _, e := range b.energy {
				dst = le.AppendUint32(dst, math.Float32bits(e))
			}
			if b.pos != 0 && kind != outline {
				if err := get(c.arena.at(b.pos, int64(2*rows))); err != nil {
					return nil, err
				}
			}
			for side := range sides {
				if kind == outline {
					continue
				}
				if err := get(c.side(b, side, rows).Data); err != nil {
					return nil, err
				}
			}
		}
	}
	return dst, nil
}

// parseImage reads a whole image; its rows alias p.
//
// Errors: quant.ErrCorrupt.
func parseImage(c *memory, p []byte) (*image, error) {
	s, rest, err := parseKind(c, p, whole)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("image of a segment: bytes behind the last block: %w", quant.ErrCorrupt)
	}
	return s, s.check(c)
}

// parseSkeleton reads a skeleton. The caller fills in what it lacks and calls check.
func parseSkeleton(c *memory, p []byte) (*image, error) {
	s, rest, err := parseKind(c, p, skeleton)
	if err == nil && len(rest) != 0 {
		return nil, fmt.Errorf("image of a segment: bytes behind the last block: %w", quant.ErrCorrupt)
	}
	return s, err
}

// parseKind reads an image and returns what stands behind it.
func parseKind(c *memory, p []byte, kind imageKind) (s *image, rest []byte, err error) {
	le, all := binary.LittleEndian, len(p)
	bad := func(what string) (*image, []byte, error) {
		return nil, nil, fmt.Errorf("image of a segment: %s at byte %d: %w", what, all-len(p), quant.ErrCorrupt)
	}
	short := false
	take := func(n int) []byte {
		if short = short || n > len(p); short {
			return nil
		}
		x := p[:n:n]
		p = p[n:]
		return x
	}
	none := func(int) []byte { return []byte{} }
	means, rows := take, take // and positions
	switch kind {
	case skeleton:
		means, rows = none, none
	case outline:
		rows = none
	}
	h := take(imageHeader)
	if short {
		return bad("header")
	}
	s = &image{pages: int(le.Uint16(h[2:])), per: int(le.Uint16(h[4:])), have: int(le.Uint16(h[6:])),
		lo: int64(le.Uint64(h[8:])), end: int64(le.Uint64(h[16:])), sinks: h[0]&imageSinks != 0,
		closed: h[0]&imageClosed != 0, lost: h[0]&imageLost != 0, archived: h[0]&imageArchived != 0, from: int(le.Uint32(h[24:])), to: int(le.Uint32(h[28:]))}
	heads := s.to - s.from
	known := byte(imageSinks | imageClosed | imageLost)
	if kind == outline {
		known |= imageArchived
	}
	if h[0]&^known != 0 || h[1] != 0 || s.pages > 2048/pageTokens || s.from < 0 || s.from >= s.to ||
		s.to > c.geo.Layers*c.geo.KVHeads {
		return bad("header")
	}
	s.blocks, s.mean = make([]imageBlock, heads*s.pages), make([][]byte, heads)
	for i := range heads {
		switch k := take(1); {
		case short || k[0] > 2:
			return bad("mean")
		case k[0] == 2:
			s.mean[i] = means(frame.MeanBytes(c.geo.HeadDim))
		case k[0] == 1:
			s.mean[i] = []byte{}
		}
		for j := range s.pages {
			b, k := &s.blocks[i*s.pages+j], take(4)
			if short || k[0] >= byte(rungs) || k[1] >= byte(rungs) || k[3] > 1 {
				return bad("block")
			}
			if k[2] == 0 {
				continue
			}
			b.rung, b.rows = [sides]rung{rung(k[0]), rung(k[1])}, int(k[2])
			if b.rung[sideK] == gone || b.rung[sideV] == gone || b.rows > pageTokens {
				return bad("block")
			}
			e := take(8)
			if k[3] == 1 {
				b.pos = rows(2 * b.rows)
			}
			for side, dim := range c.sizes.dim {
				b.data[side] = rows(b.rung[side].coding().PackedBytes(b.rows, dim))
			}
			if short {
				return bad("rows")
			}
			for side := range sides {
				b.energy[side] = math.Float32frombits(le.Uint32(e[4*side:]))
			}
		}
	}
	return s, p, nil
}

// check reports what makes an image none of a segment of this cache.
func (s *image) check(c *memory) error {
	bad := func(what string) error { return fmt.Errorf("image of a segment: %s: %w", what, quant.ErrCorrupt) }
	per, pages := pageTokens, c.segPages()
	if s.sinks {
		per, pages = c.cfg.Sinks, 1
	}
	length := int64(s.pages * s.per)
	switch {
	case s.per != per || s.pages != pages || s.have < 0 || s.have > s.pages || s.lo < 0 || s.lo > quant.MaxTokens:
		return bad("its pages")
	case s.end != 0 && (!s.closed || s.end <= s.lo || s.end > s.lo+length) || s.sinks && (s.closed || s.lo != 0):
		return bad("its end")
	}
	seen := make([]bool, s.pages*s.per)
	for i := range s.mean {
		clear(seen)
		centered := false
		for p, b := range s.blocks[i*s.pages : (i+1)*s.pages] {
			if b.rows == 0 {
				continue
			}
			centered = centered || b.rung[sideK] != f16
			if (b.pos == nil) == s.closed || b.rows > s.per || !s.closed && p >= s.have || s.sinks && b.rung != [sides]rung{f16, f16} ||
				!s.closed && b.rows < s.per && b.rung != [sides]rung{f16, f16} {
				return bad("rows of a block")
			}
			for r := range b.rows {
				at := p*s.per + r
				if b.pos != nil {
					at = int(binary.LittleEndian.Uint16(b.pos[2*r:]))
				}
				if int64(at) >= s.hi()-s.lo || seen[at] {
					return bad("position of a row")
				}
				seen[at] = true
			}
		}
		if centered && len(s.mean[i]) != frame.MeanBytes(c.geo.HeadDim) || s.sinks && s.mean[i] != nil ||
			!s.sinks && !s.closed && s.have > 0 && s.mean[i] == nil {
			return bad("mean of K")
		}
	}
	return nil
}
