// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/archive"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// archiveAux is the name of the side tensor that holds what the records of an archive share.
const archiveAux = "kvist.archive"

// archiveLambda is the worth of a bit in squared steps, when levels are chosen.
const archiveLambda = 0.12

func knob(name string, def float64) float64 {
	if s := os.Getenv("KA_" + name); s != "" {
		v, err := strconv.ParseFloat(s, 64)
		if err == nil {
			return v
		}
	}
	return def
}

// archiver compresses to archive form.
type archiver struct {
	*compressor
	params  *archive.Params
	codec   *archive.Codec
	classes [][][]uint8 // [layers][heads][tokens]
	step8   [][]int     // [layers][heads*sides]
	id      profile.ID
	sample  []prepared
	share   float64 // of the tokens that the sample holds
}

type prepared struct {
	p *archive.Prepared
	n int
}

// archiveTo is Compress for the archive form.
func (c *compressor) archiveTo(ctx context.Context, w io.Writer, weights Weights) (*Result, error) {
	a := &archiver{compressor: c}
	if err := a.measure(ctx, weights); err != nil {
		return nil, err
	}
	if err := c.prepareHeader(); err != nil {
		return nil, err
	}
	if err := a.choosesSet(ctx); err != nil {
		return nil, err
	}
	if err := a.load(ctx); err != nil {
		return nil, err
	}
	total := int64(0)
	switch cfg := &c.cfg; {
	case cfg.Bits > 0:
		total = int64(cfg.Bits * float64(c.in.values()) / 8)
	case cfg.Bytes > 0:
		total = cfg.Bytes
	case cfg.Share > 0:
		total = int64(cfg.Share * float64(2*c.in.values()))
	default:
		return nil, fmt.Errorf("kvist/offline: an archive takes bits, bytes or a share as its target: %w", quant.ErrUnsupported)
	}
	return a.fitAndWrite(ctx, w, total)
}

// measure finds what tokens and heads are worth.
func (a *archiver) measure(ctx context.Context, weights Weights) error {
	c := a.compressor
	for i := range c.in.layers {
		l := &c.in.layers[i]
		c.say.say("measuring", int64(i), int64(len(c.in.layers)))
		w, err := layerWeights(weights, l)
		if err == nil && weights == nil {
			w, err = c.weigh(ctx, l)
		}
		if err != nil {
			return err
		}
		stats := make([]headStats, l.heads)
		classes := make([][]uint8, l.heads)
		for h := range stats {
			stats[h] = headStats{kSensitivity: 1, vSensitivity: 1, queryEnergy: 1, outEnergy: 1}
			if l.hasV {
				if stats[h], err = c.calibrate(ctx, l, h); err != nil {
					return err
				}
			}
			var hw []float32
			if w != nil {
				hw = w[h]
			}
			classes[h] = a.classOf(hw, l.tokens)
		}
		c.stats, a.classes = append(c.stats, stats), append(a.classes, classes)
	}
	return nil
}

// sinkClass is the class of the first tokens; class midClass adds nothing to the step.
const (
	sinkClass = archive.NumTokenClasses - 1
	midClass  = 7
)

func classSteps() (s [archive.NumTokenClasses]int8) {
	for k := range sinkClass {
		s[k] = int8(4 * (midClass - k))
	}
	s[sinkClass] = int8(-knob("SINK", 32))
	return s
}

// classOf gives every token the class of its weight: the step goes as a power of it.
func (a *archiver) classOf(w []float32, tokens int) []uint8 {
	class := make([]uint8, tokens)
	pow, floor := knob("POW", 0.7), knob("FLOOR", 0.1)
	smooth := int(knob("SMOOTH", 2))
	if w != nil {
		w = levelWeights(w, a.cfg.Sinks)
	}
	for t := range class {
		class[t] = midClass
		if t < a.cfg.Sinks && w != nil {
			class[t] = sinkClass
			continue
		}
		if w == nil {
			continue
		}
		var sum, n float64
		for u := max(t-smooth, a.cfg.Sinks); u <= min(t+smooth, tokens-1); u++ {
			sum += float64(w[u])
			n++
		}
		v := max((sum/n+floor)/(1+floor), 1e-3)
		k := midClass + int(math.Round(2*pow*math.Log2(v)))
		class[t] = uint8(min(max(k, 0), sinkClass-1))
	}
	return class
}

// choosesSet takes transforms and tables from the profile, or fits them to the file.
func (a *archiver) choosesSet(ctx context.Context) error {
	in := a.in
	a.params = &archive.Params{Fine: 1, Class8: classSteps()}
	if in.kv {
		a.params.Rope = archive.NewRope(in.geo.Rope)
	}
	var steps *ArchiveSteps
	if p := a.cfg.Profile; p != nil && in.kv {
		if err := p.Check(in.src.Meta().Model, in.geo); err != nil {
			return err
		}
		set, err := archiveSet(p)
		if err != nil {
			return err
		}
		if steps, err = archiveSteps(p); err != nil {
			return err
		}
		a.params.Set, a.id = set, ArchiveID(p)
		a.header.Profile = a.id
	} else if err := a.fitSet(ctx); err != nil {
		return err
	}
	for i := range in.layers {
		l := &in.layers[i]
		ts := a.params.Set.Find(l.number)
		s := make([]int, len(ts))
		for h := range l.heads {
			st := &a.stats[i][h]
			for side := range 1 + min(1, l.dimV()) {
				j := h*(1+min(1, l.dimV())) + side
				sens := st.kSensitivity
				if side == 1 {
					sens = st.vSensitivity
				}
				v := 0.0
				if l.hasV {
					v = -4 * knob("SENS", 1) * math.Log2(max(sens/max(st.outEnergy, 1e-30), 1e-30))
					if l.number < 2 {
						v -= knob("FIRST", 0)
					}
				}
				if steps != nil && knob("STEPS", 1) > 0 {
					k := l.number*in.geo.KVHeads + h
					if side == 0 {
						v += float64(steps.K[k])
					} else {
						v += float64(steps.V[k])
					}
				}
				s[j] = int(math.Round(v))
			}
		}
		a.step8 = append(a.step8, s)
	}
	var err error
	a.codec, err = archive.NewCodec(a.params, true)
	return err
}

// fitSet makes transforms and tables of the file itself.
func (a *archiver) fitSet(ctx context.Context) error {
	in := a.in
	a.params.Own = true
	set := &archive.Set{Tables: archive.DefaultTables(), Heads: in.layers[0].heads, Sides: 1 + min(1, in.layers[0].dimV())}
	a.params.Set = set
	for i := range in.layers {
		l := &in.layers[i]
		set.Layers = append(set.Layers, l.number)
		ts := make([]*archive.Transform, set.Heads*set.Sides)
		for j := range ts {
			t := l.k
			if j%set.Sides == 1 {
				t = l.v
			}
			ts[j] = nil
			m := archive.NewMoments(t.Dim())
			for s := range l.segments() {
				first, n := l.span(s)
				x := make([]float32, n*t.Dim())
				if err := in.src.ReadRowsF32(t, j/set.Sides, first, n, x); err != nil {
					return err
				}
				if l.hasV && j%2 == 0 {
					pos := make([]int64, n)
					if err := in.src.ReadPositions(false, first, pos); err != nil {
						return err
					}
					a.params.Rope.Undo(x, t.Dim(), pos)
				}
				m.AddDiagonal(x)
			}
			ts[j] = archive.FitTransform(m, nil, false)
		}
		set.Transforms = append(set.Transforms, ts)
	}
	return nil
}

// readSegment reads the rows of a segment.
func readSegment(in *input, l *layerInput, s int) (*archive.Segment, error) {
	first, n := l.span(s)
	seg := &archive.Segment{Layer: l.number, First: int64(first), Pos: make([]int64, n)}
	if in.kv {
		seg.First += in.src.Meta().FirstPosition
		if err := in.src.ReadPositions(false, first, seg.Pos); err != nil {
			return nil, err
		}
	} else {
		for i := range seg.Pos {
			seg.Pos[i] = int64(first + i)
		}
	}
	seg.Dims = []int{l.k.Dim()}
	if l.hasV {
		seg.Dims = append(seg.Dims, l.v.Dim())
	}
	for h := range l.heads {
		for i, t := range []tensor{l.k, l.v}[:len(seg.Dims)] {
			x := make([]float32, n*seg.Dims[i])
			if err := in.src.ReadRowsF32(t, h, first, n, x); err != nil {
				return nil, err
			}
			seg.Rows = append(seg.Rows, x)
		}
		c := make([]uint8, n)
		for t := range c {
			c[t] = midClass
		}
		seg.Class = append(seg.Class, c)
	}
	seg.Step8 = make([]int, len(seg.Rows))
	return seg, nil
}

// segment reads and projects a segment.
func (a *archiver) segment(li, s int) (*archive.Prepared, error) {
	l := &a.in.layers[li]
	seg, err := readSegment(a.in, l, s)
	if err != nil {
		return nil, err
	}
	first, n := l.span(s)
	for h := range l.heads {
		seg.Class[h] = a.classes[li][h][first : first+n]
	}
	seg.Step8 = a.step8[li]
	return a.codec.Prepare(seg)
}

// sampleValues bounds the values that the search for the step holds in memory.
const sampleValues = 1 << 24

// load prepares a sample of the segments: all of a small file.
func (a *archiver) load(ctx context.Context) error {
	type place struct{ layer, seg int }
	var all []place
	for i := range a.in.layers {
		for s := range a.in.layers[i].segments() {
			all = append(all, place{i, s})
		}
	}
	every := int(a.in.values()/sampleValues) + 1
	var take []place
	for i, p := range all {
		if i%every == 0 {
			take = append(take, p)
		}
	}
	a.sample = make([]prepared, len(take))
	err := eachIndex(ctx, len(take), func(i int) error {
		p, err := a.segment(take[i].layer, take[i].seg)
		_, n := a.in.layers[take[i].layer].span(take[i].seg)
		a.sample[i] = prepared{p, n}
		return err
	})
	a.share = float64(len(take)) / float64(len(all))
	return err
}

func (a *archiver) effort() archive.Effort {
	return archive.Effort{Lambda: float32(knob("LAMBDA", archiveLambda))}
}

// cost returns the bits of all lanes at a step of 2^(s/8), from the sample.
func (a *archiver) cost(ctx context.Context, s float64) (float64, error) {
	s8 := a.params.SetStep(s)
	bits := make([]float64, len(a.sample))
	err := eachIndex(ctx, len(a.sample), func(i int) error {
		bits[i] = a.codec.Cost(a.sample[i].p, s8, a.effort())
		return nil
	})
	var sum float64
	for _, b := range bits {
		sum += b
	}
	return sum / a.share, err
}

// eachIndex calls f for 0 to n-1 on all cores and returns the first error.
func eachIndex(ctx context.Context, n int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				err := ctx.Err()
				if err == nil {
					err = f(i)
				}
				if err != nil {
					once.Do(func() { first = err })
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// encodeAll encodes every record at a step and hands it over in file order.
func (a *archiver) encodeAll(ctx context.Context, s8 int, emit func(*container.Record) error) error {
	for i := range a.in.layers {
		l := &a.in.layers[i]
		workers := runtime.GOMAXPROCS(0)
		for s := 0; s < l.segments(); s += workers {
			n := min(workers, l.segments()-s)
			recs := make([]*container.Record, n)
			err := eachIndex(ctx, n, func(j int) error {
				p, err := a.segment(i, s+j)
				if err != nil {
					return err
				}
				recs[j] = &container.Record{Layer: i, Segment: s + j, Archive: a.codec.Encode(nil, p, s8, a.effort())}
				return nil
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
	}
	return nil
}

// fixed returns the bytes of a file without its records.
func (a *archiver) fixed() (Sections, error) {
	var s Sections
	var err error
	if s.Header, err = container.HeaderSize(a.header); err != nil {
		return s, err
	}
	for _, x := range append([]*container.Aux{a.shared()}, a.aux...) {
		n, err := container.AuxSize(x)
		if err != nil {
			return s, err
		}
		s.Side += n
	}
	s.Index = container.IndexSize(int(a.header.Records())+len(a.aux)+1) + container.TrailerSize
	return s, nil
}

// shared returns the side tensor of the parameters.
func (a *archiver) shared() *container.Aux {
	b := a.params.Append(nil)
	return &container.Aux{Name: archiveAux, DType: "U8", Shape: []int64{int64(len(b))}, Data: b}
}

// fitAndWrite finds the step whose file comes closest to total bytes from below, and writes it.
func (a *archiver) fitAndWrite(ctx context.Context, w io.Writer, total int64) (*Result, error) {
	low, high := -400.0, 400.0
	target := float64(total) // of the records; side streams and padding are learnt on the way
	fix, err := a.fixed()
	if err != nil {
		return nil, err
	}
	over := float64(fix.Header + fix.Side + fix.Index)
	values := float64(a.in.values())
	guess := 0.0
	var recs []*container.Record
	var best []*container.Record
	var bestFine float32
	var bestBytes int64 = -1
	var done int64
	for try := range 6 {
		// Bisect the sample's cost, first from afar, then around the last step.
		want := 8 * (target - over)
		if try > 0 {
			low, high = guess-2, guess+2
		}
		for range 20 {
			mid := (low + high) / 2
			c, err := a.cost(ctx, mid)
			if err != nil {
				return nil, err
			}
			if c > want {
				low = mid
			} else {
				high = mid
			}
			if high-low < 0.01 || math.Abs(c-want) < 1e-4*want {
				break
			}
			if c > 64*values {
				low = max(low, mid)
			}
		}
		guess = high
		a.say.say("encoding", done, 3)
		done = min(done+1, 2)
		s8 := a.params.SetStep(guess)
		recs = recs[:0:0]
		bytes := int64(over)
		err := a.encodeAll(ctx, s8, func(r *container.Record) error {
			n, err := container.RecordSize(a.header, r)
			bytes += n
			recs = append(recs, r)
			return err
		})
		if err != nil {
			return nil, err
		}
		if bytes <= total && bytes > bestBytes {
			best, bestBytes, bestFine = recs, bytes, a.params.Fine
		}
		if bytes <= total && total-bytes <= total/2000 {
			break
		}
		// What the sample did not see is about the same at the next try.
		target -= float64(bytes-total) + float64(total)/8000
	}
	if best == nil {
		return nil, fmt.Errorf("kvist/offline: %d bytes for %s as an archive: %w", total, a.in.src.Name(), quant.ErrBudget)
	}
	a.params.Fine = bestFine
	return a.emit(w, best, fix)
}

func (a *archiver) emit(w io.Writer, recs []*container.Record, fix Sections) (*Result, error) {
	out, err := container.NewWriter(w, a.header)
	if err != nil {
		return nil, err
	}
	if err := out.WriteAux(a.shared()); err != nil {
		return nil, err
	}
	for _, x := range a.aux {
		if err := out.WriteAux(x); err != nil {
			return nil, err
		}
	}
	res := &Result{Values: a.in.values(), Codings: map[string]int64{"archive": a.in.values()}, Sections: fix}
	for _, r := range recs {
		if err := out.WriteRecord(r); err != nil {
			return nil, err
		}
		n, err := container.RecordSize(a.header, r)
		if err != nil {
			return nil, err
		}
		res.Sections.Payload += int64(len(r.Archive))
		res.Sections.Tables += n - int64(len(r.Archive))
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	res.Bytes = out.Size()
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, res.Values)
	res.OriginalBytes = 2 * res.Values
	res.Ratio = float64(res.OriginalBytes) / float64(max(1, res.Bytes))
	res.Predicted, res.Importance = math.NaN(), a.use
	return res, nil
}
