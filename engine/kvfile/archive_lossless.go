// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/damage"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

// losslessSegment is the least tokens of a segment in lossless mode: its models learn as they go, and
// rows repeat only within a segment.
const losslessSegment = 8192

// losslessTo writes an archive that keeps every row bit by bit.
func (a *archiver) losslessTo(ctx context.Context, w io.Writer) (*Result, error) {
	a.seg.Stats = make([][]damage.Head, len(a.in.Layers))
	if err := a.prepareHeader(); err != nil {
		return nil, err
	}
	a.header.QueryEnergy = nil
	fix, err := a.fixed()
	if err != nil {
		return nil, err
	}
	res, err := a.emit(w, fix, func(emit func(*container.Record) error) error {
		return a.losslessRecords(ctx, emit)
	})
	if err == nil {
		res.Lossless = true
	}
	return res, err
}

// losslessRecords encodes all records, as many at a time as there are workers, and hands them over in
// file order.
func (a *archiver) losslessRecords(ctx context.Context, emit func(*container.Record) error) error {
	all := a.places()
	for at := 0; at < len(all); at += runtime.GOMAXPROCS(0) {
		recs := make([]*container.Record, min(runtime.GOMAXPROCS(0), len(all)-at))
		err := parallel.Each(ctx, len(recs), func(i int) error {
			p := all[at+i]
			b, err := a.lossless(p.layer, p.seg)
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
func (a *archiver) lossless(layer, seg int) ([]byte, error) {
	l := &a.in.Layers[layer]
	first, n := l.Span(seg)
	sides := []input.Tensor{l.K}
	if l.HasV {
		sides = append(sides, l.V)
		if l.K.DType().Size() != l.V.DType().Size() {
			return nil, fmt.Errorf("kvist/kvfile: %s: lossless mode with K as %s and V as %s: %w", l.Name,
				l.K.DType(), l.V.DType(), quant.ErrUnsupported)
		}
	}
	var lanes []archive.LosslessLane
	for h := range l.Heads {
		for _, t := range sides {
			raw := make([]byte, n*t.RowBytes())
			read := t.Read
			if a.cfg.Lossless {
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

// decodeLossless returns the rows of a record in lossless mode, [heads*sides] as they were.
func decodeLossless(h *container.Header, rec *container.Record) ([][]byte, error) {
	kDim, vDim := h.Dims(rec.Layer)
	dims, size := []int{kDim}, h.KType.Size()
	if h.Kind == container.KindCache {
		dims = append(dims, vDim)
	} else {
		size = dtypeOf(h.Tensors[rec.Layer].DType).Size()
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
