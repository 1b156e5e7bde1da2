// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"io"

	"github.com/kvist-project/kvist/quant"
)

// SequenceName is the name of the side tensor that a sequence of a cache is saved with: what it needs beside
// its rows to go on. Package engine describes its bytes.
const SequenceName = "kvist.sequence"

// Writer writes a file from front to back, without seeking.
type Writer struct {
	w       io.Writer
	h       Header
	off     int64
	entries []entry
	seen    map[[2]int]bool
	names   map[string]bool
	buf     []byte
	err     error // the first failure; nothing is written after it
	closed  bool
}

// NewWriter writes the header to w and returns a Writer for the rest. The Writer keeps slices of h
// that WriteRecord needs; the caller must not change them before Close.
//
// Errors: those of HeaderSize, and of w; quant.ErrTooLarge also for what no reader accepts by default.
func NewWriter(w io.Writer, h *Header) (*Writer, error) {
	b, err := appendHeader(nil, h)
	if err == nil {
		err = h.checkWritten()
	}
	if err != nil {
		return nil, err
	}
	wr := &Writer{w: w, h: *h, seen: map[[2]int]bool{}, names: map[string]bool{}}
	wr.h.Version = oldestVersion(*h)
	return wr, wr.write("header", b)
}

// write writes b to the file. It keeps the first error.
func (w *Writer) write(what string, b []byte) error {
	n, err := w.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = fmt.Errorf("kvist/container: writing %s at offset %d: %w", what, w.off, err)
		return w.err
	}
	w.off += int64(n)
	return nil
}

func (w *Writer) ready() error {
	if w.closed {
		return fmt.Errorf("kvist/container: writer: %w", quant.ErrClosed)
	}
	return w.err
}

// WriteRecord writes one record. Records may come in any order, each (layer, segment) once. If
// WriteRecord refuses a record, it writes nothing.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge, quant.ErrClosed, those of
// the underlying writer.
func (w *Writer) WriteRecord(rec *Record) error {
	if err := w.ready(); err != nil {
		return err
	}
	key := [2]int{rec.Layer, rec.Segment}
	if w.seen[key] {
		return shapef("record (layer %d, segment %d) written twice", rec.Layer, rec.Segment)
	}
	b, err := appendRecord(w.buf[:0], &w.h, rec)
	w.buf = b
	if err != nil {
		return err
	}
	w.seen[key] = true
	w.entries = append(w.entries, entry{offset: w.off, segment: uint32(rec.Segment),
		layer: uint16(rec.Layer), kind: entryRecord})
	return w.write(fmt.Sprintf("record (layer %d, segment %d)", rec.Layer, rec.Segment), b)
}

// WriteAux writes a side tensor. Names are unique.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrTooLarge, quant.ErrClosed, those of the
// underlying writer.
func (w *Writer) WriteAux(a *Aux) error {
	if err := w.ready(); err != nil {
		return err
	}
	if w.names[a.Name] {
		return shapef("side tensor %q written twice", a.Name)
	}
	if len(w.names) >= defaultSides {
		return fmt.Errorf("kvist/container: side tensor %q: readers accept %d of them: %w", a.Name,
			defaultSides, quant.ErrTooLarge)
	}
	b, err := appendAux(w.buf[:0], a)
	w.buf = b
	if err != nil {
		return err
	}
	w.names[a.Name] = true
	w.entries = append(w.entries, entry{offset: w.off, kind: entrySide})
	return w.write(fmt.Sprintf("side tensor %q", a.Name), b)
}

// Close writes the index and the trailer. It does not close the underlying writer. Close fails if a
// record is missing, and writes no trailer then, so no reader takes the file for complete.
//
// Errors: quant.ErrShape for a missing record, quant.ErrTooLarge, quant.ErrClosed for a second
// Close, those of the underlying writer.
func (w *Writer) Close() error {
	if err := w.ready(); err != nil {
		return err
	}
	if n := w.h.Records(); int64(len(w.seen)) != n {
		return shapef("close: %d records written, want %d", len(w.seen), n)
	}
	size := indexSize(len(w.entries))
	if size > 1<<32-1 {
		return fmt.Errorf("kvist/container: close: index takes %d bytes: %w", size, quant.ErrTooLarge)
	}
	w.closed = true
	b := appendTrailer(appendIndex(w.buf[:0], w.entries), w.off, size)
	return w.write("index and trailer", b)
}

// Size returns the number of bytes written so far; after Close it is the size of the file.
func (w *Writer) Size() int64 { return w.off }
