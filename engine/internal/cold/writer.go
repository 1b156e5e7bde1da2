// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// SharedName is the name of the side tensor that holds what the records of an archive share.
const SharedName = "kvist.archive"

// Internal reports whether a side tensor is of the file's own, and no part of the original.
func Internal(name string) bool { return name == SharedName || name == container.SequenceName }

// Lambda is the worth of a bit in squared steps, when levels are chosen.
const Lambda = 0.12

// Settings says how rows are coded.
type Settings struct {
	Sinks          int  // first tokens, which get the finest steps
	Chunks         int  // stages of a record: each behind the first halves the steps
	AllowNonfinite bool // rows with NaN or Inf are kept exactly and not refused
	Lossless       bool // every row is kept as it is stored
	Weighed        bool // tokens differ in weight
}

// Writer writes the rows of an input as an archive. Its fields are set before it is used; Measure is called
// once for each layer, then Write once.
type Writer struct {
	Input *input.Data
	Settings
	Price    *damage.Pricer   // nil in lossless mode
	Profile  *profile.Profile // basis and tables; nil to fit a basis to the rows
	Header   *container.Header
	Aux      []*container.Aux
	Progress progress.Func

	Stats   [][]damage.Head // [layers][heads], by Measure
	steps   *Steps          // of the profile
	classes [][][]uint8     // [layers][heads][tokens]
}

// Made says what was written.
type Made struct {
	Bytes    int64
	Sections Sections
	// Predicted is the mean relative squared error of attention over the layers, which the last queries of the
	// input have rehearsed; NaN where they could not.
	Predicted float64
}

// Sections says where the bytes of a file went.
type Sections struct {
	Header, Payload, Tables, Side, Index int64
}

// besides is what is no part of a record.
func (s *Sections) besides() int64 { return s.Header + s.Side + s.Index }

// OverError says that an archive cannot be as small as asked for. Nothing was written. It matches
// quant.ErrBudget.
type OverError struct {
	Name        string // of the input
	Want, Least int64  // bytes of the file
}

// Error states the least possible.
func (e *OverError) Error() string {
	return fmt.Sprintf("kvist/cold: %d bytes for %s: the least possible is %d: %v", e.Want, e.Name, e.Least,
		quant.ErrBudget)
}

// Unwrap returns quant.ErrBudget.
func (e *OverError) Unwrap() error { return quant.ErrBudget }

// Begin makes room for what Measure finds and reads the steps of the profile.
//
// Errors: quant.ErrShape for steps that cannot be.
func (w *Writer) Begin() (err error) {
	if w.Profile != nil {
		w.steps, err = StepsOf(w.Profile)
	}
	n := len(w.Input.Layers)
	w.Stats, w.classes = make([][]damage.Head, n), make([][][]uint8, n)
	return err
}

// probeTokens bounds the tokens at which heads are probed, the first ones: a probe holds the rows of
// a head.
const probeTokens = 8192

// Measure prices the errors of the heads of a layer and puts its tokens in classes by their weights,
// [heads][tokens], nil where all count the same. Layers may be measured side by side.
func (w *Writer) Measure(ctx context.Context, l *input.Layer, weights [][]float32) error {
	stats, classes := make([]damage.Head, l.Heads), make([][]uint8, l.Heads)
	first := *l
	first.Tokens = min(l.Tokens, probeTokens)
	for h := range stats {
		stats[h] = damage.Head{KSensitivity: 1, VSensitivity: 1, QueryEnergy: 1, OutEnergy: 1}
		if l.HasV && w.steps == nil {
			var err error
			if stats[h], err = w.Price.Calibrate(ctx, &first, h, nil, nil); err != nil {
				return err
			}
		}
		if w.steps != nil {
			stats[h].By = damage.ByProfile
		}
		var hw []float32
		if weights != nil {
			hw = weights[h]
		}
		classes[h] = classOf(l, hw, w.Sinks, w.Input.Outside(l, l.Tokens))
	}
	w.Stats[l.Index], w.classes[l.Index] = stats, classes
	return nil
}

// Write finds the steps whose file comes closest to total bytes from below, and writes it.
//
// Errors: *OverError; quant.ErrRange for rows that cannot be coded; quant.ErrShape for a profile that was not
// calibrated; those of out.
func (w *Writer) Write(ctx context.Context, out io.Writer, total int64) (*Made, error) {
	e, err := w.encoder(ctx)
	if err != nil {
		return nil, err
	}
	f := &file{header: w.Header, aux: w.Aux, params: e.params}
	fix, err := f.fixed()
	if err != nil {
		return nil, err
	}
	w.Progress.Say("encoding", 0, 1)
	rate := &rateModel{enc: e}
	if err := rate.load(ctx); err != nil {
		return nil, err
	}
	balance(e.laneSteps, rate.sample)
	l := &w.Input.Layers[0]
	b := &budget{enc: e, rate: rate, file: f, say: w.Progress, lanes: l.Heads * (1 + min(1, l.DimV())),
		near: max(total/2000, 64), total: total - fix.besides(), besidesRecords: fix.besides()}
	for _, p := range places(w.Input) {
		_, n := w.Input.SeenSpan(&w.Input.Layers[p.layer], p.seg)
		b.all = append(b.all, &coded{place: p, exact: n == 0})
	}
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	// What the records share is compressed, and its bytes go with those of the step.
	for spare := int64(0); ; spare += 16 {
		if fix, err = f.fixed(); err != nil {
			return nil, err
		}
		more := fix.besides() - b.besidesRecords
		if more == 0 || spare > 0 && more < 0 {
			break
		}
		b.besidesRecords, b.total, b.left = b.besidesRecords+more+spare, b.total-more-spare, b.left-more-spare
		if b.whole() && bytesOf(b.all) > b.left {
			if err := b.fitWhole(ctx, e.at); err != nil {
				return nil, err
			}
		}
	}
	last := &rehearsal{w: w, enc: e}
	made, err := f.write(out, fix, func(emit func(*container.Record) error) error {
		return b.run(ctx, func(rec *container.Record) error {
			if err := emit(rec); err != nil {
				return err
			}
			return last.add(ctx, rec)
		})
	})
	if err != nil {
		return nil, err
	}
	made.Predicted, err = last.predicted(ctx)
	return made, err
}

// encoder takes transforms and tables from the profile, or fits them to the rows.
func (w *Writer) encoder(ctx context.Context) (e *encoder, err error) {
	params := &archive.Params{Fine: 1, Class8: classSteps(), Own: w.Profile == nil,
		Predict: predicts(w.Profile, &w.Settings)}
	if w.Input.KV {
		params.Ropes = archive.NewRopes(w.Input.Geo)
	}
	if params.Own {
		params.Set, err = fitSet(ctx, w.Input, &params.Ropes)
	} else {
		params.Set, err = setOf(w.Profile, params.Predict)
	}
	if err != nil {
		return nil, err
	}
	e = &encoder{in: w.Input, set: w.Settings, header: w.Header, params: params, classes: w.classes,
		laneSteps: w.laneSteps(params.Set)}
	e.codec, err = archive.NewCodec(params, true)
	return e, err
}

// laneSteps returns what the lanes add to the common step, [layers][heads*sides].
func (w *Writer) laneSteps(set *archive.Set) (all [][]int) {
	in := w.Input
	for i := range in.Layers {
		l := &in.Layers[i]
		ts := set.Find(l.Number)
		s := make([]int, len(ts))
		for h := range l.Heads {
			st := &w.Stats[i][h]
			for side := range 1 + min(1, l.DimV()) {
				j := h*(1+min(1, l.DimV())) + side
				sens := st.KSensitivity
				if side == 1 {
					sens = st.VSensitivity
				}
				v := 0.0
				switch k := l.Number*in.Geo.KVHeads + h; {
				case !l.HasV: // errors count against how much the rows of the tensor vary
					v = float64(ts[j].Deviation8())
				case w.steps == nil:
					v = SensitivityStep(sens, st.OutEnergy)
				case side == 0:
					v = float64(w.steps.K[k])
				default:
					v = float64(w.steps.V[k])
				}
				s[j] = int(math.Round(v))
			}
		}
		all = append(all, s)
	}
	return all
}

// WriteLossless writes an archive that keeps every row bit by bit.
//
// Errors: quant.ErrUnsupported for K and V with elements of different sizes; quant.ErrRange for elements
// that would be rounded; those of out.
func (w *Writer) WriteLossless(ctx context.Context, out io.Writer) (*Made, error) {
	f := &file{header: w.Header, aux: w.Aux}
	fix, err := f.fixed()
	if err != nil {
		return nil, err
	}
	e := &encoder{in: w.Input, set: w.Settings, header: w.Header}
	made, err := f.write(out, fix, func(emit func(*container.Record) error) error {
		return e.losslessRecords(ctx, emit)
	})
	if made != nil {
		made.Predicted = math.NaN() // there is no error
	}
	return made, err
}
