// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/quant"
)

// How a file meets its budget in one pass, in memory that does not grow with it: a sample of the
// rows tells how bytes go with the step, and the step of the file is set by it. The records are
// encoded in batches; after each one what is left to spend is compared with what the sample says
// of the rest, and the steps of the rest move by fractions of an eighth of an octave, some lanes
// and not others. The last batch is changed until the file fits. Batches do not depend on the
// number of workers, so neither do the bytes.

// batchRecords is the records of a batch. A file of no more is fitted as a whole.
const batchRecords = 16

// budget spends the bytes of a file on its records.
type budget struct {
	enc   *encoder
	rate  *rateModel
	file  *file
	say   progress.Func
	all   []*coded
	lanes int   // of a record
	total int64 // bytes for all records

	besidesRecords int64 // bytes of the file that are no records
	left           int64 // of them
	near           int64 // bytes that may be left over

	// Of records that steps change: bytes that were spent, what the sample said of them and says of
	// the rest.
	spent, foreseen, rest float64
	exactLeft             int64 // bytes of records to come that steps do not change

	fixedSteps bool // the step of the file is that of all records
}

func (b *budget) whole() bool { return len(b.all) <= batchRecords }

// foresee returns the bytes that the sample expects of a record, with its units.
func (b *budget) foresee(c *coded) float64 {
	_, n := b.enc.in.SeenSpan(&b.enc.in.Layers[c.layer], c.seg)
	f := b.rate.slope * float64(c.units) / float64(b.lanes)
	return b.rate.layers[c.layer]*float64(n)/8*math.Exp(f) + b.besides(c)
}

// The side stream of a record takes about so many bits for a component and for the class of a
// token; sinks take sinkStep/8 bits more for a value than others.
const (
	deltaBits  = 2.4
	classBits  = 1.5
	recordSize = 64 // headers and padding
)

// besides returns the bytes of a record that the sample does not tell.
func (b *budget) besides(c *coded) float64 {
	l := &b.enc.in.Layers[c.layer]
	first, n := b.enc.in.SeenSpan(l, c.seg)
	sinks := min(max(b.enc.set.Sinks-first, 0), n)
	values := float64(l.Heads * l.Dims())
	return recordSize + (deltaBits*values+classBits*float64(n*l.Heads)+sinkStep/8*values*float64(sinks))/8
}

// coarsest takes the coarsest steps for all records. It is the last resort of a search that found nothing.
//
// Errors: *OverError where that is too much.
func (b *budget) coarsest(ctx context.Context) error {
	b.enc.setStep(mostStep)
	sizes := make([]int64, len(b.all))
	err := parallel.Each(ctx, len(b.all), func(i int) error {
		c := b.all[i]
		c.units = 0
		err := b.enc.encode(c, i)
		sizes[i] = c.bytes
		if !b.whole() {
			c.rec = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	fix, err := b.file.fixed() // with that step in it
	if err != nil {
		return err
	}
	want, least := b.total+b.besidesRecords, fix.besides()
	for _, n := range sizes {
		least += n
	}
	if least > want {
		return &OverError{Name: b.enc.in.Name, Want: want, Least: least}
	}
	b.besidesRecords, b.total, b.left = fix.besides(), want-fix.besides(), want-fix.besides()
	b.fixedSteps = true
	return nil
}

// start finds the step of the file. Where the file is one batch, finding it encodes all of it.
func (b *budget) start(ctx context.Context) error {
	b.left = b.total
	if len(b.all) == 0 { // no tokens
		b.enc.setStep(0)
		return nil
	}
	if b.left <= 0 {
		return b.coarsest(ctx)
	}
	if !b.whole() {
		if err := b.findExact(ctx); err != nil {
			return err
		}
	}
	bits := 8 * float64(b.left-b.exactLeft)
	for _, c := range b.all {
		if !c.exact {
			bits -= 8 * b.besides(c)
		}
	}
	if b.whole() {
		// What goes with the step may be less than is known of what does not: encoding will tell.
		bits = max(bits, 0.05*8*float64(b.left))
	}
	s, err := b.rate.solve(ctx, bits, b.rate.firstStep(bits))
	if err != nil {
		return err
	}
	b.enc.setStep(s)
	if b.whole() {
		return b.fitWhole(ctx, s)
	}
	if b.rate.bits > 1.5*bits {
		return b.coarsest(ctx)
	}
	for _, c := range b.all {
		if !c.exact {
			b.rest += b.foresee(c)
		}
	}
	return nil
}

// findExact finds the records whose rows are to be kept as they are, or not at all, and what they take.
func (b *budget) findExact(ctx context.Context) error {
	err := parallel.Each(ctx, len(b.all), func(i int) error {
		c := b.all[i]
		if c.exact { // no token of it can be seen
			return b.enc.encode(c, i)
		}
		if !b.enc.set.AllowNonfinite {
			return nil
		}
		seg, err := ReadSegment(b.enc.in, &b.enc.in.Layers[c.layer], c.seg)
		if err != nil {
			return err
		}
		for _, rows := range seg.Rows {
			c.exact = c.exact || !input.Finite(rows)
		}
		if c.exact {
			return b.enc.encode(c, i)
		}
		return nil
	})
	for _, c := range b.all {
		b.exactLeft += c.bytes
		c.rec = nil
	}
	return err
}

// finish moves lanes of the last records until recs, the first of which is number at, fit what is
// left.
func (b *budget) finish(ctx context.Context, recs []*coded, at int) error {
	var best kept
	var free []int // records that steps change
	for i, c := range recs {
		if !c.exact {
			free = append(free, i)
		}
	}
	// Bytes that a unit takes: from the slope, then from what moving some did.
	unit := -b.rate.slope * float64(bytesOf(recs)) / float64(len(recs)*b.lanes)
	most := 8 * len(recs) * b.lanes // an octave for all of them
	for try := 0; try < 8 || try < 32 && best.recs == nil; try++ {
		n := bytesOf(recs)
		if n <= b.left && (best.recs == nil || n > best.bytes) {
			best = b.keep(recs)
		}
		if n <= b.left && b.left-n <= b.near || len(free) == 0 {
			break
		}
		// Towards the middle of what is near enough, never by less than asked for.
		units := math.Ceil((float64(n-b.left) + float64(b.near)/2) / max(unit, 1))
		moved := int(min(max(units, -float64(most)), float64(most)))
		if moved == 0 {
			break
		}
		m := min(len(free), (max(moved, -moved)+b.lanes-1)/b.lanes)
		change := free[len(free)-m:]
		err := parallel.Each(ctx, m, func(i int) error {
			recs[change[i]].units += moved*(i+1)/m - moved*i/m
			return b.enc.encode(recs[change[i]], at+change[i])
		})
		if err != nil {
			return err
		}
		u := float64(n-bytesOf(recs)) / float64(moved)
		if u > 0 {
			unit = u
		}
		if u == 0 && best.recs != nil { // as fine as it can be
			break
		}
	}
	if best.recs == nil && b.whole() {
		return b.coarsest(ctx)
	}
	if best.recs == nil {
		return fmt.Errorf("kvist/cold: %d bytes for %s: the records at the end need %d more: %w",
			b.total+b.besidesRecords, b.enc.in.Name, bytesOf(recs)-b.left, quant.ErrBudget)
	}
	b.putBack(recs, best)
	return nil
}

// run encodes the records and hands them over in file order.
func (b *budget) run(ctx context.Context, emit func(*container.Record) error) error {
	for at := 0; at < len(b.all); at += batchRecords {
		recs := b.all[at:min(at+batchRecords, len(b.all))]
		b.say.Say("encoding", int64(at), int64(len(b.all)))
		var err error
		switch {
		case b.whole(): // encoded
		case b.fixedSteps:
			err = b.enc.encodeAll(ctx, recs, at)
		default:
			err = b.batch(ctx, recs, at)
		}
		if err != nil {
			return err
		}
		for _, c := range recs {
			if err := emit(c.rec); err != nil {
				return err
			}
			b.left -= c.bytes
			c.rec = nil
		}
	}
	b.say.Say("encoding", int64(len(b.all)), int64(len(b.all)))
	return nil
}

// batch encodes recs at the steps that what is left asks for.
func (b *budget) batch(ctx context.Context, recs []*coded, at int) error {
	// One batch is worth as much as all there is says before it: layers differ.
	trust := b.rest / float64(len(b.all)-at) * batchRecords
	ratio := (b.spent + trust) / (b.foreseen + trust)
	aim := float64(b.left - b.exactLeft)
	e := 64.0 // what is left to spend is nothing
	if aim > 0 {
		e = min(max(math.Log(aim/max(ratio*b.rest, 1))/b.rate.slope, -64), 64)
	}
	share := func(i int) int { return int(math.Floor(e*float64(b.lanes*i) + 0.5)) }
	for i, c := range recs {
		if c.exact {
			b.exactLeft -= c.bytes
		} else {
			b.rest -= b.foresee(c)
		}
		c.units = share(i+1) - share(i)
	}
	if err := b.enc.encodeAll(ctx, recs, at); err != nil {
		return err
	}
	if at+len(recs) == len(b.all) {
		return b.finish(ctx, recs, at)
	}
	for _, c := range recs {
		if !c.exact {
			b.spent += float64(c.bytes)
			b.foreseen += b.foresee(c)
		}
	}
	return nil
}
