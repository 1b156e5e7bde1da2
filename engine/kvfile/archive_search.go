// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"io"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/parallel"
)

// batchRecords is the records of a batch. A file of no more is fitted as a whole.
const batchRecords = 16

// sampleValues is about how many values the sample holds. A layer has leastRows at least.
const (
	sampleValues = 3 << 19
	leastRows    = 32
	runRows      = 64 // rows of a segment, if any: enough to tell the deviations of components
)

// solveNear is how near the sample has to come to the bits asked for, relatively: the batches that
// follow make up for the rest.
const solveNear = 0.005

// The logarithm of bits falls with the step by 0.09 for an eighth of an octave where bits are few
// and by 0.02 where they are many; these bounds keep the search sane where rounding hides it.
const (
	steepest = -0.5
	flattest = -0.005
)

// rateModel says how bytes go with the step.
type rateModel struct {
	sample []sampleRun
	layers []float64 // bits of a token of each layer at the step of the file
	bits   float64   // of all lanes
	slope  float64   // of the logarithm of bits, for an eighth of an octave
}

// sampleRun is some rows of a segment.
type sampleRun struct {
	layer int
	rows  int
	p     *archive.Prepared // nil where rows are kept as they are
	bits  float64           // at the step last tried
}

// load takes the sample: rows of some segments of every layer, spread evenly over them; all rows of a
// small file.
func (a *archiver) load(ctx context.Context) error {
	r := &a.rate
	type span struct{ layer, seg, every int }
	var spans []span
	share := min(1, sampleValues/float64(max(1, a.in.Values())))
	for i := range a.in.Layers {
		l := &a.in.Layers[i]
		rows := min(l.Tokens, max(leastRows, int(share*float64(l.Tokens))))
		runs := min(max(1, rows/runRows), l.Segments())
		if share == 1 {
			runs = l.Segments()
		}
		for j := range runs {
			seg := (2*j + 1) * l.Segments() / (2 * runs)
			_, n := l.Span(seg)
			spans = append(spans, span{i, seg, max(1, n*runs/max(1, rows))})
		}
	}
	r.sample = make([]sampleRun, len(spans))
	return parallel.Each(ctx, len(spans), func(i int) error {
		s := spans[i]
		first, n := a.in.Layers[s.layer].Span(s.seg)
		p, err := a.rows(s.layer, first, n, s.every, nil)
		if err != nil {
			return err
		}
		r.sample[i] = sampleRun{layer: s.layer, rows: n, p: p}
		if p != nil {
			r.sample[i].rows = p.Rows()
		}
		return nil
	})
}

// cost returns the bits of all lanes at a step of 2^(s/8), as the sample tells it, and keeps those
// of a token of each layer.
func (a *archiver) cost(ctx context.Context, s float64) (float64, error) {
	r := &a.rate
	s8 := a.params.SetStep(s)
	err := parallel.Each(ctx, len(r.sample), func(i int) error {
		if r.sample[i].p != nil {
			r.sample[i].bits = a.codec.Cost(r.sample[i].p, s8, a.effort())
		}
		return nil
	})
	r.layers = make([]float64, len(a.in.Layers))
	rows := make([]float64, len(a.in.Layers))
	for _, x := range r.sample {
		r.layers[x.layer] += x.bits
		rows[x.layer] += float64(x.rows)
	}
	var sum float64
	for i := range r.layers {
		r.layers[i] /= max(rows[i], 1)
		sum += r.layers[i] * float64(a.in.Layers[i].Tokens)
	}
	return sum, err
}

// solve returns the step, as an exponent, at which the sample says so many bits, starting from a
// guess. The logarithm of bits is close to a straight line, so few steps are tried.
func (a *archiver) solve(ctx context.Context, bits, guess float64) (s float64, err error) {
	r := &a.rate
	low, high := math.Inf(-1), math.Inf(1) // too fine, too coarse
	slope, last, lastLog := -0.08, 0.0, 0.0
	want := math.Log(max(bits, 1))
	s = guess
	for try := range 30 {
		if r.bits, err = a.cost(ctx, s); err != nil {
			return 0, err
		}
		got := math.Log(max(r.bits, 1))
		if try > 0 && math.Abs(s-last) > 0.2 {
			slope = min(max((got-lastLog)/(s-last), steepest), flattest)
		}
		last, lastLog = s, got
		if try > 0 && math.Abs(got-want) < solveNear || high-low < 1e-2 || math.Abs(s) > mostStep {
			break
		}
		if got > want {
			low = s
		} else {
			high = s
		}
		s += min(max((want-got)/slope, -64), 64)
		if try == 0 && math.Abs(s-last) < 0.25 {
			s = last + math.Copysign(0.25, s-last) // near enough already: this one is for the slope
		}
		if !(low < s && s < high) && !math.IsInf(high-low, 0) {
			s = (low + high) / 2
		}
	}
	r.slope = slope
	return s, nil
}

// firstStep is where the search for a step starts: from the deviations of the components, with
// log2(1 + 2.5 * (deviation/step)^2) / 2 for the bits of a value. That is a bit less than one of a
// Gaussian takes: segments and rows are told apart, and most steps are coarser than the mean.
func (a *archiver) firstStep(bits float64) float64 {
	const zero = 1 << 11
	count := make([]float64, 2*zero) // of values, by the exponent of their deviation over the lane's step
	for i, steps := range a.laneSteps {
		for j, t := range a.params.Set.Find(a.in.Layers[i].Number) {
			for _, s := range t.Std8 {
				count[min(max(int(s)-steps[j]+zero, 0), 2*zero-1)] += float64(a.in.Layers[i].Tokens)
			}
		}
	}
	low, high := -2000.0, 2000.0
	for range 20 {
		s := (low + high) / 2
		var sum float64
		for i, n := range count {
			if n > 0 {
				sum += n * math.Log2(1+2.5*math.Exp2((float64(i-zero)-s)/4)) / 2
			}
		}
		if sum > bits {
			low = s
		} else {
			high = s
		}
	}
	return low
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

// borrow returns room for n values, until done is called.
func (a *archiver) borrow(n int) (x []float32, done func()) {
	room, _ := a.room.Get().(*[]float32)
	if room == nil {
		room = new([]float32)
	}
	*room = slices.Grow((*room)[:0], n)[:n]
	return *room, func() { a.room.Put(room) }
}

// encode makes a record; at is its number in the file.
func (a *archiver) encode(c *coded, at int) error {
	l := &a.in.Layers[c.layer]
	first, n := l.Span(c.seg)
	room, done := a.borrow(l.Heads * n * l.Dims())
	defer done() // nothing of the rows is left in the record
	p, err := a.rows(c.layer, first, n, 1, room)
	if err != nil {
		return err
	}
	var b []byte
	if c.exact = p == nil; c.exact {
		b, err = a.lossless(c.layer, c.seg)
	} else {
		p.Shift(c.units, at)
		b = a.codec.Encode(nil, p, a.step8, a.effort())
	}
	if err != nil {
		return err
	}
	c.rec = &container.Record{Layer: c.layer, Segment: c.seg, Archive: b}
	c.bytes, err = container.RecordSize(a.header, c.rec)
	return err
}

// encodeAll makes records, of which the first is number at of the file.
func (a *archiver) encodeAll(ctx context.Context, recs []*coded, at int) error {
	return parallel.Each(ctx, len(recs), func(i int) error { return a.encode(recs[i], at+i) })
}

func bytesOf(recs []*coded) (n int64) {
	for _, r := range recs {
		n += r.bytes
	}
	return n
}

// fitAndWrite finds the steps whose file comes closest to total bytes from below, and writes it.
func (a *archiver) fitAndWrite(ctx context.Context, w io.Writer, total int64) (*Result, error) {
	fix, err := a.fixed()
	if err != nil {
		return nil, err
	}
	a.say.Say("encoding", 0, 1)
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	a.balance()
	l := &a.in.Layers[0]
	b := &budget{archiver: a, lanes: l.Heads * (1 + min(1, l.DimV())), near: max(total/2000, 64),
		total: total - fix.besides(), besidesRecords: fix.besides()}
	for _, p := range a.places() {
		b.all = append(b.all, &coded{place: p})
	}
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	// What the records share is compressed, and its bytes go with those of the step.
	for spare := int64(0); ; spare += 16 {
		if fix, err = a.fixed(); err != nil {
			return nil, err
		}
		more := fix.besides() - b.besidesRecords
		if more == 0 || spare > 0 && more < 0 {
			break
		}
		b.besidesRecords, b.total, b.left = b.besidesRecords+more+spare, b.total-more-spare, b.left-more-spare
		if b.whole() && bytesOf(b.all) > b.left {
			if err := b.fitWhole(ctx, b.at); err != nil {
				return nil, err
			}
		}
	}
	return a.emit(w, fix, func(emit func(*container.Record) error) error { return b.run(ctx, emit) })
}

// mostStep is a step, as an exponent, beyond which those of all lanes are as coarse, or its negative as fine, as
// they can be.
const mostStep = 2 * archive.MostStep8

// setStep sets the step of the file to 2^(s/8).
func (a *archiver) setStep(s float64) { a.at, a.step8 = s, a.params.SetStep(s) }
