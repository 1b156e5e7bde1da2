// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// OpenCodec opens what a file's records in archive form share; nil where the file has none.
// profiles are those at hand.
//
// Errors: *profile.MissingError where the file names a profile that is not among them;
// *container.CorruptError, *archive.CorruptError.
func OpenCodec(r *container.Reader, profiles []*profile.Profile) (*archive.Codec, error) {
	infos, err := r.Auxes()
	if err != nil {
		return nil, err
	}
	found := false
	for _, i := range infos {
		found = found || i.Name == SharedName
	}
	if !found {
		return nil, nil
	}
	a, err := r.ReadAux(SharedName)
	if err != nil {
		return nil, err
	}
	p, err := archive.ParseParams(a.Data)
	if err != nil {
		return nil, err
	}
	if err := checkRopes(p, r.Header()); err != nil {
		return nil, err
	}
	if !p.Own {
		id := profile.ID(r.Header().Profile)
		for _, x := range profiles {
			if slices.Contains(x.Digests(profile.ArchiveSections(p.Predict)...), id) {
				if p.Set, err = setOf(x, p.Predict); err != nil {
					return nil, err
				}
			}
		}
		if p.Set == nil {
			return nil, &profile.MissingError{ID: id, Given: len(profiles)}
		}
	}
	return archive.NewCodec(p, false)
}

// checkRopes checks that the parameters turn K as the header says, of which they hold the frequencies
// as numbers, so that every machine has the same.
func checkRopes(p *archive.Params, h *container.Header) error {
	if h.Kind != container.KindCache || p.Ropes.Match(h.Geometry) {
		return nil
	}
	return &container.CorruptError{Section: "side tensor", Layer: -1, Segment: -1, Head: -1, Block: -1,
		Err: fmt.Errorf("%q has other layouts or numbers of frequencies than the header: %w", SharedName,
			quant.ErrCorrupt)}
}

// Check decodes one record. Of rows that were coded none is NaN or Inf: those are kept exactly.
func Check(codec *archive.Codec, h *container.Header, rec *container.Record, room *Room) error {
	if archive.IsLossless(rec.Archive) {
		_, err := decodeLossless(h, rec)
		return err
	}
	rows, _, err := decode(codec, h, rec, room)
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
		return fmt.Errorf("kvist/cold: record (layer %d, segment %d) stands for %d values, limit %d: %w",
			rec.Layer, rec.Segment, n, maxRecordValues, quant.ErrTooLarge)
	}
	return nil
}

// decode decodes a record: rows as [heads*sides][tokens*dim], and the bias of each token of
// each head where queries' energies are known.
//
// Errors: *container.CorruptError that names the record.
func decode(codec *archive.Codec, h *container.Header, rec *container.Record,
	room *Room) (rows, bias [][]float32, err error) {
	if codec == nil {
		return nil, nil, &container.CorruptError{Section: "record", Layer: rec.Layer,
			Segment: rec.Segment, Head: -1, Block: -1,
			Err: fmt.Errorf("archive form without the side tensor %q: %w", SharedName, quant.ErrCorrupt)}
	}
	kDim, vDim := h.Dims(rec.Layer)
	n := h.SegmentLen(rec.Layer, rec.Segment)
	gone := h.OutsideIn(rec.Layer, rec.Segment) // the record holds the other rows
	if gone == n && n > 0 {
		return nil, nil, &container.CorruptError{Section: "record", Layer: rec.Layer, Segment: rec.Segment,
			Head: -1, Block: -1, Err: fmt.Errorf("archive form, and no token that a later query can see: %w",
				quant.ErrCorrupt)}
	}
	seg := &archive.Segment{Layer: rec.Layer,
		First: h.First + h.SegmentStart(rec.Segment) + int64(gone),
		Pos:   make([]int64, n-gone), Dims: []int{kDim}}
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
			all := left[: n*d : n*d]
			clear(all[:gone*d])
			rows, seg.Rows, left = append(rows, all), append(seg.Rows, all[gone*d:]), left[n*d:]
			if s == 0 && len(seg.Dims) == 2 {
				b := make([]float32, n)
				noise[hd*2], bias = b[gone:], append(bias, b)
			}
		}
	}
	if err := codec.Decode(seg, rec.Archive, noise); err != nil {
		return nil, nil, inRecord(rec, err)
	}
	// noise is E[(q . dk)^2]; scores are scaled, and the mean of exp(noise) is undone by minus half its
	// variance.
	f := -0.5 / float32(kDim)
	if h.Kind == container.KindCache {
		if s := h.Geometry.AttentionOf(h.Layers[rec.Layer]).Scale; s > 0 {
			f = float32(-0.5 * s * s)
		}
	}
	for _, b := range bias {
		for t := range b {
			b[t] *= f
		}
	}
	return rows, bias, nil
}

// Expand returns a record in archive form as one of exact rows in hot form, so that it can be
// attended to, measured and shown as any other. Records in hot form come back as they are.
func Expand(codec *archive.Codec, h *container.Header, rec *container.Record) (*container.Record, error) {
	if rec.Archive == nil {
		return rec, nil
	}
	types := h.Types(rec.Layer)
	rows, _, err := Rows(codec, h, rec, new(Room))
	if err != nil {
		return nil, err
	}
	out := &container.Record{Layer: rec.Layer, Segment: rec.Segment}
	tokens := make([]uint16, h.SegmentLen(rec.Layer, rec.Segment))
	for t := range tokens {
		tokens[t] = uint16(t)
	}
	gone := Dropped(h, rec)
	for i := 0; i < len(rows); i += len(types) {
		var blocks []container.Block
		if gone > 0 {
			blocks = append(blocks, container.Block{Level: quant.Dropped, Tokens: tokens[:gone]})
		}
		b := container.Block{Level: quant.Full, Tokens: tokens[gone:]}
		for s, dt := range types {
			data := rows[i+s]
			data = data[gone*(len(data)/len(tokens)):]
			if s == 0 {
				b.K, b.KData = quant.Coding{Format: dt.Format()}, data
			} else {
				b.V, b.VData = quant.Coding{Format: dt.Format()}, data
			}
		}
		out.Heads = append(out.Heads, container.Head{Blocks: append(blocks, b)})
	}
	return out, nil
}

// Dropped returns how many of the first tokens of a record in archive form are not stored: those that no
// query behind all tokens can see, unless the record keeps every row bit by bit.
func Dropped(h *container.Header, rec *container.Record) int {
	if archive.IsLossless(rec.Archive) {
		return 0
	}
	return h.OutsideIn(rec.Layer, rec.Segment)
}

// Rows decodes a record to rows in the types of the original, [heads*sides], and the bias of
// tokens, [heads], nil where rows are exact.
func Rows(codec *archive.Codec, h *container.Header, rec *container.Record,
	room *Room) (packed [][]byte, bias [][]float32, err error) {
	if archive.IsLossless(rec.Archive) {
		packed, err = decodeLossless(h, rec)
		return packed, nil, err
	}
	rows, bias, err := decode(codec, h, rec, room)
	if err != nil {
		return nil, nil, err
	}
	types := h.Types(rec.Layer)
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
