// SPDX-License-Identifier: Apache-2.0

package report

import (
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/quant"
)

// archived accounts for a record in archive form and returns the bytes of its lanes. What a token
// takes within a lane is unknown: all get the mean of the lane.
func (b *reporter) archived(rec *container.Record, kDim, vDim int, lines []*mapLine,
	packed *[2]int64) (held int64, err error) {
	dims, sides := []int{kDim, vDim}, 1
	if vDim > 0 {
		sides = 2
	}
	sizes, err := archive.LaneSizes(rec.Archive, b.h.KVHeads()*sides)
	if err != nil {
		return 0, err
	}
	gone := int64(0) // first tokens that the record does not hold
	if !archive.IsLossless(rec.Archive) {
		gone = int64(b.h.OutsideIn(rec.Layer, rec.Segment))
	}
	n := int64(b.h.SegmentLen(rec.Layer, rec.Segment)) - gone
	first := b.h.SegmentStart(rec.Segment) + gone
	for hi := range b.h.KVHeads() {
		var bits [2]float64
		for side := range sides {
			size, dim := sizes[hi*sides+side], int64(dims[side])
			held += size
			packed[side] += size
			bits[side] = quant.BitsPerValue(size, n*dim)
			c := Coding{Side: []string{"K", "V"}[side], Level: quant.Full.String(), Coding: "archive"}
			section := []string{sectionKCodes, sectionVCodes}[side]
			if b.h.Kind == container.KindRows {
				c.Side, section = "rows", sectionRows
			}
			b.sections[section] += size
			sum := b.codings[c]
			if sum == nil {
				sum = &Coding{Side: c.Side, Level: c.Level, Coding: c.Coding}
				b.codings[c] = sum
			}
			sum.Tokens += n
			sum.Rows += n
			sum.Values += n * dim
			sum.Bytes += size
		}
		k := Kind{Level: quant.Full.String(), K: "archive"}
		if sides == 2 {
			k.V = "archive"
		}
		kind, ok := b.kinds[k]
		if !ok {
			kind = len(b.rep.Map.Kinds)
			b.kinds[k] = kind
			b.rep.Map.Kinds = append(b.rep.Map.Kinds, k)
		}
		line := lines[min(hi, len(lines)-1)]
		if gone > 0 {
			b.dropped(first-gone, gone, dims[:sides], line)
		}
		for t := range n {
			line.add((first+t)/b.rep.Map.TokensPerColumn, mapToken{kind: kind, k: bits[0], v: bits[1]})
		}
	}
	return held, nil
}

// dropped accounts for tokens of a head from first on that a record in archive form does not hold.
func (b *reporter) dropped(first, n int64, dims []int, line *mapLine) {
	blk := &container.Block{Level: quant.Dropped, Tokens: make([]uint16, n)}
	for side, dim := range dims {
		b.side(blk, side, dim)
	}
	kind := b.kind(blk, 0)
	for t := range n {
		line.add((first+t)/b.rep.Map.TokensPerColumn, mapToken{kind: kind})
	}
}
