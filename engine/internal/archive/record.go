// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

func ropeLayout(v uint64) quant.RopeLayout { return quant.RopeLayout(v) }

// Effort says how levels are chosen.
type Effort struct {
	// Lambda is the squared error, in squared steps, that may be added to save a bit. 0 rounds to the
	// nearest.
	Lambda float32
}

// Cost returns the bits of the lanes of a segment at a step, as the model expects them. The rest of a
// record is small and does not depend on the step.
func (c *Codec) Cost(p *Prepared, step8 int, e Effort) float64 {
	q := c.c.quantizer(e.Lambda)
	var sum float64
	quick := c.quick.Get().(*levels)
	defer c.quick.Put(quick)
	x := newCloser(c, p, step8)
	defer c.loops.Put(x.loop)
	for place, i := range x.order {
		l, y, steps := x.lane(i)
		quick.quantize(q, l, y, steps)
		sum += quick.bits(q)
		x.decoded(place, quick, q, l, steps)
	}
	return sum
}

// Fit collects statistics for the tables from a segment.
func (c *Codec) Fit(f *Fit, p *Prepared, step8 int, e Effort) float64 {
	q := c.c.quantizer(e.Lambda)
	q.fit = &f.f
	var sum float64
	for i := range p.y {
		l, steps := c.lane(p.seg, i, &p.told, p.step(i, step8))
		sum += q.encode(l, p.y[i], steps, nil)
	}
	return sum
}

// Fit holds statistics for tables.
type Fit struct{ f fitter }

// Tables returns tables made of the statistics. If these are few, old tables are mixed in.
func (f *Fit) Tables(old *Tables) *Tables { return f.f.tables(old) }

// The first byte of a payload.
const (
	modeTransform = 0
	modeLossless  = 1
	modeConstants = 2 // and transform mode behind them
	modePredicted = 3 // which lanes are predicted, and one of the others behind it
)

// MaxChunks is the most stages of a record.
const MaxChunks = 16

// Encode appends the payload of a record to dst.
//
// Layout: u8 0, u8 stages, u8 parts of the tokens, u32 length of the side stream, u16 energy of the rows,
// u16 error; u32 length and u16 worth of the base of each lane, then of each refinement, the coarsest
// first, and each stream; the side stream, the bases, the refinements.
func (c *Codec) Encode(dst []byte, p *Prepared, step8 int, e Effort) []byte {
	quick := c.quick.Get().(*levels)
	defer c.quick.Put(quick)
	if p.seg.Chunks > 1 {
		return c.encodeStaged(dst, p, step8, e, quick)
	}
	q := c.c.quantizer(e.Lambda)
	parts := &streams{constants: p.constants, chunks: 1, parts: 1, lanes: make([]stream, len(p.y))}
	var energy, left float64
	var room []byte
	ends := make([]int, len(p.y))
	x := newCloser(c, p, step8)
	defer c.loops.Put(x.loop)
	for place, i := range x.order {
		l, y, steps := x.lane(i)
		quick.quantize(q, l, y, steps)
		x.decoded(place, quick, q, l, steps) // encode uses the levels up
		at := len(room)
		room = quick.encode(room, q, l)
		all, lost := c.energy(l, y, steps)
		parts.lanes[i], ends[i] = stream{at: at, worth: newWorth(all - lost)}, len(room)
		if x.guess != nil {
			all, _ = c.energy(l, p.y[i], steps) // errors count against the rows, not against what is left of them
		}
		energy, left = energy+all, left+lost
	}
	for i := range parts.lanes {
		parts.lanes[i].b = room[parts.lanes[i].at:ends[i]]
	}
	parts.predicted, parts.side = x.told.predicted, c.encodeSide(nil, p, x.told, step8)
	parts.energy, parts.err = newWorth(energy), newWorth(left)
	return parts.append(dst)
}

// energy returns the energy of the rows of a lane, in squared steps, and the error that the tables
// expect after coding.
func (c *Codec) energy(l *lane, y, steps []float32) (all, lost float64) {
	known := map[int16]float64{}
	for t, f := range steps {
		var sum [4]float32
		row, inv := y[t*l.dim:(t+1)*l.dim], 1/f
		for len(row) >= 4 {
			a, b, c, d := row[0]*inv, row[1]*inv, row[2]*inv, row[3]*inv
			sum[0], sum[1], sum[2], sum[3] = sum[0]+a*a, sum[1]+b*b, sum[2]+c*c, sum[3]+d*d
			row = row[4:]
		}
		for _, v := range row {
			sum[0] += v * inv * v * inv
		}
		s := float64(sum[0]) + float64(sum[1]) + float64(sum[2]) + float64(sum[3])
		left, ok := known[l.step8[t]]
		if !ok {
			left = c.expected(l, l.step8[t], 0)
			known[l.step8[t]] = left
		}
		all, lost = all+s, lost+min(left, s)
	}
	return all, lost
}

// Decode reads the payload of a record into seg, of which Layer, First, Dims and the lengths of Pos
// and Rows are given. Rows come out as they were, the embedding in place. noise, unless nil, is
// [heads*sides][tokens] and gets the expected squared error of each row in the metric of its
// transform, times the transform's gain.
//
// Errors: *CorruptError; quant.ErrShape where the transforms do not fit.
func (c *Codec) Decode(seg *Segment, b []byte, noise [][]float32) error {
	sides, lanes, n := len(seg.Dims), len(seg.Rows), len(seg.Pos)
	ts, err := c.layer(seg.Layer, lanes/sides, seg.Dims)
	if err != nil {
		return err
	}
	parts, err := parse(b, lanes)
	if err != nil {
		return err
	}
	if err := parts.checkConstants(seg.Dims); err != nil {
		return err
	}
	var predictors []*Predictor
	if parts.predicted != nil {
		if predictors, err = c.Set.told(seg.Layer, parts.predicted); err != nil {
			return err
		}
	}
	seg.Chunks, seg.Parts = parts.chunks, parts.parts
	of, err := c.decodeSide(seg, ts, predictors, parts.side)
	if err != nil {
		return err
	}
	d := &recordDecoder{Codec: c, seg: seg, ts: ts, parts: parts, told: of, loop: newLoop(&c.loops, seg, predictors),
		staged: c.newStagedDecoder(parts), missing: parts.missing()}
	defer c.loops.Put(d.loop)
	d.turns = c.turns.Of(seg.Layer)
	d.sin, d.cos = d.turns.angles(seg.Pos)
	work := c.work.Get().(*[]float32)
	defer c.work.Put(work)
	for place, i := range d.order {
		*work = slices.Grow((*work)[:0], n*ts[i].Dim)
		var out []float32
		if noise != nil {
			out = noise[i]
		}
		if err := d.lane(place, i, (*work)[:n*ts[i].Dim], out); err != nil {
			return err
		}
	}
	return d.staged.done()
}

// With nothingLeft refinements missing, no component is coded.
const nothingLeft = 1 << 10

// noise sets out to gain times the squared error that the tables expect of each row, if token t lacks
// left(t) refinements.
func (c *Codec) noise(out []float32, l *lane, steps []float32, gain float32, left func(t int) int) {
	type at struct {
		step8 int16
		left  int
	}
	known := map[at]float64{} // a lane has as many as there are classes
	for t := range out {
		s := at{l.step8[t], left(t)}
		sum, ok := known[s]
		if !ok {
			sum = c.expected(l, s.step8, s.left)
			known[s] = sum
		}
		out[t] = float32(min(float64(gain)*float64(steps[t])*float64(steps[t])*sum, math.MaxFloat32))
	}
}

// expected returns the squared error expected of a row at a step, in squared steps, with some
// refinements missing.
func (c *Codec) expected(l *lane, step8 int16, left int) float64 {
	var sum float64
	for _, s := range l.std8 {
		prior := int(s) - int(step8)
		scale := prior - 8*left
		if coded(scale) {
			e := 1. / 12
			if k, shift := classOf(scale); shift == 0 {
				e = float64(c.c.Noise[k]) / 4096
			}
			sum += math.Ldexp(e, 2*left)
			continue
		}
		// All of a component that is not stored is lost.
		dev := math.Ldexp(float64(eighths[prior&7]), prior>>3)
		sum += dev * dev
	}
	return sum
}

// LaneSizes returns the bytes of each lane of a payload, [heads*sides]. The bytes of refinements,
// whose streams hold all lanes, are divided as those of the bases.
//
// Errors: *CorruptError.
func LaneSizes(payload []byte, lanes int) ([]int64, error) {
	sizes := make([]int64, lanes)
	if IsLossless(payload) {
		l, err := parseLossless(payload, lanes)
		for i := range l {
			sizes[i] = int64(len(l[i]))
		}
		return sizes, err
	}
	p, err := parse(payload, lanes)
	if err != nil {
		return nil, err
	}
	for i, l := range p.lanes {
		sizes[i] = int64(len(l.b))
	}
	p.spread(sizes)
	return sizes, nil
}
