// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

// decodeLossless returns the rows of a record in lossless mode, [heads*sides] as they were.
func decodeLossless(h *container.Header, rec *container.Record) ([][]byte, error) {
	kDim, vDim := h.Dims(rec.Layer)
	dims, size := []int{kDim}, h.Types(rec.Layer)[0].Size()
	if h.Kind == container.KindCache {
		dims = append(dims, vDim)
	}
	if err := checkValues(h, rec); err != nil {
		return nil, err
	}
	n := h.SegmentLen(rec.Layer, rec.Segment)
	var lanes []archive.LosslessLane
	for range h.KVHeads() {
		for _, d := range dims {
			lanes = append(lanes, archive.LosslessLane{Dim: d, Data: make([]byte, n*d*size)})
		}
	}
	if err := archive.DecodeLossless(lanes, rec.Archive, size); err != nil {
		return nil, inRecord(rec, err)
	}
	rows := make([][]byte, len(lanes))
	for i, l := range lanes {
		rows[i] = l.Data
	}
	return rows, nil
}

// LosslessPossible reports whether rows can be kept bit by bit: K and V share a size of element.
func LosslessPossible(in *input.Data) bool {
	for i := range in.Layers {
		if l := &in.Layers[i]; l.HasV && l.K.DType().Size() != l.V.DType().Size() {
			return false
		}
	}
	return true
}

// Of a file, losslessLanes lanes of losslessRows rows tell about how many bytes all would take losslessly.
// Longer lanes take less for a value, so some slack is added to what is worth trying.
const (
	losslessLanes = 32
	losslessRows  = 64
	losslessSlack = 1.3
)

// LosslessLikely guesses whether a file of total bytes may be enough to keep every bit.
func LosslessLikely(in *input.Data, total int64) (bool, error) {
	type lane struct {
		t    input.Tensor
		head int
	}
	var lanes []lane
	var all int64
	for i := range in.Layers {
		l := &in.Layers[i]
		for h := range l.Heads {
			for _, t := range []input.Tensor{l.K, l.V}[:1+min(1, l.DimV())] {
				lanes = append(lanes, lane{t, h})
				all += int64(l.Tokens) * int64(t.RowBytes())
			}
		}
	}
	var stored, raw int64
	every := max(1, len(lanes)/losslessLanes)
	for i := 0; i < len(lanes); i += every {
		t := lanes[i].t
		n := min(t.Rows(), losslessRows)
		b := make([]byte, n*t.RowBytes())
		if err := t.Read(lanes[i].head, (t.Rows()-n)/2, n, b); err != nil {
			return false, err
		}
		coded := archive.EncodeLossless(nil, []archive.LosslessLane{{Dim: t.Dim(), Data: b}}, t.DType().Size())
		stored, raw = stored+int64(len(coded)), raw+int64(len(b))
	}
	return raw == 0 || float64(stored)/float64(raw)*float64(all) <= losslessSlack*float64(total), nil
}

// losslessRecords encodes all records, as many at a time as there are workers, and hands them over in
// file order.
func (e *encoder) losslessRecords(ctx context.Context, emit func(*container.Record) error) error {
	all := places(e.in)
	for at := 0; at < len(all); at += runtime.GOMAXPROCS(0) {
		recs := make([]*container.Record, min(runtime.GOMAXPROCS(0), len(all)-at))
		err := parallel.Each(ctx, len(recs), func(i int) error {
			p := all[at+i]
			b, err := e.lossless(p.layer, p.seg)
			recs[i] = &container.Record{Layer: p.layer, Segment: p.seg, Archive: b}
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range recs {
			if err := emit(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// lossless encodes the rows of a segment as they are: in lossless mode as they are stored, else as
// they are read.
func (e *encoder) lossless(layer, seg int) ([]byte, error) {
	l := &e.in.Layers[layer]
	first, n := l.Span(seg)
	sides := []input.Tensor{l.K}
	if l.HasV {
		sides = append(sides, l.V)
		if l.K.DType().Size() != l.V.DType().Size() {
			return nil, fmt.Errorf("kvist/cold: %s: lossless mode with K as %s and V as %s: %w", l.Name,
				l.K.DType(), l.V.DType(), quant.ErrUnsupported)
		}
	}
	var lanes []archive.LosslessLane
	for h := range l.Heads {
		for _, t := range sides {
			raw := make([]byte, n*t.RowBytes())
			read := t.Read
			if e.set.Lossless {
				read = t.ReadExactly
			}
			if err := read(h, first, n, raw); err != nil {
				return nil, err
			}
			lanes = append(lanes, archive.LosslessLane{Dim: t.Dim(), Data: raw})
		}
	}
	return archive.EncodeLossless(nil, lanes, l.K.DType().Size()), nil
}
