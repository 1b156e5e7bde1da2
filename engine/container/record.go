// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// maxSegmentTokens is the largest number of tokens in a segment: offsets and counts take 16 bits.
const maxSegmentTokens = 1<<16 - 1

// maxBlocks is the largest number of blocks in one KV head of a segment.
const maxBlocks = 255

// align is the alignment of sections and payloads.
const align = 16

func padded(n int64) int64 { return (n + align - 1) &^ (align - 1) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the CRC32C of section without the four bytes at field.
func checksum(section []byte, field int) uint32 {
	c := crc32.Update(0, castagnoli, section[:field])
	return crc32.Update(c, castagnoli, section[field+4:])
}

// Record is one segment of one layer: all KV heads and all their blocks.
type Record struct {
	Layer   int    // index into Header.Layers, or Header.Tensors for KindRows
	Segment int    // holds the layer's tokens from Header.SegmentStart on
	Heads   []Head // [kv_heads]; 1 for KindRows
	// Archive is the payload in archive form (package archive), at least one byte. This package
	// does not interpret it. Such a record has no Heads. It is nil for a record in hot form.
	Archive []byte
}

// Head is one KV head of a record. Every token of the segment is in exactly one block. At most one
// block is DROPPED. Callers should also merge other blocks with the same level and codings: their
// rows cost the same, and separate blocks take bits to tell apart.
type Head struct {
	Blocks []Block // 1 to 255
	// MeanK [head_dim] binary16 was taken off the rows of K of the Centered blocks before they were
	// coded (frame.Center). It is nil if no block is Centered.
	MeanK []byte
}

// Centered reports whether K of some block was coded without its mean.
func (h *Head) Centered() bool {
	for i := range h.Blocks {
		if h.Blocks[i].Centered {
			return true
		}
	}
	return false
}

// Block is a set of tokens of one KV head that share a level and codings.
//
// Row r of a FULL block is token Tokens[r]. Row r of a CHUNKS or SUMMARY block stands for
// Counts[r] tokens, taken in order from Tokens. A DROPPED block has no rows.
type Block struct {
	Level  quant.Level
	K, V   quant.Coding // zero for DROPPED; V is zero for KindRows
	Tokens []uint16     // [tokens] offsets within the segment, ascending, at least one
	Counts []uint16     // [rows] for CHUNKS and SUMMARY, each at least 1, sum len(Tokens); else nil
	KData  []byte       // K.PackedBytes(rows, head_dim) bytes
	VData  []byte       // V.PackedBytes(rows, head_dim_v) bytes; empty for KindRows
	// Centered says that K was coded without the head's MeanK. Never for DROPPED and KindRows.
	Centered bool
}

// Rows returns the number of rows that the block stores.
func (b *Block) Rows() int {
	switch b.Level {
	case quant.Full:
		return len(b.Tokens)
	case quant.Dropped:
		return 0
	}
	return len(b.Counts)
}

// packedBytes is Coding.PackedBytes with a check for overflow of int.
func packedBytes(c quant.Coding, rows, dim int) (int64, error) {
	if rows == 0 || dim == 0 {
		return 0, nil
	}
	if int64(rows)*int64(dim) > math.MaxInt/64 {
		return 0, fmt.Errorf("%d rows of %d values: %w", rows, dim, quant.ErrTooLarge)
	}
	return int64(c.PackedBytes(rows, dim)), nil
}

// RecordSize returns the number of bytes that WriteRecord writes for rec: header, table, padding
// and payloads, without the 16 bytes of its index entry. Payloads may be nil; RecordSize reads only
// levels, codings, tokens, counts and whether blocks are centered.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge.
func RecordSize(h *Header, rec *Record) (int64, error) {
	if err := checkRecord(h, rec); err != nil {
		return 0, err
	}
	if rec.Archive != nil {
		n := padded(recordHeaderBytes + int64(len(rec.Archive)))
		if n > math.MaxUint32 {
			return n, errRecordTooLarge(rec, n)
		}
		return n, nil
	}
	table, err := encodeTable(nil, rec, h.SegmentLen(rec.Layer, rec.Segment))
	if err != nil {
		return 0, err
	}
	n := padded(int64(recordHeaderBytes + len(table)))
	kDim, vDim := h.Dims(rec.Layer)
	err = eachPayload(rec, kDim, vDim, func(_ piece, size int64) error {
		n += padded(size)
		return nil
	})
	if err == nil && n > math.MaxUint32 {
		err = errRecordTooLarge(rec, n)
	}
	return n, err
}

func errRecordTooLarge(rec *Record, n int64) error {
	return fmt.Errorf("kvist/container: record (layer %d, segment %d) takes %d bytes, limit %d: %w",
		rec.Layer, rec.Segment, n, int64(math.MaxUint32), quant.ErrTooLarge)
}

// piece is one payload of a record.
type piece struct {
	head, block int    // block -1: the mean of the head
	side        string // "K", "V" or "mean of K"
	data        *[]byte
}

// eachPayload calls f for every payload of rec in file order: for each head its mean where blocks
// are centered, then for each block K and V.
func eachPayload(rec *Record, kDim, vDim int, f func(p piece, size int64) error) error {
	for hi := range rec.Heads {
		head := &rec.Heads[hi]
		if head.Centered() {
			if err := f(piece{hi, -1, "mean of K", &head.MeanK}, int64(frame.MeanBytes(kDim))); err != nil {
				return err
			}
		}
		for bi := range head.Blocks {
			b := &head.Blocks[bi]
			if b.Level == quant.Dropped {
				continue
			}
			k, err := packedBytes(b.K, b.Rows(), kDim)
			if err == nil {
				err = f(piece{hi, bi, "K", &b.KData}, k)
			}
			if err != nil {
				return err
			}
			if vDim == 0 {
				continue
			}
			v, err := packedBytes(b.V, b.Rows(), vDim)
			if err == nil {
				err = f(piece{hi, bi, "V", &b.VData}, v)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// appendRecord appends the record section to dst, which must be empty or end on 16 bytes.
func appendRecord(dst []byte, h *Header, rec *Record) ([]byte, error) {
	if err := checkRecord(h, rec); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, make([]byte, recordHeaderBytes)...)
	if rec.Archive != nil {
		dst = appendPadding(append(dst, rec.Archive...), start)
		return dst, sealRecord(dst[start:], rec, recordFlagArchive, len(rec.Archive))
	}
	dst, err := encodeTable(dst, rec, h.SegmentLen(rec.Layer, rec.Segment))
	if err != nil {
		return dst, err
	}
	tableLen := len(dst) - start - recordHeaderBytes
	dst = appendPadding(dst, start)
	kDim, vDim := h.Dims(rec.Layer)
	err = eachPayload(rec, kDim, vDim, func(p piece, size int64) error {
		if int64(len(*p.data)) != size {
			return shapef("record (layer %d, segment %d) head %d block %d: payload of %s "+
				"has %d bytes, want %d",
				rec.Layer, rec.Segment, p.head, p.block, p.side, len(*p.data), size)
		}
		dst = appendPadding(append(dst, *p.data...), start)
		return nil
	})
	if err != nil {
		return dst, err
	}
	return dst, sealRecord(dst[start:], rec, 0, tableLen)
}

// sealRecord fills in the header of a record section.
func sealRecord(s []byte, rec *Record, flags uint16, tableLen int) error {
	if int64(len(s)) > math.MaxUint32 {
		return errRecordTooLarge(rec, int64(len(s)))
	}
	copy(s, markRecord)
	le := binary.LittleEndian
	le.PutUint16(s[4:], uint16(rec.Layer))
	le.PutUint16(s[6:], flags)
	le.PutUint32(s[8:], uint32(rec.Segment))
	le.PutUint32(s[12:], uint32(tableLen))
	le.PutUint32(s[16:], uint32(len(s)))
	le.PutUint32(s[recordCRCAt:], checksum(s, recordCRCAt))
	return nil
}

// appendPadding pads dst with zeros to 16 bytes from start.
func appendPadding(dst []byte, start int) []byte {
	n := len(dst) - start
	return append(dst, make([]byte, padded(int64(n))-int64(n))...)
}

// recordHead is the fixed part of a record section.
type recordHead struct {
	layer, segment int
	table, total   int64
}

// parseRecordHead reads and checks the fixed part, except the checksum. b holds at least
// recordHeaderBytes bytes.
func parseRecordHead(h *Header, p place, off int64, b []byte) (recordHead, error) {
	le := binary.LittleEndian
	r := recordHead{
		layer: int(le.Uint16(b[4:])), segment: int(le.Uint32(b[8:])),
		table: int64(le.Uint32(b[12:])), total: int64(le.Uint32(b[16:])),
	}
	if string(b[:4]) != markRecord {
		return r, p.corrupt(off, "marker", fmt.Sprintf("%q", markRecord), fmt.Sprintf("%q", b[:4]))
	}
	if r.total < recordHeaderBytes || r.total%align != 0 {
		return r, p.corrupt(off+16, "record length is not a multiple of 16 beyond the header",
			nil, r.total)
	}
	if r.table > r.total-recordHeaderBytes {
		return r, p.corrupt(off+12, "table is longer than the record",
			fmt.Sprintf("at most %d", r.total-recordHeaderBytes), r.table)
	}
	if r.layer >= h.Stored() {
		return r, p.corrupt(off+4, "layer", fmt.Sprintf("below %d", h.Stored()), r.layer)
	}
	if int64(r.segment) >= h.Segments(r.layer) {
		return r, p.corrupt(off+8, "segment", fmt.Sprintf("below %d", h.Segments(r.layer)), r.segment)
	}
	return r, nil
}

// parseRecord reads a whole record section that starts at off in the file. Payloads alias s.
func parseRecord(h *Header, lim *Limits, p place, off int64, s []byte) (*Record, error) {
	if len(s) < recordHeaderBytes {
		return nil, p.corrupt(off, "section is shorter than a record header", recordHeaderBytes, len(s))
	}
	head, err := parseRecordHead(h, p, off, s)
	if err != nil {
		return nil, err
	}
	if head.total != int64(len(s)) {
		return nil, p.corrupt(off+16, "record length", len(s), head.total)
	}
	le := binary.LittleEndian
	if want, got := checksum(s, recordCRCAt), le.Uint32(s[recordCRCAt:]); want != got {
		return nil, p.corrupt(off+recordCRCAt, "checksum", hex32(want), hex32(got))
	}
	flags := le.Uint16(s[6:])
	if flags&^recordFlagArchive != 0 {
		return nil, p.refuse(off+6, fmt.Errorf("record flags %#x: %w", flags, quant.ErrUnsupported))
	}
	tokens := h.SegmentLen(head.layer, head.segment)
	if n := int64(tokens) * int64(h.KVHeads()); n > lim.MaxRecordTokens {
		return nil, p.tooLarge(off, "kv_heads * tokens of a record", lim.MaxRecordTokens, n)
	}
	p.layer, p.segment = head.layer, head.segment
	rec := &Record{Layer: head.layer, Segment: head.segment}
	if flags == recordFlagArchive {
		return rec, sliceArchive(p, rec, off, s, recordHeaderBytes+head.table)
	}
	kDim, vDim := h.Dims(head.layer)
	tableEnd := recordHeaderBytes + head.table
	t := tableReader{
		place: p, off: off + recordHeaderBytes, kvHeads: h.KVHeads(), tokens: tokens,
		kDim: kDim, vDim: vDim, maxStored: len(s) / align,
	}
	rec.Heads, err = t.decode(s[recordHeaderBytes:tableEnd])
	if err != nil {
		return nil, err
	}
	return rec, slicePayloads(p, rec, off, s, tableEnd, kDim, vDim)
}

// sliceArchive sets Archive to its bytes of s. Only padding to 16 bytes may follow it.
func sliceArchive(p place, rec *Record, off int64, s []byte, end int64) error {
	if end == recordHeaderBytes {
		return p.corrupt(off+12, "payload in archive form", "1 byte or more", 0)
	}
	if padded(end) != int64(len(s)) {
		return p.corrupt(off+12, "length of the payload", int64(len(s))-recordHeaderBytes,
			end-recordHeaderBytes)
	}
	for i := end; i < int64(len(s)); i++ {
		if s[i] != 0 {
			return p.corrupt(off+i, "padding", 0, s[i])
		}
	}
	rec.Archive = s[recordHeaderBytes:end:end]
	return nil
}

// slicePayloads sets MeanK, KData and VData to their bytes of s. It checks that payloads and zero padding
// fill s exactly.
func slicePayloads(p place, rec *Record, off int64, s []byte, at int64, kDim, vDim int) error {
	pad := func() error {
		for ; at%align != 0; at++ {
			if at >= int64(len(s)) {
				return p.corrupt(off+at, "record ends within its padding", nil, nil)
			}
			if s[at] != 0 {
				return p.corrupt(off+at, "padding", 0, s[at])
			}
		}
		return nil
	}
	if err := pad(); err != nil {
		return err
	}
	err := eachPayload(rec, kDim, vDim, func(x piece, size int64) error {
		p.head, p.block = x.head, x.block
		if size > int64(len(s))-at {
			return p.corrupt(off+at, "payload of "+x.side+" is longer than the record", size,
				int64(len(s))-at)
		}
		*x.data = s[at : at+size : at+size]
		at += size
		if x.block < 0 {
			if i := notFinite(*x.data); i >= 0 {
				return p.corrupt(off+at-size+int64(2*i), "mean of K is not finite", nil, nil)
			}
		}
		return pad()
	})
	if err != nil {
		return err
	}
	p.head, p.block = -1, -1
	if at != int64(len(s)) {
		return p.corrupt(off+at, "bytes after the last payload", at, len(s))
	}
	return nil
}

// notFinite returns the first of some binary16 values that is a NaN or an infinity, or -1.
func notFinite(data []byte) int {
	for i := 0; i+1 < len(data); i += 2 {
		if data[i+1]&0x7c == 0x7c {
			return i / 2
		}
	}
	return -1
}

func hex32(v uint32) string { return fmt.Sprintf("%#08x", v) }
