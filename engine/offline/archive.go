// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"io"
	"math"
	"runtime"
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

// archiver compresses to archive form.
type archiver struct {
	*compressor
	params  *archive.Params
	codec   *archive.Codec
	classes [][][]uint8   // [layers][heads][tokens]
	step8   [][]int       // [layers][heads*sides]
	steps   *ArchiveSteps // of the profile
	id      profile.ID
	sample  []prepared
	share   float64 // of the tokens that the sample holds
}

type prepared struct{ p *archive.Prepared }

// archiveTo is Compress for the archive form.
func (c *compressor) archiveTo(ctx context.Context, w io.Writer, weights Weights) (*Result, error) {
	a := &archiver{compressor: c}
	if c.cfg.Lossless {
		return a.losslessTo(ctx, w)
	}
	if p := c.cfg.Profile; p != nil && c.in.kv {
		var err error
		if a.steps, err = archiveSteps(p); err != nil {
			return nil, err
		}
	}
	if err := a.measure(ctx, weights); err != nil {
		return nil, err
	}
	if err := c.prepareHeader(); err != nil {
		return nil, err
	}
	c.header.QueryEnergy = nil // the row bias of an archive follows from its steps
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
			w, _, err = c.weigh(ctx, l)
		}
		if err != nil {
			return err
		}
		stats := make([]headStats, l.heads)
		classes := make([][]uint8, l.heads)
		for h := range stats {
			stats[h] = headStats{kSensitivity: 1, vSensitivity: 1, queryEnergy: 1, outEnergy: 1}
			if l.hasV && a.steps == nil {
				if stats[h], err = c.calibrate(ctx, l, h, nil); err != nil {
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

// A token's step goes as the power -weightPower of its weight, the weights of a head levelled to a
// root mean square of 1 and lifted by weightFloor, so that none is worth nothing. Sinks take
// 2^(sinkStep/8) finer steps than the mean token. Chosen in the model on two calibration texts,
// which the profile had not seen. Divergence at 1.3 bits for powers of 0.85, 1 and 1.2: 0.0074, 0.0062,
// 0.0055 on recipes, 0.0055, 0.0049, 0.0034 on letters. Weights averaged over five neighbours double
// it (0.0098 for 0.0048 at 1.8 bits); a floor of 0.02 makes no difference, one of 0.2 a small one.
const (
	weightPower = 1.2
	weightFloor = 0.05
	sinkStep    = 32
)

// sinkClass is the class of the first tokens; class midClass adds nothing to the step.
const (
	sinkClass = archive.NumTokenClasses - 1
	midClass  = 7
)

func classSteps() (s [archive.NumTokenClasses]int8) {
	for k := range sinkClass {
		s[k] = int8(4 * (midClass - k))
	}
	s[sinkClass] = -sinkStep
	return s
}

// classOf gives every token the class of its weight: the step goes as a power of it.
func (a *archiver) classOf(w []float32, tokens int) []uint8 {
	class := make([]uint8, tokens)
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
		v := (float64(w[t]) + weightFloor) / (1 + weightFloor)
		k := midClass + int(math.Round(2*weightPower*math.Log2(v)))
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
	if p := a.cfg.Profile; p != nil && in.kv {
		if err := p.Check(in.src.Meta().Model, in.geo); err != nil {
			return err
		}
		set, err := archiveSet(p)
		if err != nil {
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
				switch k := l.number*in.geo.KVHeads + h; {
				case !l.hasV:
				case a.steps == nil:
					v = sensitivityStep(sens, st.outEnergy)
				case side == 0:
					v = float64(a.steps.K[k])
				default:
					v = float64(a.steps.V[k])
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

// fitSet makes transforms and tables of the file itself. A basis costs dim*dim bytes: a head has
// one where its rows are so many that they save twice that.
func (a *archiver) fitSet(ctx context.Context) error {
	in := a.in
	a.params.Own = true
	set := &archive.Set{Tables: archive.DefaultTables(), Heads: in.layers[0].heads, Sides: 1 + min(1, in.layers[0].dimV())}
	a.params.Set = set
	for i := range in.layers {
		l := &in.layers[i]
		set.Layers = append(set.Layers, l.number)
		ts := make([]*archive.Transform, set.Heads*set.Sides)
		err := eachIndex(ctx, len(ts), func(j int) (err error) {
			ts[j], err = a.fitTransform(l, j/set.Sides, j%set.Sides)
			return err
		})
		if err != nil {
			return err
		}
		set.Transforms = append(set.Transforms, ts)
	}
	return nil
}

// fitRows bounds the rows that a transform is fitted to.
const fitRows = 1 << 15

// eachRows calls f with rows of a head, segment by segment, at most fitRows of them.
func (a *archiver) eachRows(l *layerInput, t tensor, head int, unrope bool, f func([]float32)) error {
	every := l.tokens/fitRows + 1
	for s := 0; s < l.segments(); s += every {
		first, n := l.span(s)
		x := make([]float32, n*t.Dim())
		if err := a.in.src.ReadRowsF32(t, head, first, n, x); err != nil {
			return err
		}
		if unrope {
			pos := make([]int64, n)
			if err := a.in.src.ReadPositions(false, first, pos); err != nil {
				return err
			}
			a.params.Rope.Undo(x, t.Dim(), pos)
		}
		if !finiteValues(x) {
			continue
		}
		f(x)
	}
	return nil
}

func (a *archiver) fitTransform(l *layerInput, head, side int) (*archive.Transform, error) {
	t := l.k
	if side == 1 {
		t = l.v
	}
	dim := t.Dim()
	// What a basis could save at the very most is half the octaves between the deviations.
	full := dim <= maxOwnBasis && float64(l.tokens) > 8*float64(dim)
	m := archive.NewMoments(dim)
	add := m.AddDiagonal
	if full {
		add = m.Add
	}
	if err := a.eachRows(l, t, head, l.hasV && side == 0, add); err != nil {
		return nil, err
	}
	var metric []float64
	if l.hasQ && side == 0 {
		q := archive.NewMoments(dim)
		group := a.in.geo.GQARatio()
		for g := range group {
			if err := a.eachRows(l, l.q, head*group+g, false, q.Add); err != nil {
				return nil, err
			}
		}
		metric = archive.QueryMetric(q, a.params.Rope)
	}
	without := archive.FitTransform(m, metric, false)
	if !full {
		return without, nil
	}
	with := archive.FitTransform(m, metric, true)
	var energy float64
	for _, s := range without.Std8 {
		energy += math.Exp2(float64(s) / 4)
	}
	// Noise at a twentieth of the energy is about what 2 bits a value leave.
	if archive.BasisGain(with, without, energy/float64(dim)/20)*float64(l.tokens) > 2*8*float64(dim*dim) {
		return with, nil
	}
	return without, nil
}

// maxOwnBasis bounds the dim of a basis that is fitted to a file.
const maxOwnBasis = 1 << 9

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

// segment reads and projects a segment; nil for one that is to be kept as it is, because it holds
// NaN or Inf and that is allowed.
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
	seg.Step8, seg.Chunks = a.step8[li], a.cfg.Chunks
	for i, rows := range seg.Rows {
		if finiteValues(rows) {
			continue
		}
		if !a.cfg.AllowNonfinite {
			return nil, fmt.Errorf("kvist/offline: %s: %s head %d: tokens %d to %d hold NaN or Inf "+
				"(--allow-nonfinite keeps them exactly): %w", a.in.src.Name(), l.name, i/len(seg.Dims), first,
				first+n, quant.ErrRange)
		}
		return nil, nil
	}
	return a.codec.Prepare(seg)
}

// sampleValues is about how many values the search for the step looks at.
const sampleValues = 1 << 21

// load prepares a sample: some rows of the segments, of all segments where there are few.
func (a *archiver) load(ctx context.Context) error {
	type place struct{ layer, seg int }
	var all []place
	for i := range a.in.layers {
		for s := range a.in.layers[i].segments() {
			all = append(all, place{i, s})
		}
	}
	// Reading a segment costs more than coding it: at most 8 times what is looked at is read.
	every := int(a.in.values()/(8*sampleValues)) + 1
	thin := int(min(8, a.in.values()/sampleValues+1))
	var take []place
	for i, p := range all {
		if i%every == 0 {
			take = append(take, p)
		}
	}
	a.sample = make([]prepared, len(take))
	err := eachIndex(ctx, len(take), func(i int) error {
		p, err := a.segment(take[i].layer, take[i].seg)
		if err == nil && p != nil {
			a.sample[i].p = p.Thin(thin)
		}
		return err
	})
	a.share = float64(len(take)) / float64(len(all)) / float64(thin)
	return err
}

func (a *archiver) effort() archive.Effort {
	return archive.Effort{Lambda: archiveLambda}
}

// cost returns the bits of all lanes at a step of 2^(s/8), from the sample.
func (a *archiver) cost(ctx context.Context, s float64) (float64, error) {
	s8 := a.params.SetStep(s)
	bits := make([]float64, len(a.sample))
	err := eachIndex(ctx, len(a.sample), func(i int) error {
		if a.sample[i].p == nil {
			return nil
		}
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
				recs[j] = &container.Record{Layer: i, Segment: s + j}
				if p == nil {
					recs[j].Archive, err = a.lossless(i, s+j)
					return err
				}
				recs[j].Archive = a.codec.Encode(nil, p, s8, a.effort())
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
	side := a.aux
	if a.params != nil {
		side = append([]*container.Aux{a.shared()}, a.aux...)
	}
	for _, x := range side {
		n, err := container.AuxSize(x)
		if err != nil {
			return s, err
		}
		s.Side += n
	}
	s.Index = container.IndexSize(int(a.header.Records())+len(side)) + container.TrailerSize
	return s, nil
}

// shared returns the side tensor of the parameters.
func (a *archiver) shared() *container.Aux {
	b := a.params.Append(nil)
	return &container.Aux{Name: archiveAux, DType: "U8", Shape: []int64{int64(len(b))}, Data: b}
}

// fitAndWrite finds the step whose file comes closest to total bytes from below, and writes it.
// The sample tells how bytes go with the step; whole encodings tell how far off it is.
func (a *archiver) fitAndWrite(ctx context.Context, w io.Writer, total int64) (*Result, error) {
	fix, err := a.fixed()
	if err != nil {
		return nil, err
	}
	over := fix.Header + fix.Side + fix.Index
	var best []*container.Record
	var bestFine float32
	bestBytes := int64(-1)
	exact := int64(0) // bytes of records that are kept as they are
	ratio := 1.0      // bytes of records over what the sample says
	aim := float64(total)
	s := a.firstStep()
	for try := range 8 {
		a.say.say("encoding", int64(min(try, 2)), 3)
		var sampled float64
		if s, sampled, err = a.solve(ctx, 8*(aim-float64(over+exact))/ratio, s); err != nil {
			return nil, err
		}
		s8 := a.params.SetStep(s)
		var recs []*container.Record
		bytes := over
		exact = 0
		err = a.encodeAll(ctx, s8, func(r *container.Record) error {
			n, err := container.RecordSize(a.header, r)
			bytes += n
			if archive.IsLossless(r.Archive) {
				exact += n
			}
			recs = append(recs, r)
			return err
		})
		if err != nil {
			return nil, err
		}
		if bytes <= total && bytes > bestBytes {
			best, bestBytes, bestFine = recs, bytes, a.params.Fine
		}
		if bytes <= total && total-bytes <= max(total/2000, 64) {
			break
		}
		ratio = float64(bytes-over-exact) / max(sampled/8, 1)
		aim = float64(total) * (1 - 0.0001*float64(1+try))
	}
	if best == nil {
		return nil, fmt.Errorf("kvist/offline: %d bytes for %s as an archive: %w", total, a.in.src.Name(), quant.ErrBudget)
	}
	a.params.Fine = bestFine
	return a.emit(w, best, fix)
}

// solve returns the step, as an exponent, at which the sample says so many bits, starting from a
// guess. Bits fall with the step by at most one for every coefficient and octave.
func (a *archiver) solve(ctx context.Context, bits, guess float64) (s, got float64, err error) {
	low, high := math.Inf(-1), math.Inf(1) // too fine, too coarse
	var lowBits, highBits float64
	s = guess
	for range 40 {
		if got, err = a.cost(ctx, s); err != nil {
			return 0, 0, err
		}
		if math.Abs(got-bits) < 2e-4*bits || high-low < 1e-3 {
			break
		}
		if got > bits {
			low, lowBits = s, got
		} else {
			high, highBits = s, got
		}
		switch {
		case math.IsInf(high, 0):
			s += max(2, 8*(got-bits)/float64(a.in.values()))
		case math.IsInf(low, 0):
			s -= max(2, 4*(bits-got)/float64(a.in.values()))
		default:
			f := (lowBits - bits) / max(lowBits-highBits, 1)
			s = low + (high-low)*min(max(f, 0.05), 0.95)
		}
		if math.Abs(s) > 1000 {
			break // beyond any step there is
		}
	}
	return s, got, nil
}

// firstStep is where the search for a step starts.
func (a *archiver) firstStep() float64 {
	var sum, n float64
	for i, steps := range a.step8 {
		for j, t := range a.params.Set.Find(a.in.layers[i].number) {
			sum += float64(int(t.Std8[0]) - steps[j])
			n++
		}
	}
	return sum/max(n, 1) - 8
}

func (a *archiver) emit(w io.Writer, recs []*container.Record, fix Sections) (*Result, error) {
	return a.emitEach(w, fix, func(emit func(*container.Record) error) error {
		for _, r := range recs {
			if err := emit(r); err != nil {
				return err
			}
		}
		return nil
	})
}

// emitEach writes the file; records hands over its records.
func (a *archiver) emitEach(w io.Writer, fix Sections,
	records func(emit func(*container.Record) error) error) (*Result, error) {
	out, err := container.NewWriter(w, a.header)
	if err != nil {
		return nil, err
	}
	side := a.aux
	if a.params != nil {
		side = append([]*container.Aux{a.shared()}, a.aux...)
	}
	for _, x := range side {
		if err := out.WriteAux(x); err != nil {
			return nil, err
		}
	}
	res := &Result{Values: a.in.values(), Codings: map[string]int64{"archive": a.in.values()}, Sections: fix}
	err = records(func(r *container.Record) error {
		n, err := container.RecordSize(a.header, r)
		if err != nil {
			return err
		}
		res.Sections.Payload += int64(len(r.Archive))
		res.Sections.Tables += n - int64(len(r.Archive))
		return out.WriteRecord(r)
	})
	if err != nil {
		return nil, err
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
