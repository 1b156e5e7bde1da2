// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
)

// archiveSegment writes the rows of a record in archive form.
func (d *decompressor) archiveSegment(rec *container.Record) error {
	room := d.rooms.Take()
	defer d.rooms.Put(room)
	rows, bias, err := cold.Rows(d.codec, d.h, rec, room)
	if err != nil {
		return fmt.Errorf("kvist/kvfile: %s segment %d: %w", d.name(rec.Layer), rec.Segment, err)
	}
	return d.writeArchived(rec, rows, bias)
}

// writtenAhead are records in archive form that were decoded and written together, on all cores.
type writtenAhead struct {
	at   int     // of the first record, counted over all
	errs []error // of each, nil where it was written
	hot  []bool  // the record is in hot form, and nothing was done
}

// archivedAhead writes a record in archive form, together with those behind it. It returns false for
// records in hot form, and for those that a salvage handles one by one.
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
		// All records of a file have one form, so at most the first record of a hot file is read
		// twice.
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
		d.ahead, d.hot = a, at == 0 && a.hot[0] && d.codec == nil
	}
	return !a.hot[at-a.at], a.errs[at-a.at]
}

// writeArchived writes the rows of a record, and the kept marks and biases of its tokens.
func (d *decompressor) writeArchived(rec *container.Record, rows [][]byte, bias [][]float32) error {
	sides := len(rows) / d.h.KVHeads()
	first := d.h.SegmentStart(rec.Segment)
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
	gone := cold.Dropped(d.h, rec)
	for i := gone; i < len(kept); i++ {
		kept[i] = 1
	}
	atomic.AddInt64(&d.res.DroppedRows, int64(gone*d.h.KVHeads()))
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
