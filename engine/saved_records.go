// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// layerParts returns the parts of one layer each.
func layerParts(c *memory) []part {
	all := make([]part, c.geo.Layers)
	for l := range all {
		all[l] = part{l * c.geo.KVHeads, (l + 1) * c.geo.KVHeads}
	}
	return all
}

// record returns the record of a layer of a segment of n tokens: that of the image. A nil one has lost all of
// them.
func (s *image) record(heads, layer, segment, n int) *container.Record {
	rec := &container.Record{Layer: layer, Segment: segment, Heads: make([]container.Head, heads)}
	for h := range rec.Heads {
		head, seen := &rec.Heads[h], make([]bool, n)
		if s != nil {
			s.fillHead(head, h, seen)
		}
		var lost []uint16
		for t, ok := range seen {
			if !ok {
				lost = append(lost, uint16(t))
			}
		}
		if lost != nil {
			head.Blocks = append(head.Blocks, container.Block{Level: quant.Dropped, Tokens: lost})
		}
	}
	return rec
}

// fillHead adds the blocks of head i to that of a record, in the order of their pages, and marks their
// tokens.
func (s *image) fillHead(head *container.Head, i int, seen []bool) {
	for p := range s.pages {
		from := &s.blocks[i*s.pages+p]
		if from.rows == 0 {
			continue
		}
		b := container.Block{Level: quant.Full, K: from.rung[sideK].coding(), V: from.rung[sideV].coding(),
			KData: from.data[sideK], VData: from.data[sideV], Centered: from.rung[sideK] != f16,
			Tokens: make([]uint16, from.rows)}
		for r := range b.Tokens {
			b.Tokens[r] = uint16(p*s.per + r)
			if from.pos != nil {
				b.Tokens[r] = binary.LittleEndian.Uint16(from.pos[2*r:])
			}
			seen[b.Tokens[r]] = true
		}
		if b.Centered {
			head.MeanK = s.mean[i]
		}
		head.Blocks = append(head.Blocks, b)
	}
}

// takeHead gives the blocks of head i of a skeleton the rows of a record.
func (s *image) takeHead(head *container.Head, i int) error {
	bad := func(what string) error {
		return fmt.Errorf("a segment of a saved sequence: %s: %w", what, quant.ErrCorrupt)
	}
	at := 0
	for p := range s.pages {
		b := &s.blocks[i*s.pages+p]
		if b.rows == 0 {
			continue
		}
		if at == len(head.Blocks) {
			return bad("a block is missing")
		}
		from := &head.Blocks[at]
		at++
		if from.Level != quant.Full || from.Rows() != b.rows || from.K != b.rung[sideK].coding() ||
			from.V != b.rung[sideV].coding() || from.Centered != (b.rung[sideK] != f16) {
			return bad("a block is not what the sequence says")
		}
		b.data = [sides][]byte{from.KData, from.VData}
		for r, t := range from.Tokens {
			if b.pos != nil {
				b.pos = binary.LittleEndian.AppendUint16(b.pos, t)
			} else if int(t) != p*s.per+r {
				return bad("rows out of order")
			}
		}
	}
	if at < len(head.Blocks) && (at+1 < len(head.Blocks) || head.Blocks[at].Level != quant.Dropped) {
		return bad("a block too many")
	}
	if s.mean[i] != nil {
		s.mean[i] = append([]byte{}, head.MeanK...)
	}
	return nil
}
