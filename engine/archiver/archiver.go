// SPDX-License-Identifier: Apache-2.0

// Package archiver codes the rows of parked sequences in archive form.
//
// # Concepts
//
// An Archiver is an engine.Archiver: with one in its Config, a cache parks sequences in a fraction of the bytes that their
// exact rows take. It has the basis, the tables and the steps of a profile, which kvist calibrate has made of
// the model. Rows are coded as those of a .kvist file in archive form are, K without its embedding; records
// of a store hold neither basis nor tables.
//
// # Errors
//
// quant.ErrRange for rows that cannot be coded (NaN, Inf, or beyond what steps can code): the cache then parks
// them as they are. quant.ErrCorrupt for damage, quant.ErrShape for a profile of another model.
//
// # Concurrency
//
// An Archiver may be used by many goroutines and caches at once.
//
// # Determinism
//
// The same rows, weights, step and profile give the same bytes, whatever the machine.
package archiver

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Archiver codes rows with the basis and tables of a profile.
type Archiver struct {
	geo   quant.Geometry
	codec *archive.Codec
	steps *cold.Steps // nil: those of all heads are the same
	name  string
}

// New returns an archiver for caches of a model.
//
// Errors: quant.ErrShape if the profile was not calibrated, or is of another model; *archive.CorruptError for
// one that is damaged.
func New(p *profile.Profile, g quant.Geometry) (*Archiver, error) {
	codec, steps, err := cold.CodecOf(p, g)
	if err != nil {
		return nil, fmt.Errorf("kvist/archiver: %w", err)
	}
	id := cold.ProfileID(p, &cold.Settings{})
	return &Archiver{geo: g, codec: codec, steps: steps, name: "archive 1 " + id.Full()}, nil
}

// Name names the coding and what decoding takes.
func (a *Archiver) Name() string { return a.name }

// Step returns the step at which rows of a sample take so many bits a value.
//
// Errors: quant.ErrRange; quant.ErrShape.
func (a *Archiver) Step(sample []engine.ArchiveRows, bits float64) (float64, error) {
	prepared := make([]*archive.Prepared, len(sample))
	values := 0
	for i := range sample {
		var err error
		if prepared[i], err = a.prepare(&sample[i]); err != nil {
			return 0, err
		}
		values += sample[i].Values()
	}
	cost := func(s float64) float64 {
		sum := 0.0
		for _, p := range prepared {
			sum += a.codec.Cost(p, int(s), archive.Effort{Lambda: cold.Lambda})
		}
		return sum / float64(max(values, 1))
	}
	// Bits fall with the step. Between two of its eighths of an octave they are taken to be on a line.
	low, high := -archive.MostStep8, archive.MostStep8
	for high-low > 1 {
		mid := (low + high) / 2
		if cost(float64(mid)) > bits {
			low = mid
		} else {
			high = mid
		}
	}
	few, many := cost(float64(high)), cost(float64(low))
	if !(many > few) || bits <= few {
		return float64(high), nil
	}
	return float64(high) - min((bits-few)/(many-few), 1), nil
}

// Encode appends rows of a layer at a step, which it overwrites.
//
// Errors: quant.ErrRange; quant.ErrShape.
func (a *Archiver) Encode(dst []byte, r *engine.ArchiveRows, step float64) ([]byte, error) {
	p, err := a.prepare(r)
	if err != nil {
		return nil, err
	}
	whole := math.Floor(step)
	p.Shift(int(math.Round((step-whole)*float64(2*a.geo.KVHeads))), r.Layer)
	return a.codec.Encode(dst, p, int(whole), archive.Effort{Lambda: cold.Lambda}), nil
}

// Decode reads what Encode wrote into r, of which all but K and V is given.
//
// Errors: *archive.CorruptError.
func (a *Archiver) Decode(r *engine.ArchiveRows, p []byte) error {
	if err := a.codec.Decode(a.segment(r), p, nil); err != nil {
		return fmt.Errorf("kvist/archiver: layer %d: %w", r.Layer, err)
	}
	return nil
}

// prepare projects the rows of a layer, in place.
func (a *Archiver) prepare(r *engine.ArchiveRows) (*archive.Prepared, error) {
	for _, rows := range [][][]float32{r.K, r.V} {
		for _, x := range rows {
			for _, v := range x {
				if math.IsInf(float64(v), 0) || v != v {
					return nil, fmt.Errorf("kvist/archiver: layer %d holds NaN or Inf: %w", r.Layer, quant.ErrRange)
				}
			}
		}
	}
	seg := a.segment(r)
	for h := range a.geo.KVHeads {
		class := make([]uint8, r.Tokens)
		for t := range class {
			if class[t] = cold.MidClass; r.Weights != nil {
				class[t] = cold.ClassOf(r.Weights[h][t])
			}
		}
		seg.Class = append(seg.Class, class)
	}
	p, err := a.codec.Prepare(seg)
	if err != nil {
		return nil, fmt.Errorf("kvist/archiver: layer %d: %w", r.Layer, err)
	}
	return p, nil
}

// segment returns rows as the codec takes them.
func (a *Archiver) segment(r *engine.ArchiveRows) *archive.Segment {
	seg := &archive.Segment{Layer: r.Layer, First: r.First, Pos: make([]int64, r.Tokens), Chunks: 1, Parts: 1,
		Dims: []int{a.geo.HeadDim, a.geo.HeadDimV}, Step8: make([]int, 2*a.geo.KVHeads)}
	for t := range seg.Pos {
		seg.Pos[t] = r.First + int64(t)
	}
	for h := range a.geo.KVHeads {
		seg.Rows = append(seg.Rows, r.K[h], r.V[h])
		if i := r.Layer*a.geo.KVHeads + h; a.steps != nil {
			seg.Step8[2*h] = int(math.Round(float64(a.steps.K[i])))
			seg.Step8[2*h+1] = int(math.Round(float64(a.steps.V[i])))
		}
	}
	return seg
}
