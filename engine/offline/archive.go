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
	if err := a.chooseSet(ctx); err != nil {
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

func (a *archiver) effort() archive.Effort {
	return archive.Effort{Lambda: archiveLambda}
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

// encodeAll encodes every record and hands it over in file order.
func (a *archiver) encodeAll(ctx context.Context, encode func(layer, seg int) ([]byte, error),
	emit func(*container.Record) error) error {
	for i := range a.in.layers {
		l := &a.in.layers[i]
		workers := runtime.GOMAXPROCS(0)
		for s := 0; s < l.segments(); s += workers {
			recs := make([]*container.Record, min(workers, l.segments()-s))
			err := eachIndex(ctx, len(recs), func(j int) error {
				b, err := encode(i, s+j)
				recs[j] = &container.Record{Layer: i, Segment: s + j, Archive: b}
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
	}
	return nil
}

// encodeAt returns what encodes a record at a step.
func (a *archiver) encodeAt(s8 int) func(layer, seg int) ([]byte, error) {
	return func(layer, seg int) ([]byte, error) {
		p, err := a.segment(layer, seg)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return a.lossless(layer, seg)
		}
		return a.codec.Encode(nil, p, s8, a.effort()), nil
	}
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

// emit writes the file; records hands over its records.
func (a *archiver) emit(w io.Writer, fix Sections,
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
