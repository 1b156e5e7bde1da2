// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// openVerify opens a file and verifies all of it.
func openVerify(b []byte, lim Limits) error {
	_, err := readAll(b, lim)
	return err
}

func salvage(t testing.TB, b []byte, lim Limits) (*Reader, []*CorruptError, error) {
	t.Helper()
	r, lost, err := Salvage("test.kvist", bytes.NewReader(b), int64(len(b)), lim)
	if err != nil {
		requireTyped(t, err)
		return nil, nil, err
	}
	for _, l := range lost {
		requireTyped(t, l)
		require.NotEmpty(t, l.Error())
	}
	require.NoError(t, r.Verify(nil), "a salvaged reader holds only what is intact")
	return r, lost, nil
}

func TestCorrupt_EveryTruncation(t *testing.T) {
	for _, g := range goldens() {
		b := readGolden(t, g.name)
		r, err := openBytes(b, Limits{})
		require.NoError(t, err)
		infos := r.Records()
		for n := range b {
			err := openVerify(b[:n], Limits{})
			requireTyped(t, err, g.name, n)
			require.ErrorIs(t, err, quant.ErrCorrupt)
			s, lost, err := salvage(t, b[:n], Limits{})
			if int64(n) < r.hdrLen {
				require.Error(t, err)
				continue
			}
			require.NoError(t, err)
			require.NotEmpty(t, lost)
			whole := 0
			for _, i := range infos {
				if i.Offset+i.Length <= int64(n) {
					whole++
				}
			}
			require.Len(t, s.Records(), whole, "%s cut at %d", g.name, n)
		}
	}
}

func TestCorrupt_EveryByteFlipped(t *testing.T) {
	for _, g := range goldens() {
		b := readGolden(t, g.name)
		r, err := openBytes(b, Limits{})
		require.NoError(t, err)
		records, sides := len(r.records), len(r.sides)
		for i := range b {
			for _, x := range []byte{1, 0x80, 0xff} {
				b[i] ^= x
				requireTyped(t, openVerify(b, Limits{}), g.name, i)
				s, lost, err := salvage(t, b, Limits{})
				if int64(i) < r.hdrLen {
					require.Error(t, err)
				} else {
					require.NoError(t, err)
					require.NotEmpty(t, lost, "%s byte %d", g.name, i)
					// Damage in one section loses that section only.
					require.GreaterOrEqual(t, len(s.records)+len(s.sides), records+sides-1, "%s byte %d", g.name,
						i)
				}
				b[i] ^= x
			}
		}
	}
}

func TestSalvage_NamesWhatIsLost(t *testing.T) {
	b := readGolden(t, "pass-cache")
	r, err := openBytes(b, Limits{})
	require.NoError(t, err)
	info := r.Records()[1]
	b[info.Offset+info.Length-20] ^= 1
	for _, indexToo := range []bool{false, true} {
		if indexToo {
			b[r.index+5] ^= 1
		}
		s, lost, err := salvage(t, b, Limits{})
		require.NoError(t, err)
		require.Len(t, s.Records(), 3)
		found := false
		for _, l := range lost {
			if l.Section == "record" {
				require.False(t, found, "one record is lost")
				require.Equal(t, info.Layer, l.Layer)
				require.Equal(t, info.Segment, l.Segment)
				require.Equal(t, info.Offset, l.Offset)
				found = true
			}
		}
		require.True(t, found)
		require.Equal(t, indexToo, len(lost) > 1)
	}
}

// lengthField is the place of a length or a count in a file.
type lengthField struct {
	name string
	off  int64
	size int
}

func lengthFields(r *Reader, b []byte) []lengthField {
	le := binary.LittleEndian
	fields := []lengthField{{"header.length", 12, 4}}
	for at := int64(fileHeaderBytes); at < r.hdrLen; {
		n := int64(le.Uint32(b[at+4:]))
		tag := le.Uint16(b[at:])
		fields = append(fields, lengthField{fmt.Sprintf("field %d", tag), at + 4, 4})
		if v := at + fieldHeaderBytes; tag == tagMetadata || tag == tagQueryEnergy || tag == tagTensors || tag == tagAttention {
			fields = append(fields, lengthField{fmt.Sprintf("count of field %d", tag), v, 4})
			if tag == tagMetadata {
				fields = append(fields, lengthField{"metadata key length", v + 4, 4},
					lengthField{"metadata value length", v + 8, 4})
			}
			if tag == tagAttention {
				fields = append(fields, lengthField{"kinds of layers", v + 4, 4},
					lengthField{"frequencies of a kind", v + 8 + 40, 4},
					lengthField{"kind of a layer", v + n - 2, 2})
			}
			if tag == tagTensors {
				fields = append(fields, lengthField{"tensor name length", v + 8, 2},
					lengthField{"tensor dims", v + 11, 1})
			}
		}
		at += (fieldHeaderBytes + n + 7) &^ 7
	}
	for _, e := range r.entries {
		switch e.kind {
		case entryRecord:
			fields = append(fields, lengthField{"record.layer", e.offset + 4, 2},
				lengthField{"record.segment", e.offset + 8, 4},
				lengthField{"record.table", e.offset + 12, 4}, lengthField{"record.length", e.offset + 16, 4},
				lengthField{"palette", e.offset + recordHeaderBytes, 1})
		case entrySide:
			fields = append(fields, lengthField{"side.length", e.offset + 8, 8},
				lengthField{"side.stored", e.offset + 16, 8},
				lengthField{"side.decoded", e.offset + 24, 8}, lengthField{"side.name", e.offset + 32, 2},
				lengthField{"side.dtype", e.offset + 34, 1}, lengthField{"side.dims", e.offset + 35, 1},
				lengthField{"side.shape", e.offset + sideHeaderBytes, 8})
		}
	}
	fields = append(fields, lengthField{"index.entries", r.index + 8, 4})
	for i := range r.entries {
		at := r.index + indexSize(i)
		fields = append(fields, lengthField{"entry.offset", at, 8},
			lengthField{"entry.segment", at + 8, 4},
			lengthField{"entry.layer", at + 12, 2})
	}
	end := r.size - trailerSize
	return append(fields, lengthField{"trailer.index_offset", end, 8},
		lengthField{"trailer.index_length", end + 8, 4},
		lengthField{"trailer.file_length", end + 16, 8})
}

// TestCorrupt_LengthFields sets every length to 0, to its maximum and to neighbours of the true
// value. It corrects the checksums, so that the test reaches the checks after the checksum.
func TestCorrupt_LengthFields(t *testing.T) {
	for _, g := range goldens() {
		good := readGolden(t, g.name)
		r, err := openBytes(good, Limits{})
		require.NoError(t, err)
		for _, f := range lengthFields(r, good) {
			var v [8]byte
			copy(v[:f.size], good[f.off:])
			was := binary.LittleEndian.Uint64(v[:])
			for _, set := range []uint64{0, math.MaxUint64 >> (64 - 8*f.size), was + 1, was - 1} {
				if set == was {
					continue
				}
				b := bytes.Clone(good)
				binary.LittleEndian.PutUint64(v[:], set)
				copy(b[f.off:], v[:f.size])
				repairLike(b, r)
				requireTyped(t, openVerify(b, Limits{}), g.name, f.name, f.off, set)
				_, _, _ = salvage(t, b, Limits{})
			}
		}
	}
}

// repairLike corrects the checksums of a file with the same sections as r.
func repairLike(b []byte, r *Reader) {
	put := func(from, to int64, at int) {
		s := b[from:to]
		binary.LittleEndian.PutUint32(s[at:], checksum(s, at))
	}
	put(0, r.hdrLen, fileHeaderCRCAt)
	for _, e := range r.entries {
		at := sideCRCAt
		if e.kind == entryRecord {
			at = recordCRCAt
		}
		put(e.offset, e.offset+e.length, at)
	}
	put(r.index, r.size-trailerSize, indexCRCAt)
	put(r.size-trailerSize, r.size, trailerCRCAt)
}

// TestCorrupt_EveryByteFlippedBehindTheChecksum flips every byte and corrects the checksums. The
// reader need not notice a flip, but it must not panic, and what it accepts must be consistent.
func TestCorrupt_EveryByteFlippedBehindTheChecksum(t *testing.T) {
	for _, g := range goldens() {
		good := readGolden(t, g.name)
		r, err := openBytes(good, Limits{})
		require.NoError(t, err)
		opaque := make([]bool, len(good)) // payloads may be anything: a few of their bytes do
		for _, info := range r.Records() {
			table := int64(binary.LittleEndian.Uint32(good[info.Offset+12:]))
			for i := padded(info.Offset + recordHeaderBytes + table); i < info.Offset+info.Length; i++ {
				opaque[i] = i%61 != 0
			}
		}
		for i := range good {
			for _, x := range []byte{1, 0x10, 0xff} {
				if opaque[i] {
					continue
				}
				b := bytes.Clone(good)
				b[i] ^= x
				repairLike(b, r)
				f, err := readAll(b, Limits{MaxSideBytes: 1 << 20})
				if err != nil {
					requireTyped(t, err, g.name, i)
					continue
				}
				again, err := readAll(f.write(t), Limits{})
				require.NoError(t, err)
				requireSame(t, f, again)
			}
		}
	}
}

// allocated returns the bytes that f allocates on the heap, including those freed since.
func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

func TestLimits_BoundMemory(t *testing.T) {
	const most = 1 << 20
	check := func(name string, b []byte, lim Limits, want error, most uint64) {
		t.Helper()
		var err error
		n := allocated(func() { err = openVerify(b, lim) })
		requireTyped(t, err, name)
		require.ErrorIs(t, err, want, name)
		require.Less(t, n, most, name)
		_, _, _ = salvage(t, b, lim)
	}
	good := readGolden(t, "pass-planes")
	r, err := openBytes(good, Limits{})
	require.NoError(t, err)
	e := r.entries[0]
	le := binary.LittleEndian

	// A side tensor of 1 GiB from a few bytes: no deflate stream can give that.
	b := bytes.Clone(good)
	le.PutUint64(b[e.offset+24:], 1<<29)
	le.PutUint64(b[e.offset+sideHeaderBytes:], 1<<23)
	repairLike(b, r)
	check("deflate", b, Limits{}, quant.ErrCorrupt, most)
	check("deflate over the limit", b, Limits{MaxSideBytes: 1 << 20}, quant.ErrTooLarge, most)

	// A header of 4 GiB in a file of some hundred bytes.
	b = bytes.Clone(good)
	le.PutUint32(b[12:], 0xfffffff0)
	check("header", b, Limits{}, quant.ErrCorrupt, most)

	// Limits far above what an intact file needs.
	good = readGolden(t, "pass-cache")
	check("header limit", good, Limits{MaxHeaderBytes: 64}, quant.ErrTooLarge, most)
	check("record limit", good, Limits{MaxRecordBytes: 64}, quant.ErrTooLarge, most)
	check("records limit", good, Limits{MaxRecords: 3, MaxSides: 3}, quant.ErrTooLarge, most)
	check("sides limit", good, Limits{MaxSides: 1}, quant.ErrTooLarge, most)
	check("total limit", good, Limits{MaxTotalBytes: 64}, quant.ErrTooLarge, most)
	check("side limit", good, Limits{MaxSideBytes: 4}, quant.ErrTooLarge, most)
	check("tokens limit", good, Limits{MaxRecordTokens: 79}, quant.ErrTooLarge, most)

	// A few bytes that promise as many tokens and heads as the limit allows. The lists take two
	// bytes per token and head, starts of rows take two more, and growing doubles both.
	h := &Header{Kind: KindCache, Layers: []int{0}, Tokens: 1 << 13, SegmentTokens: 1 << 13,
		KType: 1, VType: 1, Geometry: quant.Geometry{Layers: 1, Heads: 128, KVHeads: 128, HeadDim: 8,
			HeadDimV: 8}}
	for _, level := range []byte{0, 1, 3} {
		k, v := packCoding(quant.Coding{Format: quant.LM1}), packCoding(quant.Coding{Format: quant.LM1})
		if level == 3 {
			k, v = [2]byte{}, [2]byte{}
		}
		s := make([]byte, 48)
		copy(s, markRecord)
		le.PutUint32(s[12:], 6)
		le.PutUint32(s[16:], 48)
		copy(s[24:], []byte{1, level, k[0], k[1], v[0], v[1]})
		le.PutUint32(s[recordCRCAt:], checksum(s, recordCRCAt))
		n := allocated(func() {
			lim := Limits{}.withDefaults()
			_, err = parseRecord(h, &lim, place{}.in("record"), 0, s)
		})
		require.Error(t, err)
		require.Less(t, n, uint64(128<<13*16), "level %d", level)
	}
}

// TestSalvage_FalseMarkersCostNoMoreThanTheirSize reads a file full of markers that promise long
// records.
func TestSalvage_FalseMarkersCostNoMoreThanTheirSize(t *testing.T) {
	b := readGolden(t, "pass-cache")
	r, err := openBytes(b, Limits{})
	require.NoError(t, err)
	b = b[:r.hdrLen]
	for range 1 << 14 {
		s := make([]byte, 16)
		copy(s, markRecord)
		b = append(b, s...)
	}
	le := binary.LittleEndian
	for at := int(r.hdrLen); at+32 < len(b); at += 32 {
		le.PutUint32(b[at+16:], uint32(len(b)-at)&^15)
	}
	counting := &countingReader{r: bytes.NewReader(b)}
	_, lost, err := Salvage("x", counting, int64(len(b)), Limits{})
	require.NoError(t, err)
	require.NotEmpty(t, lost)
	require.Less(t, counting.n, int64(2*salvageWork*len(b)+2*salvageWorkFloor))
}

type countingReader struct {
	r io.ReaderAt
	n int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.n += int64(len(p))
	return c.r.ReadAt(p, off)
}

func TestReader_PassesErrorsOfTheDiskOn(t *testing.T) {
	b := readGolden(t, "pass-cache")
	for at := range int64(len(b)) {
		bad := &failingReader{b: b, at: at}
		r, err := Open("x", bad, int64(len(b)), Limits{})
		if err == nil {
			err = r.Verify(nil)
		}
		require.ErrorIs(t, err, syscall.EIO)
		require.NotErrorIs(t, err, quant.ErrCorrupt)
		_, _, err = Salvage("x", bad, int64(len(b)), Limits{})
		require.ErrorIs(t, err, syscall.EIO)
	}
}

type failingReader struct {
	b  []byte
	at int64
}

func (f *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.at && f.at < off+int64(len(p)) {
		return copy(p, f.b[off:f.at]), syscall.EIO
	}
	return bytes.NewReader(f.b).ReadAt(p, off)
}

// corruptCase is a file of testdata/corrupt: the change to a golden file, and the expected result.
type corruptCase struct {
	from    string
	damage  func(b []byte, r *Reader) []byte
	want    error
	section string
	says    string
}

func corruptCases() map[string]corruptCase {
	set := func(at int64, v ...byte) func([]byte, *Reader) []byte {
		return func(b []byte, r *Reader) []byte { copy(b[at:], v); repairLike(b, r); return b }
	}
	inRecord := func(i int, at int64, v ...byte) func([]byte, *Reader) []byte {
		return func(b []byte, r *Reader) []byte {
			copy(b[r.Records()[i].Offset+at:], v)
			repairLike(b, r)
			return b
		}
	}
	inAttention := func(at int64, v ...byte) func([]byte, *Reader) []byte {
		return func(b []byte, r *Reader) []byte {
			copy(b[attentionAt(b, r)+at:], v)
			repairLike(b, r)
			return b
		}
	}
	const kind = 8 // of the first kind in the field
	return map[string]corruptCase{
		"layers-count":   {"pass-layers", inAttention(0, 5), quant.ErrCorrupt, "header", "layers"},
		"layers-kinds":   {"pass-layers", inAttention(4, 5), quant.ErrCorrupt, "header", "kinds"},
		"layers-kind":    {"pass-layers", inAttention(8+3*attentionBytes+8+2, 9), quant.ErrCorrupt, "header", "kind of a layer"},
		"layers-unused":  {"pass-layers", inAttention(8+3*attentionBytes+8+2, 0), quant.ErrCorrupt, "header", "ascend"},
		"layers-window":  {"pass-layers", inAttention(kind+23, 0x80), quant.ErrCorrupt, "header", "window"},
		"layers-scale":   {"pass-layers", inAttention(kind+24, 1, 0, 0, 0, 0, 0, 0xf8, 0x7f), quant.ErrCorrupt, "header", "scale NaN"},
		"layers-softcap": {"pass-layers", inAttention(kind+38, 0xf0, 0xff), quant.ErrCorrupt, "header", "soft cap -Inf"},
		"layers-softcap-huge": {"pass-layers", inAttention(kind+38, 0xf0, 0x7e), quant.ErrUnsupported, "header",
			"soft cap"},
		"layers-theta":    {"pass-layers", inAttention(kind+14, 0xf0, 0x7f), quant.ErrCorrupt, "header", "rope of the geometry"},
		"layers-inv-freq": {"pass-layers", inAttention(kind+41, 4), quant.ErrCorrupt, "header", "attention: frequencies"},
		"layers-rope-dim": {"pass-layers", inAttention(8+2*attentionBytes+4, 3), quant.ErrCorrupt, "header", "rotary_dim 3"},
		"magic":           {"pass-rows", set(6, '\n'), quant.ErrCorrupt, "header", "not a kvist file"},
		"version-2":       {"pass-rows", set(8, 2), quant.ErrVersion, "header", "version 2"},
		"kind-profile":    {"pass-rows", set(10, 3), quant.ErrUnsupported, "header", "profile"},
		"header-flags":    {"pass-rows", set(20, 1), quant.ErrUnsupported, "header", "flags"},
		"header-checksum": {"pass-rows", func(b []byte, _ *Reader) []byte { b[40] ^= 1; return b },
			quant.ErrCorrupt, "header", "checksum"},
		"field-required-unknown": {"pass-empty", func(b []byte, r *Reader) []byte {
			// The seed field takes a tag that no version has, and stays required.
			b[r.hdrLen-16] = 0x77
			repairLike(b, r)
			return b
		}, quant.ErrUnsupported, "header", "required"},
		"cut": {"pass-cache", func(b []byte, _ *Reader) []byte { return b[:len(b)-700] },
			quant.ErrCorrupt, "trailer", "magic"},
		"bytes-appended": {"pass-rows", func(b []byte, _ *Reader) []byte {
			return append(b,
				"trailing"...)
		},
			quant.ErrCorrupt, "trailer", "magic"},
		"index-checksum": {"pass-rows", func(b []byte, r *Reader) []byte { b[r.index+20] ^= 1; return b },
			quant.ErrCorrupt, "index", "checksum"},
		"index-record-twice": {"pass-rows", func(b []byte, r *Reader) []byte {
			copy(b[r.index+24:r.index+32], b[r.index+40:])
			repairLike(b, r)
			return b
		}, quant.ErrCorrupt, "index", "twice"},
		"record-checksum": {"pass-cache", func(b []byte, r *Reader) []byte {
			b[r.Records()[2].Offset+60] ^= 4
			return b
		}, quant.ErrCorrupt, "record layer 0 segment 1", "checksum"},
		"record-archive-form": {"pass-rows", inRecord(0, 6, 1), quant.ErrCorrupt, "record",
			"length of the payload"}, // a record in hot form that says it is an archive
		"record-flags": {"pass-rows", inRecord(0, 6, 2), quant.ErrUnsupported, "record",
			"flags 0x2"},
		"record-level": {"pass-rows", inRecord(0, 25, 4), quant.ErrUnsupported, "record",
			"level 4"},
		"record-format": {"pass-rows", inRecord(0, 26, 200), quant.ErrUnsupported, "record",
			"Format(200)"},
		"record-v-in-rows": {"pass-rows", inRecord(0, 28, 2), quant.ErrCorrupt, "record", "palette"},
		"record-coding-swapped": {"pass-rows", inRecord(0, 26, byte(quant.F32)), quant.ErrCorrupt,
			"record", "longer than the record"},
		"record-mean-in-rows": {"pass-rows", inRecord(0, 27, paletteCentered), quant.ErrCorrupt, "record",
			"without their mean"},
		"record-mean-nan": {"pass-mean", func(b []byte, r *Reader) []byte {
			rec, err := r.readRecord(&r.entries[0])
			if err != nil {
				panic(err)
			}
			at := bytes.Index(b, rec.Heads[1].MeanK)
			b[at+3] = 0x7e
			repairLike(b, r)
			return b
		}, quant.ErrCorrupt, "record", "not finite"},
		"record-padding": {"pass-cache", func(b []byte, r *Reader) []byte {
			e := r.entries[0]
			b[padded(e.offset+recordHeaderBytes+int64(binary.LittleEndian.Uint32(b[e.offset+12:])))-1] = 1
			repairLike(b, r)
			return b
		}, quant.ErrCorrupt, "record", "padding"},
		"side-deflate-bomb": {"pass-planes", func(b []byte, r *Reader) []byte {
			at := r.entries[0].offset
			binary.LittleEndian.PutUint64(b[at+24:], 1<<29)
			binary.LittleEndian.PutUint64(b[at+sideHeaderBytes:], 1<<23)
			repairLike(b, r)
			return b
		}, quant.ErrCorrupt, "side tensor", "deflated"},
		"side-encoding": {"pass-planes", func(b []byte, r *Reader) []byte {
			b[r.entries[0].offset+36] = 9
			repairLike(b, r)
			return b
		}, quant.ErrUnsupported, "side tensor", "Encoding(9)"},
	}
}

// attentionAt returns where the attention of layers stands in a file, behind the field's header.
func attentionAt(b []byte, r *Reader) int64 {
	le := binary.LittleEndian
	at := int64(fileHeaderBytes)
	for le.Uint16(b[at:]) != tagAttention {
		at = (at + fieldHeaderBytes + int64(le.Uint32(b[at+4:])) + 7) &^ 7
	}
	return at + fieldHeaderBytes
}

func TestCorrupt_Files(t *testing.T) {
	cases := corruptCases()
	if *update {
		require.NoError(t, os.MkdirAll(corruptDir, 0o755))
		for name, c := range cases {
			b := readGolden(t, c.from)
			r, err := openBytes(b, Limits{})
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(corruptDir, "fail-"+name+".kvist"),
				c.damage(b, r), 0o644))
		}
	}
	paths, err := filepath.Glob(filepath.Join(corruptDir, "fail-*.kvist"))
	require.NoError(t, err)
	require.Len(t, paths, len(cases), "every file has its case")
	for _, path := range paths {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "fail-"), ".kvist")
		t.Run(name, func(t *testing.T) {
			c, ok := cases[name]
			require.True(t, ok)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			err = openVerify(b, Limits{})
			requireTyped(t, err)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.section)
			require.ErrorContains(t, err, c.says)
			_, _, _ = salvage(t, b, Limits{})
		})
	}
}

func TestCorruptError_SaysWhere(t *testing.T) {
	p := place{file: "a.kvist"}.in("record")
	p.layer, p.segment, p.head, p.block = 3, 1, 0, 7
	err := p.corrupt(4096, "checksum", hex32(1), hex32(2))
	require.EqualError(t, err,
		"kvist/container: reading a.kvist: record layer 3 segment 1 head 0 block 7 "+
			"at offset 4096: want 0x00000001, got 0x00000002: checksum: corrupt data")
	var c *CorruptError
	require.True(t, errors.As(err, &c))
	require.ErrorIs(t, err, quant.ErrCorrupt)
}
