// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/damage"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/weigh"
	"github.com/kvist-project/kvist/quant"
)

// archiveAux is the name of the side tensor that holds what the records of an archive share.
const archiveAux = "kvist.archive"

// archiveLambda is the worth of a bit in squared steps, when levels are chosen.
const archiveLambda = 0.12

// archiver compresses to archive form.
type archiver struct {
	*compressor
	params    *archive.Params
	codec     *archive.Codec
	classes   [][][]uint8   // [layers][heads][tokens]
	laneSteps [][]int       // [layers][heads*sides]
	step8     int           // of the file
	at        float64       // the same with its fraction: 2^(at/8)
	steps     *ArchiveSteps // of the profile
	id        profile.ID
	rate      rateModel
	room      sync.Pool // *[]float32: the rows of a segment
	turns     *archive.Turns
	started   bool // the first bytes are written
}

// lossyTo writes a file of at most total bytes.
func (a *archiver) lossyTo(ctx context.Context, w io.Writer, weights Weights, total int64) (*Result, error) {
	c := a.compressor
	if p := c.cfg.Profile; p != nil && c.in.KV {
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
	return a.fitAndWrite(ctx, w, total)
}

// measure finds what tokens and heads are worth.
func (a *archiver) measure(ctx context.Context, weights Weights) error {
	c := a.compressor
	n := len(c.in.Layers)
	c.seg.Stats, a.classes = make([][]damage.Head, n), make([][][]uint8, n)
	uses := make([]weigh.Use, n)
	err := c.eachLayer(ctx, "measuring", runtime.GOMAXPROCS(0), func(l *input.Layer) error {
		w, err := c.given(weights, l)
		if err == nil && weights == nil {
			w, _, uses[l.Index], err = c.weigher().Weigh(ctx, l, false)
		}
		if err != nil {
			return err
		}
		return a.measureLayer(ctx, l, w)
	})
	for _, u := range uses {
		c.use.Add(u)
	}
	c.use.Conclude()
	return err
}

// probeTokens bounds the tokens at which heads are probed, the first ones: a probe holds the rows of
// a head.
const probeTokens = 8192

func (a *archiver) measureLayer(ctx context.Context, l *input.Layer, w [][]float32) error {
	stats, classes := make([]damage.Head, l.Heads), make([][]uint8, l.Heads)
	first := *l
	first.Tokens = min(l.Tokens, probeTokens)
	for h := range stats {
		stats[h] = damage.Head{KSensitivity: 1, VSensitivity: 1, QueryEnergy: 1, OutEnergy: 1}
		if l.HasV && a.steps == nil {
			var err error
			if stats[h], err = a.pricer().Calibrate(ctx, &first, h, nil, nil); err != nil {
				return err
			}
		}
		if a.steps != nil {
			stats[h].By = damage.ByProfile
		}
		var hw []float32
		if w != nil {
			hw = w[h]
		}
		classes[h] = a.classOf(l, hw)
	}
	a.seg.Stats[l.Index], a.classes[l.Index] = stats, classes
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

// classBounds[k] is the weight, lifted, from which on a token is in class k+1: classes are half an octave
// of the power of weights apart.
var classBounds = func() (b [sinkClass - 1]float32) {
	for k := range b {
		b[k] = float32(math.Exp2((float64(k-midClass) + 0.5) / (2 * weightPower)))
	}
	return b
}()

// classOf gives every token the class of its weight: the step goes as a power of it. The first tokens are
// sinks whether tokens are weighed or not: without that, the future-attention error of archives of captures
// without queries was 2 to 4 times as large.
func (a *archiver) classOf(l *input.Layer, w []float32) []uint8 {
	class := make([]uint8, l.Tokens)
	if w != nil {
		w = weigh.LevelHead(w, a.cfg.Sinks)
	}
	for t := range class {
		class[t] = midClass
		if t < a.cfg.Sinks && l.HasV {
			class[t] = sinkClass
			continue
		}
		if w == nil {
			continue
		}
		v := (w[t] + weightFloor) / (1 + weightFloor)
		k := 0
		for k < len(classBounds) && v >= classBounds[k] {
			k++
		}
		class[t] = uint8(k)
	}
	return class
}

// readSegment reads the rows of a segment.
func readSegment(in *input.Data, l *input.Layer, s int) (*archive.Segment, error) {
	first, n := l.Span(s)
	return readRows(in, l, first, n, 1, nil)
}

// readRows reads rows of the tokens [first, first+n) of a layer: two of every 2*every. All of them
// go to room where it is large enough.
func readRows(in *input.Data, l *input.Layer, first, n, every int, room []float32) (*archive.Segment, error) {
	seg := &archive.Segment{Layer: l.Number, First: int64(first), Pos: make([]int64, n)}
	if in.KV {
		seg.First += in.First
		if err := in.Positions(first, seg.Pos); err != nil {
			return nil, err
		}
	} else {
		for i := range seg.Pos {
			seg.Pos[i] = int64(first + i)
		}
	}
	seg.Pos = everyPair(seg.Pos, 1, every)
	seg.Dims = []int{l.K.Dim()}
	if l.HasV {
		seg.Dims = append(seg.Dims, l.V.Dim())
	}
	for h := range l.Heads {
		for _, t := range []input.Tensor{l.K, l.V}[:len(seg.Dims)] {
			var into []float32
			if size := n * t.Dim(); size <= len(room) {
				into, room = room[:size:size], room[size:]
			}
			x, err := readSome(in, t, h, first, n, every, into)
			if err != nil {
				return nil, err
			}
			seg.Rows = append(seg.Rows, x)
		}
		c := make([]uint8, len(seg.Pos))
		for t := range c {
			c[t] = midClass
		}
		seg.Class = append(seg.Class, c)
	}
	seg.Step8 = make([]int, len(seg.Rows))
	return seg, nil
}

// readSome reads two rows of every 2*every of a head, to x where it is not nil and all are read.
func readSome(in *input.Data, t input.Tensor, head, first, n, every int, x []float32) ([]float32, error) {
	if every == 1 {
		if x == nil {
			x = make([]float32, n*t.Dim())
		}
		return x, t.ReadF32(head, first, n, x)
	}
	raw := make([]byte, n*t.RowBytes())
	if err := t.Read(head, first, n, raw); err != nil {
		return nil, err
	}
	raw = everyPair(raw, t.RowBytes(), every)
	some := quant.Rows{Dim: t.Dim(), Data: make([]float32, len(raw)/t.RowBytes()*t.Dim())}
	return some.Data, input.Decode(some, t, raw)
}

// everyPair keeps two rows of every 2*every, in place: those in the middle, because the first tokens,
// whose steps are much finer, stand for no others.
func everyPair[T any](rows []T, size, every int) []T {
	if every == 1 {
		return rows
	}
	kept := rows[:0]
	for t := 0; t*size < len(rows); t++ {
		if t/2%every == every/2 {
			kept = append(kept, rows[t*size:(t+1)*size]...)
		}
	}
	return kept
}

// notFinite names the value of rows i of a segment that is NaN or Inf.
func (a *archiver) notFinite(l *input.Layer, i, first, every int, rows []float32) error {
	r := slices.IndexFunc(rows, func(x float32) bool { return !input.Finite([]float32{x}) }) / laneTensor(l, i).Dim()
	return fmt.Errorf("kvist/kvfile: %s: %s holds NaN or Inf (--allow-nonfinite keeps such rows "+
		"exactly): %w", a.in.Name, laneRow(l, i, first, every, r), quant.ErrRange)
}

// laneTensor returns the tensor that lane i of a layer's records holds rows of.
func laneTensor(l *input.Layer, i int) input.Tensor {
	if l.HasV && i%2 == 1 {
		return l.V
	}
	return l.K
}

// laneRow names row r of those that readRows read of lane i from token first on.
func laneRow(l *input.Layer, i, first, every, r int) string {
	head := i
	if l.HasV {
		head = i / 2
	}
	return fmt.Sprintf("%s head %d token %d", laneTensor(l, i).Name(), head, first+2*(r/2*every+every/2)+r%2)
}

// prepare hands a segment to the codec; rows that it refuses are named.
func (a *archiver) prepare(l *input.Layer, seg *archive.Segment, first, every int) (*archive.Prepared, error) {
	p, err := a.codec.Prepare(seg)
	var beyond *archive.RangeError
	if errors.As(err, &beyond) {
		return nil, fmt.Errorf("kvist/kvfile: %s: %s: %w (--lossless keeps any row)", a.in.Name,
			laneRow(l, beyond.Lane, first, every, beyond.Row), beyond.Err)
	}
	return p, err
}

// rows reads and projects tokens of a layer, two of every 2*every; nil where they are to be kept as
// they are, because some value is NaN or Inf and that is allowed. room is as for readRows.
func (a *archiver) rows(li, first, n, every int, room []float32) (*archive.Prepared, error) {
	l := &a.in.Layers[li]
	seg, err := readRows(a.in, l, first, n, every, room)
	if err != nil {
		return nil, err
	}
	for h := range l.Heads {
		seg.Class[h] = everyPair(slices.Clone(a.classes[li][h][first:first+n]), 1, every)
	}
	seg.Step8, seg.Chunks, seg.Parts = a.laneSteps[li], a.cfg.Chunks, a.parts()
	for i, rows := range seg.Rows {
		if input.Finite(rows) {
			continue
		}
		if !a.cfg.AllowNonfinite {
			return nil, a.notFinite(l, i, first, every, rows)
		}
		return nil, nil
	}
	return a.prepare(l, seg, first, every)
}

// fewStreams is how many streams a refinement has at least in a file, so that it can be cut to about any
// size. A part of the tokens is of partTokens at least: streams take some bytes each.
const (
	fewStreams = 48
	partTokens = 32
)

// parts returns in how many parts of the tokens refinements are cut: files of few records need more, the
// more so where all tokens are of one group.
func (a *archiver) parts() int {
	groups := 1
	if a.use.Heads > 0 || a.cfg.Weighted {
		groups = archive.NumGroups - 1 // sinks are few
	}
	n := fewStreams / max(1, int(a.header.Records())*groups)
	return min(max(n, 1), max(1, a.header.SegmentTokens/partTokens), archive.MaxParts)
}

func (a *archiver) effort() archive.Effort {
	return archive.Effort{Lambda: archiveLambda}
}

// places returns the records to be, in file order.
func (a *archiver) places() (all []place) {
	for i := range a.in.Layers {
		for s := range a.in.Layers[i].Segments() {
			all = append(all, place{i, s})
		}
	}
	return all
}

// place is where a record stands: a segment of a layer.
type place struct{ layer, seg int }

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
	a.started = true
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
	res := &Result{Values: a.in.Values(), Codings: map[string]int64{"archive": a.in.Values()}, Sections: fix}
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
	res.made(a.header)
	res.Predicted, res.Importance = math.NaN(), a.use
	res.Prices = a.prices()
	return res, nil
}
