// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// Reader reads a file. Its methods are safe for concurrent use if those of the io.ReaderAt are.
type Reader struct {
	name    string
	src     io.ReaderAt
	size    int64
	lim     Limits
	h       *Header
	hdrLen  int64
	entries []entry // in file order
	records []int   // entries that are records
	lookup  map[[2]int]int
	sides   []int // entries that are side tensors
	index   int64 // offset of the index; -1 in a salvaged reader whose index is lost
}

// RecordInfo locates a record.
type RecordInfo struct {
	Layer   int // index into Header.Layers or Header.Tensors
	Segment int
	Offset  int64 // of the section in the file
	Length  int64 // of the section
}

// first is the number of bytes that Open reads at first. Most headers fit.
const first = 4096

// Open reads the header, index and trailer of a file of size bytes from r. name appears in
// messages. The zero Limits mean the defaults. Open refuses a profile and an index
// of vectors; OpenProfile and OpenVectors read them.
//
// Errors: *CorruptError (quant.ErrCorrupt), *RefusedError (quant.ErrVersion,
// quant.ErrUnsupported, quant.ErrTooLarge), those of r.
func Open(name string, r io.ReaderAt, size int64, lim Limits) (*Reader, error) {
	return open(name, r, size, lim, kindInvalid)
}

// OpenProfile opens a file of kind profile and refuses all others. Such a file has geometry, model
// and metadata in its header, side tensors, and no records. Package engine/profile interprets them.
//
// Errors: those of Open.
func OpenProfile(name string, r io.ReaderAt, size int64, lim Limits) (*Reader, error) {
	return open(name, r, size, lim, KindProfile)
}

// OpenVectors opens a file of kind vectors and refuses all others. Such a file has side tensors and no
// records. Package engine/vectors interprets them.
//
// Errors: those of Open.
func OpenVectors(name string, r io.ReaderAt, size int64, lim Limits) (*Reader, error) {
	return open(name, r, size, lim, KindVectors)
}

func open(name string, r io.ReaderAt, size int64, lim Limits, sides Kind) (*Reader, error) {
	rd, err := openHeader(name, r, size, lim, sides)
	if err != nil {
		return nil, err
	}
	p := place{file: name}.in("trailer")
	if size < rd.hdrLen+indexSize(0)+trailerSize {
		return nil, p.corrupt(size, "file is too short", rd.hdrLen+indexSize(0)+trailerSize, size)
	}
	b, err := rd.read(p, size-trailerSize, trailerSize)
	if err != nil {
		return nil, err
	}
	off, n, err := parseTrailer(p, &rd.lim, b, size)
	if err != nil {
		return nil, err
	}
	if off < rd.hdrLen {
		return nil, p.corrupt(size-trailerSize, "index lies in the header", rd.hdrLen, off)
	}
	p = p.in("index")
	if b, err = rd.read(p, off, n); err != nil {
		return nil, err
	}
	if rd.entries, err = parseIndex(p, &rd.lim, rd.h, rd.hdrLen, off, b); err != nil {
		return nil, err
	}
	rd.index = off
	return rd, rd.sort(p, off)
}

// openHeader reads the header section and returns a reader without an index.
func openHeader(name string, r io.ReaderAt, size int64, lim Limits,
	sides Kind) (*Reader, error) {
	rd := &Reader{name: name, src: r, size: size, lim: lim.withDefaults(), index: -1}
	p := place{file: name}.in("header")
	if size < fileHeaderBytes {
		return nil, p.corrupt(max(size, 0), "file is too short for a header", fileHeaderBytes, size)
	}
	if size > rd.lim.MaxTotalBytes {
		return nil, p.tooLarge(0, "file length", rd.lim.MaxTotalBytes, size)
	}
	b, err := rd.read(p, 0, min(first, size))
	if err != nil {
		return nil, err
	}
	v, k, n, err := parseFileHeader(p, &rd.lim, b, size)
	if err != nil {
		return nil, err
	}
	if n > int64(len(b)) {
		rest, err := rd.read(p, int64(len(b)), n-int64(len(b)))
		if err != nil {
			return nil, err
		}
		b = append(b, rest...)
	}
	rd.hdrLen = n
	if rd.h, err = parseHeader(p, b[:n], v, k, sides); err != nil {
		return nil, err
	}
	if err := rd.h.checkExpansion(p.in("record"), &rd.lim); err != nil {
		return nil, err
	}
	return rd, nil
}

// sort builds the lists of records and side tensors from the entries.
func (r *Reader) sort(p place, off int64) error {
	r.lookup = make(map[[2]int]int, len(r.entries))
	for i, e := range r.entries {
		switch e.kind {
		case entryRecord:
			key := [2]int{int(e.layer), int(e.segment)}
			if _, ok := r.lookup[key]; ok {
				p.layer, p.segment = key[0], key[1]
				return p.corrupt(off+indexSize(i), "record given twice", nil, nil)
			}
			r.lookup[key] = len(r.records)
			r.records = append(r.records, i)
		case entrySide:
			r.sides = append(r.sides, i)
		}
	}
	return nil
}

// read returns n bytes at off, which lie within the file.
func (r *Reader) read(p place, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	k, err := r.src.ReadAt(b, off)
	if k == len(b) {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil, p.corrupt(off+int64(k), "file ends early", r.size, off+int64(k))
	}
	return nil, fmt.Errorf("kvist/container: reading %s: %s at offset %d: %w", r.name, p.section,
		off, err)
}

// Header returns the header. It must not be changed.
func (r *Reader) Header() *Header { return r.h }

// Size returns the size of the file in bytes.
func (r *Reader) Size() int64 { return r.size }

// Records lists the records in the order of the file.
func (r *Reader) Records() []RecordInfo {
	infos := make([]RecordInfo, len(r.records))
	for i, j := range r.records {
		e := &r.entries[j]
		infos[i] = RecordInfo{Layer: int(e.layer), Segment: int(e.segment), Offset: e.offset,
			Length: e.length}
	}
	return infos
}

// Find returns the index in Records of a (layer, segment). Only a salvaged file may lack records.
func (r *Reader) Find(layer, segment int) (i int, ok bool) {
	i, ok = r.lookup[[2]int{layer, segment}]
	return i, ok
}

// ReadRecord reads and checks record i of Records. The payloads of the result share one new buffer.
//
// Errors: *CorruptError, *RefusedError, those of the underlying reader; quant.ErrShape for an
// index out of range.
func (r *Reader) ReadRecord(i int) (*Record, error) {
	if i < 0 || i >= len(r.records) {
		return nil, shapef("record %d, want [0, %d)", i, len(r.records))
	}
	return r.readRecord(&r.entries[r.records[i]])
}

func (r *Reader) recordPlace(e *entry) place {
	p := place{file: r.name}.in("record")
	p.layer, p.segment = int(e.layer), int(e.segment)
	return p
}

func (r *Reader) readRecord(e *entry) (*Record, error) {
	p := r.recordPlace(e)
	if e.length > r.lim.MaxRecordBytes {
		return nil, p.tooLarge(e.offset, "length of a record", r.lim.MaxRecordBytes, e.length)
	}
	s, err := r.read(p, e.offset, e.length)
	if err != nil {
		return nil, err
	}
	rec, err := parseRecord(r.h, &r.lim, p, e.offset, s)
	if err != nil {
		return nil, err
	}
	if rec.Layer != int(e.layer) || rec.Segment != int(e.segment) {
		return nil, p.corrupt(e.offset+4, "record is not the one in the index",
			fmt.Sprintf("layer %d, segment %d", e.layer, e.segment),
			fmt.Sprintf("layer %d, segment %d", rec.Layer, rec.Segment))
	}
	return rec, nil
}

// readSide reads a side section and parses all of it but the payload.
func (r *Reader) readSide(e *entry) (*AuxInfo, []byte, error) {
	p := place{file: r.name}.in("side tensor")
	// A section holds at most the raw tensor, its name and its shape.
	if most := r.lim.MaxSideBytes + first + maxName; e.length > most {
		return nil, nil, p.tooLarge(e.offset, "length of a side tensor", most, e.length)
	}
	s, err := r.read(p, e.offset, e.length)
	if err != nil {
		return nil, nil, err
	}
	return parseAuxInfo(&r.lim, p, e.offset, s)
}

// Auxes describes the side tensors in the order of the file. It reads and checks their sections.
//
// Errors: *CorruptError, *RefusedError, those of the underlying reader.
func (r *Reader) Auxes() ([]AuxInfo, error) {
	infos := make([]AuxInfo, 0, len(r.sides))
	names := make(map[string]bool, len(r.sides))
	for _, j := range r.sides {
		info, _, err := r.readSide(&r.entries[j])
		if err != nil {
			return nil, err
		}
		if names[info.Name] {
			return nil, place{file: r.name}.in("side tensor").corrupt(info.Offset, "name given twice", nil,
				info.Name)
		}
		names[info.Name] = true
		infos = append(infos, *info)
	}
	return infos, nil
}

// ReadAllAux reads every side tensor once, in file order. Before it decodes a tensor, it checks the
// sum of the decoded sizes against maxBytes; 0 means Limits.MaxSideBytes. It checks and skips
// sections of unknown kinds, and does not read records.
//
// Errors: *CorruptError, *RefusedError, those of the underlying reader. Any damage is an error.
func (r *Reader) ReadAllAux(maxBytes int64) ([]*Aux, error) {
	if maxBytes <= 0 {
		maxBytes = r.lim.MaxSideBytes
	}
	all := make([]*Aux, 0, len(r.sides))
	names := make(map[string]bool, len(r.sides))
	p := place{file: r.name}.in("side tensor")
	left := maxBytes
	for i := range r.entries {
		e := &r.entries[i]
		if e.kind == entryRecord {
			continue
		}
		if e.kind != entrySide {
			if err := r.verifyUnknown(e); err != nil {
				return nil, err
			}
			continue
		}
		info, payload, err := r.readSide(e)
		if err != nil {
			return nil, err
		}
		if names[info.Name] {
			return nil, p.corrupt(info.Offset, "name given twice", nil, info.Name)
		}
		names[info.Name] = true
		if left -= info.Decoded; left < 0 {
			return nil, p.tooLarge(info.Offset, "bytes of all side tensors together", maxBytes,
				maxBytes-left)
		}
		data, err := decodeAux(p, &r.lim, info, payload)
		if err != nil {
			return nil, err
		}
		all = append(all, &Aux{Name: info.Name, DType: info.DType, Shape: info.Shape, Data: data})
	}
	return all, nil
}

// ReadAux reads the side tensor with the given name.
//
// Errors: fs.ErrNotExist if the file has no such tensor, *CorruptError, *RefusedError, those of the
// underlying reader.
func (r *Reader) ReadAux(name string) (*Aux, error) {
	var damaged error // an unreadable tensor must not hide a later one with this name
	for _, j := range r.sides {
		info, payload, err := r.readSide(&r.entries[j])
		if err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		if info.Name != name {
			continue
		}
		data, err := decodeAux(place{file: r.name}.in("side tensor"), &r.lim, info, payload)
		if err != nil {
			return nil, err
		}
		return &Aux{Name: info.Name, DType: info.DType, Shape: info.Shape, Data: data}, nil
	}
	if damaged == nil {
		damaged = fmt.Errorf("kvist/container: reading %s: side tensor %q: %w", r.name, name,
			fs.ErrNotExist)
	}
	return nil, damaged
}

// Verify reads the whole file and checks every byte: sections must follow each other from the first
// byte to the last, checksums must match, and all fields must be valid. After each section it calls
// progress, unless nil, with the number of bytes done. It continues after damage and returns all
// errors joined; each is an error as returned by ReadRecord or ReadAux.
func (r *Reader) Verify(progress func(done, total int64)) error {
	var errs []error
	done := r.hdrLen // checked by Open, as index and trailer
	names := make(map[string]bool, len(r.sides))
	for i := range r.entries {
		e := &r.entries[i]
		err := r.verifySection(e, names)
		if err != nil {
			errs = append(errs, err)
		}
		done += e.length
		if progress != nil {
			progress(done, r.size)
		}
	}
	if progress != nil {
		progress(r.size, r.size)
	}
	return errors.Join(errs...)
}

func (r *Reader) verifySection(e *entry, names map[string]bool) error {
	switch e.kind {
	case entryRecord:
		_, err := r.readRecord(e)
		return err
	case entrySide:
		info, payload, err := r.readSide(e)
		if err != nil {
			return err
		}
		p := place{file: r.name}.in("side tensor")
		if names[info.Name] {
			return p.corrupt(e.offset, "name given twice", nil, info.Name)
		}
		names[info.Name] = true
		_, err = decodeAux(p, &r.lim, info, payload)
		return err
	}
	return r.verifyUnknown(e)
}

// verifyUnknown checks the checksum of a section of unknown kind. Every section except records
// starts like a side section, with marker, crc and length, now and in future versions.
func (r *Reader) verifyUnknown(e *entry) error {
	p := place{file: r.name}.in("section")
	if e.length > r.lim.MaxRecordBytes {
		return p.tooLarge(e.offset, "length of a section", r.lim.MaxRecordBytes, e.length)
	}
	s, err := r.read(p, e.offset, e.length)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if n := le.Uint64(s[8:]); n != uint64(e.length) {
		return p.corrupt(e.offset+8, "section length", e.length, n)
	}
	if want, got := checksum(s, sideCRCAt), le.Uint32(s[sideCRCAt:]); want != got {
		return p.corrupt(e.offset+sideCRCAt, "checksum", hex32(want), hex32(got))
	}
	return nil
}
