// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// DumpOptions controls how much Dump shows.
type DumpOptions struct {
	// MaxBytes is the number of bytes shown of each opaque part (payload, table, text). Dump always
	// shows the part's length and CRC32C. The default is 16; a negative value shows no bytes.
	MaxBytes int
	// Tokens lists the tokens and counts of every block.
	Tokens bool
}

// Dump writes every byte of the file that r reads, annotated as "offset: hex  # name: value". For a
// damaged section it shows the error.
//
// Errors: those of w and of the reader below r.
func Dump(w io.Writer, r *Reader, opts DumpOptions) error {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 16
	}
	d := &dumper{w: bufio.NewWriter(w), r: r, opts: opts}
	if err := d.header(); err != nil {
		return err
	}
	for i := range r.entries {
		if err := d.section(&r.entries[i]); err != nil {
			return err
		}
	}
	if r.index >= 0 {
		if err := d.tail(); err != nil {
			return err
		}
	}
	if err := d.w.Flush(); err != nil {
		return fmt.Errorf("kvist/container: dump of %s: %w", r.name, err)
	}
	return nil
}

type dumper struct {
	w    *bufio.Writer
	r    *Reader
	opts DumpOptions
}

const hexWidth = 8 // bytes per line

// title starts a section. The bufio.Writer keeps errors of w; Flush returns them.
func (d *dumper) title(format string, args ...any) {
	fmt.Fprintf(d.w, "\n## "+format+"\n", args...)
}

// line shows b, at offset off of the file, in lines of hexWidth bytes. The first line has the note;
// characters in the note cannot break the line.
func (d *dumper) line(off int64, b []byte, format string, args ...any) {
	note := strings.TrimRight(fmt.Sprintf(format, args...), " ")
	note = strings.ReplaceAll(note, "\n", `\n`)
	for first := true; first || len(b) > 0; first = false {
		n := min(hexWidth, len(b))
		if first {
			fmt.Fprintf(d.w, "%08x: %-*s  # %s\n", off, 3*hexWidth-1, fmt.Sprintf("% x", b[:n]), note)
		} else {
			fmt.Fprintf(d.w, "%08x: % x\n", off, b[:n])
		}
		b, off = b[n:], off+int64(n)
	}
}

// opaque shows the first bytes of a part, its length and its checksum.
func (d *dumper) opaque(off int64, b []byte, format string, args ...any) {
	note := fmt.Sprintf(format, args...)
	shown := min(len(b), max(d.opts.MaxBytes, 0))
	d.line(off, b[:shown], "%s: %d bytes, crc32c %s", note, len(b),
		hex32(crc32.Checksum(b, castagnoli)))
	if shown < len(b) && shown > 0 {
		fmt.Fprintf(d.w, "          ...\n")
	}
}

// attention shows the kinds of layers. The header was read, so its lengths are right.
func (d *dumper) attention(off int64, v []byte) {
	le := binary.LittleEndian
	layers, n := int(le.Uint32(v)), int(le.Uint32(v[4:]))
	d.line(off, v[:4], "layers: %d", layers)
	d.line(off+4, v[4:8], "kinds: %d", n)
	at := 8
	for range n {
		d.fixed(&layoutAttention, off+int64(at), v[at:at+attentionBytes])
		freqs := 4 * int(le.Uint32(v[at+40:]))
		at += attentionBytes
		if freqs > 0 {
			d.opaque(off+int64(at), v[at:at+freqs], "inv_freq")
			at += freqs
		}
	}
	d.opaque(off+int64(at), v[at:], "kind of each layer")
}

// fixed shows a structure with its layout table.
func (d *dumper) fixed(l *layout, off int64, b []byte) {
	for i := range l.fields {
		f := &l.fields[i]
		v := b[f.off : f.off+f.size]
		d.line(off+int64(f.off), v, "%s: %s", f.name, f.value(v))
	}
}

func (d *dumper) padding(off int64, b []byte) {
	if len(b) > 0 {
		d.line(off, b, "padding")
	}
}

func (d *dumper) header() error {
	r := d.r
	b, err := r.read(place{file: r.name}.in("header"), 0, r.hdrLen)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.w, "## header, %d bytes\n", r.hdrLen)
	d.fixed(&layoutHeader, 0, b)
	le := binary.LittleEndian
	names := map[uint16]string{tagPadding: "padding"}
	for _, t := range tagInfos() {
		names[t.tag] = t.name
	}
	for at := int64(fileHeaderBytes); at < r.hdrLen; {
		tag, n := le.Uint16(b[at:]), int64(le.Uint32(b[at+4:]))
		name := names[tag]
		if name == "" {
			name = "not known"
		}
		need := ""
		if le.Uint16(b[at+2:])&fieldFlagRequired != 0 {
			need = ", required"
		}
		d.line(at, b[at:at+fieldHeaderBytes], "field %d: %s%s, %d bytes", tag, name, need, n)
		at += fieldHeaderBytes
		v := b[at : at+n]
		switch tag {
		case tagPadding:
		case tagGeometry:
			d.fixed(&layoutGeometry, at, v)
		case tagSpan:
			d.fixed(&layoutSpan, at, v)
		case tagAttention:
			d.attention(at, v)
		case tagSeed:
			d.line(at, v, "seed: %#x", le.Uint64(v))
		default:
			d.opaque(at, v, "%s", name)
		}
		end := (at + n + 7) &^ 7
		d.padding(at+n, b[at+n:end])
		at = end
	}
	return nil
}

func (d *dumper) section(e *entry) error {
	r := d.r
	switch e.kind {
	case entryRecord:
		d.title("record, layer %d, segment %d, %d bytes at %d", e.layer, e.segment, e.length, e.offset)
		return d.record(e)
	case entrySide:
		d.title("side tensor, %d bytes at %d", e.length, e.offset)
		return d.side(e)
	}
	d.title("section of kind %#x, %d bytes at %d", e.kind, e.length, e.offset)
	if err := r.verifyUnknown(e); err != nil {
		fmt.Fprintf(d.w, "# damaged: %v\n", err)
		return nil
	}
	b, err := r.read(place{file: r.name}.in("section"), e.offset, e.length)
	if err == nil {
		d.opaque(e.offset, b, "section")
	}
	return err
}

func (d *dumper) record(e *entry) error {
	r := d.r
	rec, err := r.readRecord(e)
	if err != nil {
		fmt.Fprintf(d.w, "# damaged: %v\n", err)
		return nil
	}
	b, err := r.read(r.recordPlace(e), e.offset, e.length)
	if err != nil {
		return err
	}
	d.fixed(&layoutRecord, e.offset, b)
	table := int64(binary.LittleEndian.Uint32(b[12:]))
	at := int64(recordHeaderBytes)
	end := at + table
	if rec.Archive != nil {
		d.opaque(e.offset+at, rec.Archive, "payload in archive form")
		d.padding(e.offset+end, b[end:])
		return nil
	}
	n := int(b[at])
	d.line(e.offset+at, b[at:at+1], "palette entries: %d", n)
	at++
	for range n {
		v := b[at : at+paletteEntryBytes]
		k, _ := unpackCoding([2]byte{v[1], v[2] &^ paletteCentered}) // checked by readRecord
		vc, _ := unpackCoding([2]byte(v[3:5]))
		d.line(e.offset+at, v, "%s K %s%s V %s", quant.Level(v[0]), codingName(k),
			centeredName(v[2]&paletteCentered != 0), codingName(vc))
		at += paletteEntryBytes
	}
	d.opaque(e.offset+at, b[at:end], "coded table")
	d.padding(e.offset+end, b[end:padded(end)])
	d.blocks(rec)
	at = padded(end)
	kDim, vDim := r.h.Dims(rec.Layer)
	return eachPayload(rec, kDim, vDim, func(p piece, size int64) error {
		if p.block < 0 {
			d.opaque(e.offset+at, *p.data, "head %d %s", p.head, p.side)
		} else {
			d.opaque(e.offset+at, *p.data, "head %d block %d %s", p.head, p.block, p.side)
		}
		d.padding(e.offset+at+size, b[at+size:at+padded(size)])
		at += padded(size)
		return nil
	})
}

func centeredName(centered bool) string {
	if centered {
		return " without mean"
	}
	return ""
}

func codingName(c quant.Coding) string {
	if c == (quant.Coding{}) {
		return "-"
	}
	return c.String()
}

// blocks shows the decoded table.
func (d *dumper) blocks(rec *Record) {
	for hi := range rec.Heads {
		for bi := range rec.Heads[hi].Blocks {
			b := &rec.Heads[hi].Blocks[bi]
			fmt.Fprintf(d.w, "# head %d block %d: %s K %s%s V %s, %d tokens, %d rows\n",
				hi, bi, b.Level, codingName(b.K), centeredName(b.Centered), codingName(b.V), len(b.Tokens), b.Rows())
			if d.opts.Tokens {
				fmt.Fprintf(d.w, "#   tokens %s\n", ranges(b.Tokens))
				if b.Counts != nil {
					fmt.Fprintf(d.w, "#   counts %v\n", b.Counts)
				}
			}
		}
	}
}

// ranges writes ascending numbers as "0-3 5 7-8".
func ranges(v []uint16) string {
	var s strings.Builder
	for i := 0; i < len(v); {
		j := i
		for j+1 < len(v) && v[j+1] == v[j]+1 {
			j++
		}
		if i > 0 {
			s.WriteByte(' ')
		}
		if fmt.Fprint(&s, v[i]); j > i {
			fmt.Fprintf(&s, "-%d", v[j])
		}
		i = j + 1
	}
	return s.String()
}

func (d *dumper) side(e *entry) error {
	r := d.r
	info, payload, err := r.readSide(e)
	if err != nil {
		fmt.Fprintf(d.w, "# damaged: %v\n", err)
		return nil
	}
	b, err := r.read(place{file: r.name}.in("side tensor"), e.offset, e.length)
	if err != nil {
		return err
	}
	d.fixed(&layoutSide, e.offset, b)
	at := sideHeaderBytes
	show := func(n int, format string, args ...any) {
		if n > 0 {
			d.line(e.offset+int64(at), b[at:at+n], format, args...)
		}
		at += n
	}
	show(8*len(info.Shape), "shape: %v", info.Shape)
	show(len(info.Name), "name: %s", info.Name)
	show(len(info.DType), "dtype: %s", info.DType)
	d.opaque(e.offset+int64(at), payload, "payload, %s of %d bytes", info.encoding, info.Decoded)
	at += len(payload)
	d.padding(e.offset+int64(at), b[at:])
	return nil
}

func (d *dumper) tail() error {
	r := d.r
	at := r.index
	b, err := r.read(place{file: r.name}.in("index"), at, r.size-at)
	if err != nil {
		return err
	}
	n := indexEntryBytes * (1 + int64(binary.LittleEndian.Uint32(b[8:])))
	d.title("index, %d bytes at %d", n, at)
	d.fixed(&layoutIndex, at, b)
	for i := int64(indexHeaderBytes); i < n; i += indexEntryBytes {
		d.fixed(&layoutEntry, at+i, b[i:])
	}
	if int64(len(b))-n != trailerSize {
		return nil // a salvaged file
	}
	d.title("trailer, %d bytes at %d", trailerSize, at+n)
	d.fixed(&layoutTrailer, at+n, b[n:])
	return nil
}
