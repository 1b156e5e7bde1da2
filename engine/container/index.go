// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// entry is one section between header and index.
type entry struct {
	offset  int64
	length  int64 // from one offset to the next; not in the file
	segment uint32
	layer   uint16
	kind    uint16
}

// EndSize returns the bytes of index and trailer of a file with this many records and side tensors in
// total.
func EndSize(sections int) int64 { return indexSize(sections) + trailerSize }

func indexSize(sections int) int64 { return indexHeaderBytes + indexEntryBytes*int64(sections) }

func appendIndex(dst []byte, entries []entry) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = append(dst, markIndex...)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint32(dst, uint32(len(entries)))
	dst = le.AppendUint32(dst, 0)
	for _, e := range entries {
		dst = le.AppendUint64(dst, uint64(e.offset))
		dst = le.AppendUint32(dst, e.segment)
		dst = le.AppendUint16(dst, e.layer)
		dst = le.AppendUint16(dst, e.kind)
	}
	le.PutUint32(dst[start+indexCRCAt:], checksum(dst[start:], indexCRCAt))
	return dst
}

func appendTrailer(dst []byte, indexOffset, indexLength int64) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(indexOffset))
	dst = le.AppendUint32(dst, uint32(indexLength))
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint64(dst, uint64(indexOffset+indexLength+trailerSize))
	dst = append(dst, magicEnd...)
	le.PutUint32(dst[start+trailerCRCAt:], checksum(dst[start:], trailerCRCAt))
	return dst
}

// parseTrailer reads the trailer b, trailerSize bytes, and returns the position of the index.
func parseTrailer(p place, lim *Limits, b []byte, size int64) (off, length int64, err error) {
	le := binary.LittleEndian
	at := size - trailerSize
	if string(b[24:]) != magicEnd {
		return 0, 0, p.corrupt(at+24, "magic: the file does not end as one that was closed",
			fmt.Sprintf("%q", magicEnd), fmt.Sprintf("%q", b[24:]))
	}
	if want, got := checksum(b, trailerCRCAt), le.Uint32(b[trailerCRCAt:]); want != got {
		return 0, 0, p.corrupt(at+trailerCRCAt, "checksum", hex32(want), hex32(got))
	}
	if n := le.Uint64(b[16:]); n != uint64(size) {
		return 0, 0, p.corrupt(at+16, "file length", size, n)
	}
	o, n := le.Uint64(b), int64(le.Uint32(b[8:]))
	if n < indexHeaderBytes || n%align != 0 || n > at || o != uint64(at-n) || o%align != 0 {
		return 0, 0, p.corrupt(at, "index does not end where the trailer starts",
			at, fmt.Sprintf("%d + %d", o, n))
	}
	if most := indexSize(0) + indexEntryBytes*(lim.MaxRecords+lim.MaxSides); n > most {
		return 0, 0, p.tooLarge(at+8, "index length", most, n)
	}
	return at - n, n, nil
}

// parseIndex reads the index s at off. Its sections must fill the space between the end of the
// header, from, and the index, without gaps.
func parseIndex(p place, lim *Limits, h *Header, from, off int64, s []byte) ([]entry, error) {
	le := binary.LittleEndian
	if string(s[:4]) != markIndex {
		return nil, p.corrupt(off, "marker", fmt.Sprintf("%q", markIndex), fmt.Sprintf("%q", s[:4]))
	}
	if want, got := checksum(s, indexCRCAt), le.Uint32(s[indexCRCAt:]); want != got {
		return nil, p.corrupt(off+indexCRCAt, "checksum", hex32(want), hex32(got))
	}
	n := len(s)/indexEntryBytes - 1
	if got := le.Uint32(s[8:]); int64(got) != int64(n) {
		return nil, p.corrupt(off+8, "entries", n, got)
	}
	if got := le.Uint32(s[12:]); got != 0 {
		return nil, p.corrupt(off+12, "reserved bytes", 0, got)
	}
	entries := make([]entry, n)
	records, sides := int64(0), int64(0)
	for i := range entries {
		b := s[indexHeaderBytes+i*indexEntryBytes:]
		at := off + indexHeaderBytes + int64(i)*indexEntryBytes
		o := le.Uint64(b)
		e := entry{segment: le.Uint32(b[8:]), layer: le.Uint16(b[12:]), kind: le.Uint16(b[14:])}
		if o > math.MaxInt64 || (i == 0 && int64(o) != from) {
			return nil, p.corrupt(at, "offset of the first section", from, o)
		}
		e.offset = int64(o)
		if i > 0 {
			prev := &entries[i-1]
			prev.length = e.offset - prev.offset
			if prev.length < align || e.offset%align != 0 {
				return nil, p.corrupt(at, "offsets ascend by multiples of 16", nil, o)
			}
		}
		switch {
		case e.kind == entryRecord:
			records++
			if int(e.layer) >= h.Stored() || int64(e.segment) >= h.Segments(int(e.layer)) {
				return nil, p.corrupt(at+8, "no such record", nil,
					fmt.Sprintf("layer %d, segment %d", e.layer, e.segment))
			}
		case e.layer != 0 || e.segment != 0:
			return nil, p.corrupt(at+8, "a section that is not a record", "layer 0, segment 0",
				fmt.Sprintf("layer %d, segment %d", e.layer, e.segment))
		case e.kind == entrySide:
			sides++
		case e.kind&sectionFlagRequired != 0:
			return nil, p.refuse(at+14, fmt.Errorf("section of kind %#x is required and not known: %w",
				e.kind, quant.ErrUnsupported))
		}
		entries[i] = e
	}
	end := from
	if n > 0 {
		last := &entries[n-1]
		last.length = off - last.offset
		end = last.offset + last.length
		if last.length < align {
			return nil, p.corrupt(off+int64(len(s))-indexEntryBytes, "section ends before the index", off,
				last.offset)
		}
	}
	switch {
	case end != off:
		return nil, p.corrupt(off, "bytes between header and index", from, off)
	case records > lim.MaxRecords:
		return nil, p.tooLarge(off+8, "number of records", lim.MaxRecords, records)
	case sides > lim.MaxSides:
		return nil, p.tooLarge(off+8, "number of side tensors", lim.MaxSides, sides)
	case records != h.Records():
		return nil, p.corrupt(off+8, "number of records", h.Records(), records)
	}
	return entries, nil
}
