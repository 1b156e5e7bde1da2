// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// The bytes of a part in archive form, all little-endian: the image, outlined, whose first byte has imageArchived;
// u16 bytes and text of the name of the archiver; for each head of a closed segment the page of each token, in 4 bits or 8; for
// each layer u32 bytes and what the archiver made of the rows.

// pagesBytes returns the bytes of the pages of n tokens.
func pagesBytes(pages, n int) int {
	if pages > 16 {
		return n
	}
	return (n + 1) / 2
}

// appendPages appends which page has each of n tokens. It returns false if a page has them in another order.
func (s *image) appendPages(dst []byte, n int) (out []byte, ok bool) {
	if !s.closed {
		return dst, true
	}
	for i := range s.mean {
		at := len(dst)
		dst = append(dst, make([]byte, pagesBytes(s.pages, n))...)
		for p := range s.pages {
			b, last := &s.blocks[i*s.pages+p], -1
			for r := range b.rows {
				t := s.at(b, p, r)
				if t <= last {
					return dst, false
				}
				last = t
				if s.pages > 16 {
					dst[at+t] = byte(p)
				} else {
					dst[at+t/2] |= byte(p) << (4 * (t % 2))
				}
			}
		}
	}
	return dst, true
}

// takePages gives the blocks of a closed segment their positions.
func (s *image) takePages(r *stateReader, n int) (ok bool) {
	if !s.closed {
		return true
	}
	for i := range s.mean {
		blocks := s.blocks[i*s.pages : (i+1)*s.pages]
		of := r.take(pagesBytes(s.pages, n))
		if r.short {
			return false
		}
		for t := range n {
			var p int
			if s.pages > 16 {
				p = int(of[t])
			} else {
				p = int(of[t/2] >> (4 * (t % 2)) & 15)
			}
			if p >= len(blocks) {
				return false
			}
			blocks[p].pos = binary.LittleEndian.AppendUint16(blocks[p].pos, uint16(t))
		}
		for p := range blocks {
			if len(blocks[p].pos) != 2*blocks[p].rows {
				return false
			}
		}
	}
	return true
}

// exact reports whether every row of the tokens of an image is there, exact or in 8 bits: such rows are made
// smaller. Others are small.
func (s *image) exact() bool {
	for i := range s.mean {
		for _, b := range s.blocks[i*s.pages : (i+1)*s.pages] {
			if b.rows > 0 && (b.rung[sideK] < u8 || b.rung[sideV] < u8) {
				return false
			}
		}
	}
	return !s.sinks && !s.lost
}

// rowsOf returns the number of rows of head i.
func (s *image) rowsOf(i int) (n int) {
	for _, b := range s.blocks[i*s.pages : (i+1)*s.pages] {
		n += b.rows
	}
	return n
}

// at returns the token of row r of page p within the segment.
func (s *image) at(b *imageBlock, p, r int) int {
	if b.pos != nil {
		return int(binary.LittleEndian.Uint16(b.pos[2*r:]))
	}
	return p*s.per + r
}

// complete reports whether an image has all of n tokens in every head, and may be made smaller.
func (s *image) complete(n int) bool {
	for i := range s.mean {
		if s.rowsOf(i) != n {
			return false
		}
	}
	return s.exact()
}

// addMean adds a packed mean times sign to rows.
func addMean(rows quant.Rows, mean []byte, sign float32) {
	for i := range rows.Dim {
		m := sign * quant.F16ToF32(binary.LittleEndian.Uint16(mean[2*i:]))
		for at := i; at < len(rows.Data); at += rows.Dim {
			rows.Data[at] += m
		}
	}
}

// openBytes returns the scratch memory that opening a part takes, 0 if it is not in archive form.
func openBytes(c *memory, p []byte) int64 {
	if len(p) < imageHeader || p[0]&imageArchived == 0 {
		return 0
	}
	le := binary.LittleEndian
	rows := int64(le.Uint16(p[2:])) * int64(le.Uint16(p[4:]))
	heads := int64(le.Uint32(p[28:])) - int64(le.Uint32(p[24:]))
	if rows > int64(c.cfg.Segment) || heads > int64(c.geo.Layers*c.geo.KVHeads) {
		return 0 // which parsing says
	}
	return rows * int64(c.geo.HeadDim+c.geo.HeadDimV) * (2*max(heads, 0) + 4*openWorkers*int64(c.geo.KVHeads))
}

// openPart reads the bytes of a part, in archive form or not.
//
// Errors: *store.ForeignError for rows of another archiver; quant.ErrCorrupt.
func openPart(c *memory, p []byte) (*image, error) {
	if len(p) == 0 || p[0]&imageArchived == 0 {
		return parseImage(c, p)
	}
	bad := func(what string) error {
		return fmt.Errorf("image of a segment in archive form: %s: %w", what, quant.ErrCorrupt)
	}
	im, rest, err := parseKind(c, p, outline)
	if err != nil {
		return nil, err
	}
	r := &stateReader{p: rest}
	name := string(r.take(int(binary.LittleEndian.Uint16(r.take(2)))))
	if r.short {
		return nil, bad("it ends early")
	}
	if a := c.cfg.Archiver; a == nil || a.Name() != name {
		have := "no archiver"
		if a != nil {
			have = fmt.Sprintf("%q", a.Name())
		}
		return nil, &store.ForeignError{What: "archiver", Err: fmt.Errorf("%q, this cache has %s: %w", name, have, quant.ErrUnsupported)}
	}
	if !im.exact() || im.from%c.geo.KVHeads != 0 || im.to%c.geo.KVHeads != 0 {
		return nil, bad("its parts")
	}
	n := im.rowsOf(0)
	for i := range im.mean {
		if im.rowsOf(i) != n {
			return nil, bad("its rows")
		}
	}
	if !im.takePages(r, n) {
		return nil, bad("the pages of its tokens")
	}
	if err := im.check(c); err != nil {
		return nil, err
	}
	if !im.inOrder(n) {
		return nil, bad("rows are missing")
	}
	payloads := make([][]byte, (im.to-im.from)/c.geo.KVHeads)
	for l := range payloads {
		if payloads[l] = r.take(r.count(1)); r.short {
			return nil, bad("it ends early")
		}
	}
	if len(r.p) != 0 {
		return nil, bad("bytes behind the last layer")
	}
	err = parallel.EachOf(context.Background(), openWorkers, len(payloads), func(l int) error {
		var rows ArchiveRows
		rows.fit(im.from/c.geo.KVHeads+l, c.geo.KVHeads, n, im.lo, c.sizes.dim)
		if err := c.cfg.Archiver.Decode(&rows, payloads[l]); err != nil {
			return err
		}
		of := im.slice(part{im.from + l*c.geo.KVHeads, im.from + (l+1)*c.geo.KVHeads})
		return of.pack(c, &rows)
	})
	return im, err
}

// openWorkers is how many layers of a part are coded or decoded at once.
const openWorkers = 4

// inOrder reports whether the rows of every head are those of the first n tokens.
func (s *image) inOrder(n int) bool {
	for i := range s.mean {
		for p := range s.pages {
			b := &s.blocks[i*s.pages+p]
			for r := range b.rows {
				if s.at(b, p, r) >= n {
					return false
				}
			}
		}
	}
	return true
}

// clampF16 bounds values to what binary16 holds. What was stored within it may come out of the archiver beyond it.
func clampF16(x []float32) {
	for i, v := range x {
		x[i] = min(max(v, -65504), 65504)
	}
}

// pack codes the rows of a layer as its blocks have them.
func (s *image) pack(c *memory, r *ArchiveRows) error {
	tmp := make([]float32, pageTokens*max(c.geo.HeadDim, c.geo.HeadDimV))
	for h := range c.geo.KVHeads {
		for p := range s.pages {
			b := &s.blocks[h*s.pages+p]
			for side, from := range [sides][]float32{r.K[h], r.V[h]} {
				dim := c.sizes.dim[side]
				rows := quant.Rows{Dim: dim, Data: tmp[:b.rows*dim]}
				for i := range b.rows {
					copy(rows.Data[i*dim:][:dim], from[s.at(b, p, i)*dim:])
				}
				clampF16(rows.Data)
				if side == sideK && b.rows > 0 && b.rung[sideK] != f16 {
					if len(s.mean[h]) != frame.MeanBytes(dim) {
						return fmt.Errorf("rows without their mean: %w", quant.ErrCorrupt)
					}
					addMean(rows, s.mean[h], -1)
					clampF16(rows.Data)
				}
				cd := b.rung[side].coding()
				if b.rows == 0 {
					continue
				}
				b.data[side] = make([]byte, cd.PackedBytes(b.rows, dim))
				if err := quant.Encode(b.data[side], cd, rows, c.cfg.Seed); err != nil {
					return fmt.Errorf("rows in archive form: %w: %w", err, quant.ErrCorrupt)
				}
			}
		}
	}
	return nil
}
