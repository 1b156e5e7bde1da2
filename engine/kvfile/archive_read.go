// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"github.com/kvist-project/kvist/engine/blocks"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// archiveCodec opens what a file's records in archive form share; nil where the file has none.
// profiles are those at hand.
//
// Errors: *MissingProfileError where the file names a profile that is not among them;
// *container.CorruptError, *archive.CorruptError.
func archiveCodec(r *container.Reader, profiles []*profile.Profile) (*archive.Codec, error) {
	infos, err := r.Auxes()
	if err != nil {
		return nil, err
	}
	found := false
	for _, i := range infos {
		found = found || i.Name == archiveAux
	}
	if !found {
		return nil, nil
	}
	a, err := r.ReadAux(archiveAux)
	if err != nil {
		return nil, err
	}
	p, err := archive.ParseParams(a.Data)
	if err != nil {
		return nil, err
	}
	if !p.Own {
		id := profile.ID(r.Header().Profile)
		for _, x := range profiles {
			if slices.Contains(x.Digests(profile.SectionBasis, profile.SectionTables), id) {
				if p.Set, err = archiveSet(x); err != nil {
					return nil, err
				}
			}
		}
		if p.Set == nil {
			return nil, &MissingProfileError{ID: id, Given: len(profiles)}
		}
	}
	return archive.NewCodec(p, false)
}

// MissingProfileError says that a file needs a profile that was not given. It matches
// quant.ErrUnavailable.
type MissingProfileError struct {
	ID    profile.ID // digest of the sections basis and tables
	Given int        // profiles that were given, all others
}

// Error names the profile.
func (e *MissingProfileError) Error() string {
	what := "none was given"
	if e.Given > 0 {
		what = "another was given"
	}
	return fmt.Sprintf("kvist/kvfile: the file needs the profile whose basis and tables are %s, and %s", e.ID, what)
}

// Unwrap returns quant.ErrUnavailable.
func (e *MissingProfileError) Unwrap() error { return quant.ErrUnavailable }

// VerifyRows decodes every record in archive form: damage that no checksum tells, because the file was
// written so. A file in hot form has nothing to decode.
//
// Errors: *MissingProfileError where the file names a profile that is not among profiles, whatever
// its records hold; all *container.CorruptError, joined.
func VerifyRows(ctx context.Context, r *container.Reader, progress Progress,
	profiles ...*profile.Profile) error {
	codec, err := archiveCodec(r, profiles)
	if err != nil {
		return err
	}
	n, workers := len(r.Records()), recordWorkers(r.Header())
	var errs []error
	var rooms rowRooms
	for at := 0; at < n; {
		part := make([]error, min(2*runtime.GOMAXPROCS(0), n-at))
		progress.Say("decoding", int64(at), int64(n))
		err := parallel.EachOf(ctx, workers, len(part), func(i int) error {
			rec, err := r.ReadRecord(at + i)
			if err == nil && rec.Archive != nil {
				room := rooms.take()
				defer rooms.put(room)
				err = verifyRows(codec, r.Header(), rec, room)
			}
			part[i] = err
			return nil
		})
		if err != nil {
			return err
		}
		errs = append(errs, part...)
		at += len(part)
	}
	return errors.Join(errs...)
}

// verifyRows decodes one record. Of rows that were coded none is NaN or Inf: those are kept exactly.
func verifyRows(codec *archive.Codec, h *container.Header, rec *container.Record, room *rowRoom) error {
	if archive.IsLossless(rec.Archive) {
		_, err := decodeLossless(h, rec)
		return err
	}
	rows, _, err := decodeArchive(codec, h, rec, room)
	if err != nil {
		return err
	}
	for i, x := range rows {
		if !input.Finite(x) {
			return &container.CorruptError{Section: "record", Layer: rec.Layer, Segment: rec.Segment,
				Head: i * h.KVHeads() / len(rows), Block: -1, Err: errNotFinite}
		}
	}
	return nil
}

var errNotFinite = errors.New("rows come out as NaN or Inf")

// inRecord says of damage in a payload which record it is in.
func inRecord(rec *container.Record, err error) error {
	var c *archive.CorruptError
	if !errors.As(err, &c) {
		return err
	}
	return &container.CorruptError{Section: "record", Layer: rec.Layer, Segment: rec.Segment,
		Head: c.Head, Block: -1, Offset: int64(c.Offset), Err: err}
}

// maxRecordValues bounds the values that a record in archive form may stand for: they are not
// backed by as many bytes.
const maxRecordValues = 1 << 28

func checkValues(h *container.Header, rec *container.Record) error {
	k, v := h.Dims(rec.Layer)
	n := int64(h.SegmentLen(rec.Layer, rec.Segment)) * int64(h.KVHeads()) * int64(k+v)
	if n > maxRecordValues {
		return fmt.Errorf("kvist/kvfile: record (layer %d, segment %d) stands for %d values, limit %d: %w",
			rec.Layer, rec.Segment, n, maxRecordValues, quant.ErrTooLarge)
	}
	return nil
}

// decodeArchive decodes a record: rows as [heads*sides][tokens*dim], and the bias of each token of
// each head where queries' energies are known.
//
// Errors: *container.CorruptError that names the record.
func decodeArchive(codec *archive.Codec, h *container.Header, rec *container.Record,
	room *rowRoom) (rows, bias [][]float32, err error) {
	if codec == nil {
		return nil, nil, &container.CorruptError{Section: "record", Layer: rec.Layer,
			Segment: rec.Segment, Head: -1, Block: -1,
			Err: fmt.Errorf("archive form without the side tensor %q: %w", archiveAux, quant.ErrCorrupt)}
	}
	kDim, vDim := h.Dims(rec.Layer)
	n := h.SegmentLen(rec.Layer, rec.Segment)
	seg := &archive.Segment{Layer: rec.Layer, First: h.First + int64(rec.Segment)*int64(h.SegmentTokens),
		Pos: make([]int64, n), Dims: []int{kDim}}
	if h.Kind == container.KindCache {
		seg.Layer = h.Layers[rec.Layer]
		seg.Dims = append(seg.Dims, vDim)
	}
	if err := checkValues(h, rec); err != nil {
		return nil, nil, err
	}
	left := roomFor(&room.rows, h.KVHeads()*n*(kDim+vDim))
	noise := make([][]float32, h.KVHeads()*len(seg.Dims))
	for hd := range h.KVHeads() {
		for s, d := range seg.Dims {
			seg.Rows, left = append(seg.Rows, left[:n*d:n*d]), left[n*d:]
			if s == 0 && len(seg.Dims) == 2 {
				noise[hd*2] = make([]float32, n)
				bias = append(bias, noise[hd*2])
			}
		}
	}
	if err := codec.Decode(seg, rec.Archive, noise); err != nil {
		return nil, nil, inRecord(rec, err)
	}
	// noise is E[(q . dk)^2]; scores are divided by the root of head_dim, and the mean of
	// exp(noise) is undone by minus half its variance.
	f := -0.5 / float32(kDim)
	for _, b := range bias {
		for t := range b {
			b[t] *= f
		}
	}
	return seg.Rows, bias, nil
}

// expand returns a record in archive form as one of exact rows in hot form, so that it can be
// attended to, measured and shown as any other. Records in hot form come back as they are.
func expand(codec *archive.Codec, h *container.Header, rec *container.Record) (*container.Record, error) {
	if rec.Archive == nil {
		return rec, nil
	}
	types := []quant.DType{h.KType, h.VType}
	if h.Kind == container.KindRows {
		types = []quant.DType{dtypeOf(h.Tensors[rec.Layer].DType)}
	}
	rows, _, err := packedRows(codec, h, rec, new(rowRoom))
	if err != nil {
		return nil, err
	}
	out := &container.Record{Layer: rec.Layer, Segment: rec.Segment}
	tokens := make([]uint16, h.SegmentLen(rec.Layer, rec.Segment))
	for t := range tokens {
		tokens[t] = uint16(t)
	}
	for i := 0; i < len(rows); i += len(types) {
		b := container.Block{Level: quant.Full, Tokens: tokens}
		for s, dt := range types {
			data := rows[i+s]
			if s == 0 {
				b.K, b.KData = quant.Coding{Format: dt.Format()}, data
			} else {
				b.V, b.VData = quant.Coding{Format: dt.Format()}, data
			}
		}
		out.Heads = append(out.Heads, container.Head{Blocks: []container.Block{b}})
	}
	return out, nil
}

// packedRows decodes a record to rows in the types of the original, [heads*sides], and the bias of
// tokens, [heads], nil where rows are exact.
func packedRows(codec *archive.Codec, h *container.Header, rec *container.Record,
	room *rowRoom) (packed [][]byte, bias [][]float32, err error) {
	if archive.IsLossless(rec.Archive) {
		packed, err = decodeLossless(h, rec)
		return packed, nil, err
	}
	rows, bias, err := decodeArchive(codec, h, rec, room)
	if err != nil {
		return nil, nil, err
	}
	types := []quant.DType{h.KType, h.VType}
	if h.Kind == container.KindRows {
		types = []quant.DType{dtypeOf(h.Tensors[rec.Layer].DType)}
	}
	size := 0
	for i, x := range rows {
		size += len(x) * types[i%len(types)].Size()
	}
	left := roomFor(&room.packed, size)
	for i, x := range rows {
		dt := types[i%len(types)]
		n := len(x) * dt.Size()
		blocks.PackRow(left[:n], dt, x)
		packed, left = append(packed, left[:n:n]), left[n:]
	}
	return packed, bias, nil
}

// archiveSegment writes the rows of a record in archive form.
func (d *decompressor) archiveSegment(rec *container.Record) error {
	room := d.rooms.take()
	defer d.rooms.put(room)
	rows, bias, err := packedRows(d.codec, d.h, rec, room)
	if err != nil {
		return fmt.Errorf("kvist/kvfile: %s segment %d: %w", d.name(rec.Layer), rec.Segment, err)
	}
	return d.writeArchived(rec, rows, bias)
}

// writtenAhead are records in archive form that were decoded and written together, on all cores.
type writtenAhead struct {
	at   int     // of the first record, counted over all
	errs []error // of each, nil where it was written
	hot  []bool  // it is in hot form, and nothing was done
}

// archivedAhead writes a record in archive form, with those around it. It says false of records in
// hot form, and where a salvage has to look closer.
func (d *decompressor) archivedAhead(ctx context.Context, layer, seg int) (bool, error) {
	if d.salvage || d.hot {
		return false, nil
	}
	per := int(d.h.Segments(layer))
	if d.h.Kind == container.KindRows && d.h.Stored() > 1 {
		return false, nil // tensors of different lengths: one by one
	}
	at := layer*per + seg
	a := d.ahead
	if a == nil || at >= a.at+len(a.errs) {
		// A file starts as it goes on: of one in hot form no more than the first record is read twice.
		n := min(4*runtime.GOMAXPROCS(0), d.h.Stored()*per-at)
		if at == 0 {
			n = 1
		}
		a = &writtenAhead{at: at, errs: make([]error, n), hot: make([]bool, n)}
		err := parallel.EachOf(ctx, d.workers, n, func(j int) error {
			rec, err := d.record((at+j)/per, (at+j)%per)
			if err == nil {
				if a.hot[j] = rec.Archive == nil; !a.hot[j] {
					err = d.archiveSegment(rec)
				}
			}
			a.errs[j] = err
			return nil
		})
		if err != nil {
			return false, err
		}
		d.ahead, d.hot = a, at == 0 && a.hot[0]
	}
	return !a.hot[at-a.at], a.errs[at-a.at]
}

// writeArchived writes the rows of a record, and what is said of its tokens.
func (d *decompressor) writeArchived(rec *container.Record, rows [][]byte, bias [][]float32) error {
	sides := len(rows) / d.h.KVHeads()
	first := int64(rec.Segment) * int64(d.h.SegmentTokens)
	kDim, vDim := d.h.Dims(rec.Layer)
	for i, out := range rows {
		dim := []int{kDim, vDim}[i%sides]
		name, dt := d.sideTensor(rec.Layer, i%sides)
		at := (int64(i/sides)*d.h.LayerTokens(rec.Layer) + first) * int64(dim*dt.Size())
		if err := d.out.WriteAt(name, at, out); err != nil {
			return err
		}
	}
	if d.h.Kind == container.KindRows {
		return nil
	}
	kept := make([]byte, d.h.SegmentLen(rec.Layer, rec.Segment))
	for i := range kept {
		kept[i] = 1
	}
	for h := range d.h.KVHeads() {
		at := int64(h)*d.h.Tokens + first
		if d.kept[rec.Layer] {
			if err := d.out.WriteAt(tensorName(d.h.Layers[rec.Layer], "kept"), at, kept); err != nil {
				return err
			}
		}
		if d.rowBias {
			b := make([]float32, len(kept))
			if bias != nil {
				b = bias[h]
			}
			for t, v := range b {
				if math.IsInf(float64(v), 0) || v != v {
					b[t] = 0
				}
			}
			if err := d.out.WriteAt(tensorName(d.h.Layers[rec.Layer], "bias"), 4*at, input.AppendFloats(nil, b)); err != nil {
				return err
			}
		}
	}
	return nil
}
