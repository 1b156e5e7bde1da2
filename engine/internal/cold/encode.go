// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

// encoder makes records of the rows of an input.
type encoder struct {
	in        *input.Data
	set       Settings
	header    *container.Header
	params    *archive.Params
	codec     *archive.Codec
	classes   [][][]uint8 // [layers][heads][tokens]
	laneSteps [][]int     // [layers][heads*sides]
	step8     int         // of the file
	at        float64     // the same with its fraction: 2^(at/8)
	room      pool
}

// coded is a record that was encoded.
type coded struct {
	place
	// units is what its lanes together add to the step of the file, in eighths of an octave: some
	// lanes one more than others.
	units int
	rec   *container.Record
	bytes int64 // in the file
	exact bool  // rows are kept as they are, whatever the step
}

// places returns the records to be, in file order.
func places(in *input.Data) (all []place) {
	for i := range in.Layers {
		for s := range in.Layers[i].Segments() {
			all = append(all, place{i, s})
		}
	}
	return all
}

// place is where a record stands: a segment of a layer.
type place struct{ layer, seg int }

// encode makes a record; at is its number in the file.
func (e *encoder) encode(c *coded, at int) error {
	l := &e.in.Layers[c.layer]
	first, n := e.in.SeenSpan(l, c.seg)
	if n == 0 {
		return e.outside(c, l)
	}
	room, done := e.room.borrow(l.Heads * n * l.Dims())
	defer done() // nothing of the rows is left in the record
	p, err := e.rows(c.layer, first, n, 1, room)
	if err != nil {
		return err
	}
	var b []byte
	if c.exact = p == nil; c.exact {
		b, err = e.lossless(c.layer, c.seg)
	} else {
		p.Shift(c.units, at)
		b = e.codec.Encode(nil, p, e.step8, e.effort())
	}
	if err != nil {
		return err
	}
	c.rec = &container.Record{Layer: c.layer, Segment: c.seg, Archive: b}
	c.bytes, err = container.RecordSize(e.header, c.rec)
	return err
}

// outside makes the record of a segment of which no token can be seen: in hot form, all dropped.
func (e *encoder) outside(c *coded, l *input.Layer) (err error) {
	_, n := l.Span(c.seg)
	b := container.Block{Level: quant.Dropped, Tokens: make([]uint16, n)}
	for t := range b.Tokens {
		b.Tokens[t] = uint16(t)
	}
	c.exact, c.rec = true, &container.Record{Layer: c.layer, Segment: c.seg}
	for range l.Heads {
		c.rec.Heads = append(c.rec.Heads, container.Head{Blocks: []container.Block{b}})
	}
	c.bytes, err = container.RecordSize(e.header, c.rec)
	return err
}

// encodeAll makes records, of which the first is number at of the file.
func (e *encoder) encodeAll(ctx context.Context, recs []*coded, at int) error {
	return parallel.Each(ctx, len(recs), func(i int) error { return e.encode(recs[i], at+i) })
}

// prepare hands a segment to the codec; rows that it refuses are named.
func (e *encoder) prepare(l *input.Layer, seg *archive.Segment, first, every int) (*archive.Prepared, error) {
	p, err := e.codec.Prepare(seg)
	var beyond *archive.RangeError
	if errors.As(err, &beyond) {
		return nil, fmt.Errorf("kvist/cold: %s: %s: %w (lossless=true keeps any row)", e.in.Name,
			laneRow(l, beyond.Lane, first, every, beyond.Row), beyond.Err)
	}
	return p, err
}

// rows reads and projects tokens of a layer, two of every 2*every; nil where they are to be kept as
// they are, because some value is NaN or Inf and that is allowed. room is as for readRows.
func (e *encoder) rows(li, first, n, every int, room []float32) (*archive.Prepared, error) {
	l := &e.in.Layers[li]
	seg, err := readRows(e.in, l, first, n, every, room)
	if err != nil {
		return nil, err
	}
	for h := range l.Heads {
		seg.Class[h] = everyPair(slices.Clone(e.classes[li][h][first:first+n]), 1, every)
	}
	seg.Step8, seg.Chunks, seg.Parts = e.laneSteps[li], e.set.Chunks, e.parts()
	for i, rows := range seg.Rows {
		if input.Finite(rows) {
			continue
		}
		if !e.set.AllowNonfinite {
			return nil, e.notFinite(l, i, first, every, rows)
		}
		return nil, nil
	}
	return e.prepare(l, seg, first, every)
}

// fewStreams is how many streams a refinement has at least in a file, so that it can be cut to about any
// size. A part of the tokens is of partTokens at least: streams take some bytes each.
const (
	fewStreams = 48
	partTokens = 32
)

// parts returns in how many parts of the tokens refinements are cut: files of few records need more, the
// more so where all tokens are of one group.
func (e *encoder) parts() int {
	groups := 1
	if e.set.Weighed {
		groups = archive.NumGroups - 1 // sinks are few
	}
	n := fewStreams / max(1, int(e.header.Records())*groups)
	return min(max(n, 1), max(1, e.header.SegmentTokens/partTokens), archive.MaxParts)
}

func (e *encoder) effort() archive.Effort {
	return archive.Effort{Lambda: Lambda}
}

// notFinite names the value of rows i of a segment that is NaN or Inf.
func (e *encoder) notFinite(l *input.Layer, i, first, every int, rows []float32) error {
	r := slices.IndexFunc(rows, func(x float32) bool { return !input.Finite([]float32{x}) }) / laneTensor(l, i).Dim()
	return fmt.Errorf("kvist/cold: %s: %s holds NaN or Inf (allow-nonfinite=true keeps such rows "+
		"exactly): %w", e.in.Name, laneRow(l, i, first, every, r), quant.ErrRange)
}

// mostStep is a step, as an exponent, beyond which those of all lanes are as coarse, or its negative as fine, as
// they can be.
const mostStep = 2 * archive.MostStep8

// setStep sets the step of the file to 2^(s/8).
func (e *encoder) setStep(s float64) { e.at, e.step8 = s, e.params.SetStep(s) }
func bytesOf(recs []*coded) (n int64) {
	for _, r := range recs {
		n += r.bytes
	}
	return n
}

// pool is room for rows.
type pool struct{ free sync.Pool }

// borrow returns room for n values, until done is called.
func (p *pool) borrow(n int) (x []float32, done func()) {
	room, _ := p.free.Get().(*[]float32)
	if room == nil {
		room = new([]float32)
	}
	*room = slices.Grow((*room)[:0], n)[:n]
	return *room, func() { p.free.Put(room) }
}
