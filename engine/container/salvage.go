// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Salvage opens a file that is damaged or cut short. It walks the file section by section. Where
// there is no section, it searches for the next marker in steps of 16 bytes. It accepts a section
// only if its checksum matches and all its fields are valid. The returned reader has the intact
// records and side tensors. lost lists the rest: records by layer and segment; side tensors by
// their offset if the index is intact, otherwise ranges of bytes. If there are very many, the last
// entry counts the others. For an undamaged file lost is empty.
//
// The header must be intact: records cannot be interpreted without it.
//
// Errors: those of Open for the header, quant.ErrTooLarge if the header promises more records than
// the limits allow, those of r.
func Salvage(name string, r io.ReaderAt, size int64, lim Limits) (rd *Reader,
	lost []*CorruptError, err error) {
	rd, err = openHeader(name, r, size, lim, kindInvalid)
	if err != nil {
		return nil, nil, err
	}
	p := place{file: name}.in("header")
	if n := rd.h.Records(); n > rd.lim.MaxRecords {
		return nil, nil, p.tooLarge(0, "number of records", rd.lim.MaxRecords, n)
	}
	s := &salvager{Reader: rd, index: -1, work: salvageWork*size + salvageWorkFloor}
	whole, err := Open(name, r, size, lim)
	var bad *CorruptError
	switch {
	case err == nil:
		s.known, s.index = whole.entries, whole.index
	case errors.As(err, &bad):
		s.lost = append(s.lost, bad)
	default:
		var refused *RefusedError
		if !errors.As(err, &refused) {
			return nil, nil, err // the underlying reader
		}
	}
	if err := s.scan(); err != nil {
		return nil, nil, err
	}
	s.report()
	if s.unnamed > 0 {
		var c *CorruptError
		errors.As(place{file: name}.in("bytes").corrupt(rd.hdrLen,
			fmt.Sprintf("and %d losses more", s.unnamed), nil, nil), &c)
		s.lost = append(s.lost, c)
	}
	rd.index = s.index
	return rd, s.lost, nil
}

type salvager struct {
	*Reader
	known []entry         // of an intact index
	names map[string]bool // of the side tensors found
	index int64           // its offset, -1 if not found yet
	lost  []*CorruptError
	// unnamed counts the losses beyond maxLost.
	unnamed int
	gaps    [][2]int64
	work    int64 // bytes that failing candidates may still cost

	win    []byte // the last bytes read, from winOff
	winOff int64
}

// peek returns n bytes at off, or nil if the file ends before.
func (s *salvager) peek(off int64, n int) ([]byte, error) {
	if off+int64(n) > s.size {
		return nil, nil
	}
	if off < s.winOff || off+int64(n) > s.winOff+int64(len(s.win)) {
		b, err := s.read(place{file: s.name}.in("bytes"), off, min(1<<16, s.size-off))
		if err != nil {
			return nil, err
		}
		s.win, s.winOff = b, off
	}
	return s.win[off-s.winOff:][:n], nil
}

// scan walks the file after the header.
func (s *salvager) scan() error {
	s.lookup, s.names = map[[2]int]int{}, map[string]bool{}
	gap := int64(-1)
	for pos := s.hdrLen; pos < s.size; {
		n, err := s.section(pos)
		if err != nil {
			return err
		}
		if n == 0 {
			if gap < 0 {
				gap = pos
			}
			pos += align
			continue
		}
		if gap >= 0 {
			s.gaps = append(s.gaps, [2]int64{gap, pos})
			gap = -1
		}
		pos += n
	}
	if gap >= 0 {
		s.gaps = append(s.gaps, [2]int64{gap, s.size})
	}
	return nil
}

// section reads the section at pos and returns its length, or 0 if there is no intact section.
func (s *salvager) section(pos int64) (int64, error) {
	b, err := s.peek(pos, recordHeaderBytes)
	if b == nil || err != nil {
		return 0, err
	}
	switch string(b[:4]) {
	case markRecord:
		return s.record(pos, b)
	case markSide:
		return s.side(pos, b)
	case markIndex:
		return s.foundIndex(pos, b)
	}
	if pos != s.size-trailerSize || s.index < 0 {
		return 0, nil
	}
	if b, err = s.peek(pos, trailerSize); b == nil || err != nil {
		return 0, err
	}
	if _, _, err := parseTrailer(place{}, &s.lim, b, s.size); err != nil {
		return 0, nil // Open has reported it
	}
	return trailerSize, nil
}

// candidate reads n bytes at pos, unless no section can have that length or it would cost too much
// work. The caller gives the work back if the candidate is intact.
func (s *salvager) candidate(pos, n, limit int64) ([]byte, error) {
	if n < align || n%align != 0 || n > limit || n > s.size-pos || n > s.work {
		return nil, nil
	}
	s.work -= n
	return s.read(place{file: s.name}.in("bytes"), pos, n)
}

func (s *salvager) record(pos int64, b []byte) (int64, error) {
	p := place{file: s.name}.in("record")
	head, err := parseRecordHead(s.h, p, pos, b)
	if err != nil {
		return 0, nil
	}
	sec, err := s.candidate(pos, head.total, s.lim.MaxRecordBytes)
	if sec == nil || err != nil {
		return 0, err
	}
	rec, err := parseRecord(s.h, &s.lim, p, pos, sec)
	if err != nil {
		return 0, nil // reported as a lost record
	}
	s.work += head.total
	key := [2]int{rec.Layer, rec.Segment}
	if _, ok := s.lookup[key]; ok {
		p.layer, p.segment = rec.Layer, rec.Segment
		s.lose(p.corrupt(pos, "record given twice; the first one is kept", nil, nil))
		return head.total, nil
	}
	s.lookup[key] = len(s.records)
	s.records = append(s.records, len(s.entries))
	s.entries = append(s.entries, entry{offset: pos, length: head.total,
		segment: uint32(rec.Segment), layer: uint16(rec.Layer), kind: entryRecord})
	return head.total, nil
}

func (s *salvager) side(pos int64, b []byte) (int64, error) {
	n := int64(min(binary.LittleEndian.Uint64(b[8:]), 1<<62))
	sec, err := s.candidate(pos, n, s.lim.MaxSideBytes+first+maxName)
	if sec == nil || err != nil {
		return 0, err
	}
	p := place{file: s.name}.in("side tensor")
	info, payload, err := parseAuxInfo(&s.lim, p, pos, sec)
	if err != nil || int64(len(s.sides)) >= s.lim.MaxSides {
		return 0, nil
	}
	if _, err := decodeAux(p, &s.lim, info, payload); err != nil {
		return 0, nil
	}
	s.work += n
	if s.names[info.Name] {
		s.lose(p.corrupt(pos, "name given twice; the first one is kept", nil, info.Name))
		return n, nil
	}
	s.names[info.Name] = true
	s.sides = append(s.sides, len(s.entries))
	s.entries = append(s.entries, entry{offset: pos, length: n, kind: entrySide})
	return n, nil
}

// foundIndex reads an index. An index that the trailer does not point to still lists the sections.
func (s *salvager) foundIndex(pos int64, b []byte) (int64, error) {
	n := indexEntryBytes * (1 + int64(binary.LittleEndian.Uint32(b[8:])))
	sec, err := s.candidate(pos, n, indexSize(0)+indexEntryBytes*(s.lim.MaxRecords+s.lim.MaxSides))
	if sec == nil || err != nil {
		return 0, err
	}
	entries, err := parseIndex(place{file: s.name}.in("index"), &s.lim, s.h, s.hdrLen, pos, sec)
	if err != nil {
		return 0, nil
	}
	s.work += n
	s.known, s.index = entries, pos
	return n, nil
}

// maxLost bounds the losses that are named: a header of some bytes may promise 2^20 records.
const maxLost = 1 << 14

func (s *salvager) lose(err error) {
	if len(s.lost) >= maxLost {
		s.unnamed++
		return
	}
	var c *CorruptError
	if errors.As(err, &c) {
		s.lost = append(s.lost, c)
	}
}

// report lists everything that was not found.
func (s *salvager) report() {
	found := make(map[int64]bool, len(s.entries))
	for _, e := range s.entries {
		found[e.offset] = true
	}
	for i := range s.known {
		e := &s.known[i]
		if e.kind == entrySide && !found[e.offset] {
			s.lose(place{file: s.name}.in("side tensor").corrupt(e.offset, "lost", nil, nil))
		}
	}
	at := map[[2]int]int64{}
	for _, e := range s.known {
		if e.kind == entryRecord {
			at[[2]int{int(e.layer), int(e.segment)}] = e.offset
		}
	}
	for layer := range s.h.Stored() {
		for segment := range int(s.h.Segments(layer)) {
			key := [2]int{layer, segment}
			if _, ok := s.lookup[key]; ok {
				continue
			}
			if len(s.lost) >= maxLost {
				s.unnamed++
				continue
			}
			p := place{file: s.name}.in("record")
			p.layer, p.segment = layer, segment
			off, ok := at[key]
			switch {
			case ok:
			case len(s.gaps) > 0:
				off = s.gaps[0][0] // somewhere from here on
			default:
				off = s.size // cut off cleanly between two sections
			}
			s.lose(p.corrupt(off, "lost", nil, nil))
		}
	}
	if s.known != nil {
		return // the index says what stood in every gap
	}
	for _, g := range s.gaps {
		s.lose(place{file: s.name}.in("bytes").corrupt(g[0], "no intact section", nil,
			fmt.Sprintf("%d bytes", g[1]-g[0])))
	}
}
