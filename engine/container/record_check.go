// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// checkRecord reports an error unless rec fits the header. It does not check payloads.
func checkRecord(h *Header, rec *Record) error {
	if rec.Layer < 0 || rec.Layer >= h.Stored() {
		return shapef("record layer %d, want [0, %d)", rec.Layer, h.Stored())
	}
	if n := h.Segments(rec.Layer); rec.Segment < 0 || int64(rec.Segment) >= n {
		return shapef("record of layer %d: segment %d, want [0, %d)", rec.Layer, rec.Segment, n)
	}
	if rec.Archive != nil {
		if len(rec.Archive) == 0 || len(rec.Heads) != 0 {
			return shapef("record (layer %d, segment %d): %d bytes in archive form and %d heads in hot",
				rec.Layer, rec.Segment, len(rec.Archive), len(rec.Heads))
		}
		return nil
	}
	if len(rec.Heads) != h.KVHeads() {
		return shapef("record (layer %d, segment %d): %d heads, want %d kv_heads",
			rec.Layer, rec.Segment, len(rec.Heads), h.KVHeads())
	}
	kDim, vDim := h.Dims(rec.Layer)
	cache := h.Kind == KindCache
	tokens := h.SegmentLen(rec.Layer, rec.Segment)
	seen := make([]bool, tokens)
	for hi := range rec.Heads {
		head := &rec.Heads[hi]
		if len(head.Blocks) < 1 || len(head.Blocks) > maxBlocks {
			return shapef("record (layer %d, segment %d) head %d: %d blocks, want 1 to %d",
				rec.Layer, rec.Segment, hi, len(head.Blocks), maxBlocks)
		}
		clear(seen)
		left, dropped := tokens, 0
		for bi := range head.Blocks {
			if head.Blocks[bi].Level == quant.Dropped {
				dropped++
			}
			if err := checkBlock(&head.Blocks[bi], cache, kDim, vDim, seen); err != nil {
				return fmt.Errorf("kvist/container: record (layer %d, segment %d) head %d block %d: %w",
					rec.Layer, rec.Segment, hi, bi, err)
			}
			left -= len(head.Blocks[bi].Tokens)
		}
		if !head.Centered() && head.MeanK != nil {
			return shapef("record (layer %d, segment %d) head %d: a mean that no block was coded without",
				rec.Layer, rec.Segment, hi)
		}
		if i := notFinite(head.MeanK); i >= 0 {
			return shapef("record (layer %d, segment %d) head %d: value %d of the mean is not finite",
				rec.Layer, rec.Segment, hi, i)
		}
		if left != 0 {
			return shapef("record (layer %d, segment %d) head %d: blocks hold %d tokens, want %d",
				rec.Layer, rec.Segment, hi, tokens-left, tokens)
		}
		if dropped > 1 {
			return shapef("record (layer %d, segment %d) head %d: %d DROPPED blocks, want one at most",
				rec.Layer, rec.Segment, hi, dropped)
		}
	}
	return nil
}

func checkBlock(b *Block, cache bool, kDim, vDim int, seen []bool) error {
	if !b.Level.Valid() {
		return fmt.Errorf("unknown level %d: %w", b.Level, quant.ErrUnsupported)
	}
	if b.Centered && (!cache || b.Level == quant.Dropped) {
		return fmt.Errorf("%s block of rows without their mean: %w", b.Level, quant.ErrShape)
	}
	if err := checkCodings(b.Level, b.K, b.V, kDim, vDim); err != nil {
		return err
	}
	if len(b.Tokens) == 0 {
		return fmt.Errorf("no tokens: %w", quant.ErrShape)
	}
	for i, t := range b.Tokens {
		if int(t) >= len(seen) || (i > 0 && t <= b.Tokens[i-1]) {
			return fmt.Errorf("token %d is %d, want ascending in [0, %d): %w", i, t, len(seen),
				quant.ErrShape)
		}
		if seen[t] {
			return fmt.Errorf("token %d is in two blocks: %w", t, quant.ErrShape)
		}
		seen[t] = true
	}
	if b.Level == quant.Full || b.Level == quant.Dropped {
		if b.Counts != nil {
			return fmt.Errorf("%s block with counts: %w", b.Level, quant.ErrShape)
		}
		return nil
	}
	sum := 0
	for i, c := range b.Counts {
		if c == 0 {
			return fmt.Errorf("row %d counts no token: %w", i, quant.ErrShape)
		}
		sum += int(c)
	}
	if sum != len(b.Tokens) {
		return fmt.Errorf("counts add up to %d, want %d tokens: %w", sum, len(b.Tokens), quant.ErrShape)
	}
	return nil
}

// checkCodings checks codings against the level and the dims. A side that stores nothing must have
// the zero coding, so that equal content gives equal files.
func checkCodings(l quant.Level, k, v quant.Coding, kDim, vDim int) error {
	check := func(side string, c quant.Coding, dim int, stored bool) error {
		if stored {
			return c.CheckDim(dim)
		}
		if c != (quant.Coding{}) {
			return fmt.Errorf("coding %s of %s, which is not stored: %w", c, side, quant.ErrShape)
		}
		return nil
	}
	if err := check("K", k, kDim, l != quant.Dropped); err != nil {
		return err
	}
	return check("V", v, vDim, l != quant.Dropped && vDim != 0)
}
