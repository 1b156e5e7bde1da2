// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// The table of a record is a palette of (level, K coding, V coding), five bytes per entry, followed
// by one range-coded stream. For every head the stream gives the number of blocks, the palette
// entry of each, the block of every token, and the starts of the rows in merged blocks.

// paletteEntryBytes is the size of a palette entry: level, K coding, V coding.
const paletteEntryBytes = 5

// paletteCentered is the bit of k_options for blocks whose K was coded without its mean.
const paletteCentered = 1 << 7

type paletteEntry struct {
	level    quant.Level
	k, v     quant.Coding
	centered bool
}

func entryOf(b *Block) paletteEntry { return paletteEntry{b.Level, b.K, b.V, b.Centered} }

func (e paletteEntry) pack() [paletteEntryBytes]byte {
	k, v := packCoding(e.k), packCoding(e.v)
	if e.centered {
		k[1] |= paletteCentered
	}
	return [paletteEntryBytes]byte{byte(e.level), k[0], k[1], v[0], v[1]}
}

// Ways to code the block of each token of a head. The writer chooses the cheapest, the first on a
// tie.
const (
	memberFlat  = iota // every block equally likely for every token
	memberEven         // blocks of equal size, the first ones one larger: drawn from an urn
	memberSizes        // sizes given, then drawn from an urn
	memberRuns         // sizes given, one adaptive bit "same as the token before", else from the urn
	numMembers
)

// encodeTable appends the table of rec to dst. rec has been checked and has tokens tokens per head.
func encodeTable(dst []byte, rec *Record, tokens int) ([]byte, error) {
	index := map[paletteEntry]int{}
	var entries []paletteEntry
	for hi := range rec.Heads {
		for bi := range rec.Heads[hi].Blocks {
			b := &rec.Heads[hi].Blocks[bi]
			e := entryOf(b)
			if _, ok := index[e]; !ok {
				index[e] = len(entries)
				entries = append(entries, e)
			}
		}
	}
	if len(entries) > maxBlocks {
		return dst, shapef("record (layer %d, segment %d): %d kinds of blocks, want at most %d",
			rec.Layer, rec.Segment, len(entries), maxBlocks)
	}
	dst = append(dst, byte(len(entries)))
	for _, e := range entries {
		b := e.pack()
		dst = append(dst, b[:]...)
	}
	enc := newRangeEncoder()
	var starts [2]bitModel
	starts[0], starts[1] = newBitModel(), newBitModel()
	owner := make([]uint8, tokens)
	for hi := range rec.Heads {
		blocks := rec.Heads[hi].Blocks
		enc.uniform(len(blocks)-1, maxBlocks)
		sizes := make([]int, len(blocks))
		for bi := range blocks {
			b := &blocks[bi]
			enc.uniform(index[entryOf(b)], len(entries))
			sizes[bi] = len(b.Tokens)
			for _, t := range b.Tokens {
				owner[t] = uint8(bi)
			}
		}
		mode := cheapestMember(owner, sizes)
		if len(blocks) > 1 {
			enc.uniform(mode, numMembers)
			encodeMembers(&enc, mode, owner, sizes)
		}
		for bi := range blocks {
			encodeStarts(&enc, &starts, &blocks[bi])
		}
	}
	return append(dst, enc.finish()...), nil
}

// startModel returns the model of a merged level, or nil for other levels.
func startModel(starts *[2]bitModel, l quant.Level) *bitModel {
	switch l {
	case quant.Chunks:
		return &starts[0]
	case quant.Summary:
		return &starts[1]
	}
	return nil
}

// encodeStarts codes one bit for every token of a merged block but the first: whether a row starts
// at this token.
func encodeStarts(e *rangeEncoder, starts *[2]bitModel, b *Block) {
	m := startModel(starts, b.Level)
	if m == nil {
		return
	}
	for i, c := range b.Counts {
		if i > 0 {
			e.bit(true, m)
		}
		for range c - 1 {
			e.bit(false, m)
		}
	}
}

func decodeStarts(d *rangeDecoder, m *bitModel, tokens int) []uint16 {
	counts := []uint16{1}
	for range tokens - 1 {
		if d.bit(m) {
			counts = append(counts, 1)
		} else {
			counts[len(counts)-1]++
		}
	}
	return counts
}

// tableReader reads the table of one record.
type tableReader struct {
	place
	off             int64 // of the table in the file
	kvHeads, tokens int
	kDim, vDim      int
	maxStored       int // largest number of blocks with payload that fit in the record
	stored          int // number of them so far
	entries         []paletteEntry
	used            int // number of entries used so far; entries are in the order of their first use
	dec             rangeDecoder
	starts          [2]bitModel
}

func (t *tableReader) decode(s []byte) ([]Head, error) {
	rest, err := t.palette(s)
	if err != nil {
		return nil, err
	}
	t.off += int64(len(s) - len(rest))
	t.dec = newRangeDecoder(rest)
	t.starts[0], t.starts[1] = newBitModel(), newBitModel()
	heads := make([]Head, t.kvHeads)
	owner := make([]uint8, t.tokens)
	for hi := range heads {
		t.head = hi
		if heads[hi].Blocks, err = t.blocks(); err != nil {
			return nil, err
		}
		if err := t.members(heads[hi].Blocks, owner); err != nil {
			return nil, err
		}
	}
	t.head = -1
	if t.used != len(t.entries) {
		return nil, t.corrupt(t.off, "palette entries used", len(t.entries), t.used)
	}
	if !t.dec.canonical() {
		return nil, t.corrupt(t.off, "bytes after the end of the coded table", t.dec.pos, len(rest))
	}
	return heads, nil
}

// blocks reads the number of blocks of a head and their palette entries.
func (t *tableReader) blocks() ([]Block, error) {
	n := t.dec.uniform(maxBlocks) + 1
	if n > t.tokens {
		return nil, t.corrupt(t.off, "more blocks than tokens", fmt.Sprintf("at most %d", t.tokens), n)
	}
	blocks := make([]Block, n)
	dropped := 0
	for bi := range blocks {
		i := t.dec.uniform(len(t.entries))
		if i > t.used {
			return nil, t.corrupt(t.off, "palette entry out of order", fmt.Sprintf("at most %d", t.used), i)
		}
		t.used = max(t.used, i+1)
		e := t.entries[i]
		if e.level == quant.Dropped {
			dropped++
		} else {
			t.stored++
		}
		blocks[bi] = Block{Level: e.level, K: e.k, V: e.v, Centered: e.centered}
	}
	if dropped > 1 {
		return nil, t.corrupt(t.off, "DROPPED blocks of a head", "at most 1", dropped)
	}
	// This also bounds the memory for blocks by the size of the section.
	if t.stored > t.maxStored {
		return nil, t.corrupt(t.off, "more blocks than the record has room for",
			fmt.Sprintf("at most %d", t.maxStored), t.stored)
	}
	return blocks, nil
}

// members reads the tokens and rows of a head's blocks. owner is scratch, [tokens].
func (t *tableReader) members(blocks []Block, owner []uint8) error {
	sizes := make([]int, len(blocks))
	if len(blocks) == 1 {
		clear(owner)
		sizes[0] = t.tokens
	} else if !decodeMembers(&t.dec, t.dec.uniform(numMembers), owner, sizes) {
		return t.corrupt(t.off, "block without tokens", nil, nil)
	}
	shareTokens(blocks, owner, sizes)
	for bi := range blocks {
		if m := startModel(&t.starts, blocks[bi].Level); m != nil {
			blocks[bi].Counts = decodeStarts(&t.dec, m, len(blocks[bi].Tokens))
		}
	}
	return nil
}

// shareTokens gives every block its list of tokens; the lists share one array.
func shareTokens(blocks []Block, owner []uint8, sizes []int) {
	all := make([]uint16, len(owner))
	at := 0
	for bi := range blocks {
		blocks[bi].Tokens = all[at : at : at+sizes[bi]]
		at += sizes[bi]
	}
	for t, b := range owner {
		blocks[b].Tokens = append(blocks[b].Tokens, uint16(t))
	}
}

// palette reads the palette at the start of a table and returns the rest.
func (t *tableReader) palette(s []byte) (rest []byte, err error) {
	if len(s) < 1 || s[0] == 0 || len(s) < 1+paletteEntryBytes*int(s[0]) {
		return nil, t.corrupt(t.off, "palette does not fit the table", nil, len(s))
	}
	entries := make([]paletteEntry, s[0])
	seen := make(map[paletteEntry]bool, len(entries))
	rest = s[1:]
	for i := range entries {
		b := rest[:paletteEntryBytes]
		at := t.off + 1 + int64(i)*paletteEntryBytes
		e := paletteEntry{level: quant.Level(b[0])}
		if !e.level.Valid() {
			return nil, t.refuse(at, fmt.Errorf("level %d: %w", b[0], quant.ErrUnsupported))
		}
		e.centered = b[2]&paletteCentered != 0
		if e.k, err = unpackCoding([2]byte{b[1], b[2] &^ paletteCentered}); err == nil {
			e.v, err = unpackCoding([2]byte(b[3:5]))
		}
		if err != nil {
			return nil, t.refuse(at, err)
		}
		if err := checkCodings(e.level, e.k, e.v, t.kDim, t.vDim); err != nil {
			// Keep only the category: the text of err is about a caller's codings.
			c := t.corrupt(at, "palette entry", nil, nil).(*CorruptError)
			c.Err = fmt.Errorf("palette entry: %w (%v)", quant.ErrCorrupt, err)
			return nil, c
		}
		if e.centered && (t.vDim == 0 || e.level == quant.Dropped) {
			return nil, t.corrupt(at+2, "rows without their mean in a block of level "+e.level.String(), nil, nil)
		}
		if seen[e] {
			return nil, t.corrupt(at, "palette entry given twice", nil, i)
		}
		seen[e] = true
		entries[i] = e
		rest = rest[paletteEntryBytes:]
	}
	t.entries = entries
	return rest, nil
}

// packCoding returns the two bytes that stand for a coding: format, then rule | scale form << 2.
func packCoding(c quant.Coding) [2]byte {
	return [2]byte{byte(c.Format), byte(c.Rule) | byte(c.Scale)<<2}
}

// unpackCoding is the inverse of packCoding. It accepts the zero coding for a side that is not stored.
//
// Errors: quant.ErrUnsupported for bytes that no coding of this version has.
func unpackCoding(b [2]byte) (quant.Coding, error) {
	if b == [2]byte{} {
		return quant.Coding{}, nil
	}
	c := quant.Coding{Format: quant.Format(b[0]), Rule: quant.ScaleRule(b[1] & 3), Scale: quant.ScaleForm(b[1] >> 2)}
	return c, c.Validate()
}
