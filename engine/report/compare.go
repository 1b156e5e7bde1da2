// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/ahead"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// LayerError is what compression did to a layer (or to a tensor of activations).
type LayerError struct {
	Layer int    // the model's number, or the tensor's index
	Name  string // "layer 9", `tensor "x"`
	// KError and VError are sum|x - x'|^2 / sum|x|^2 over the rows. Activations have K only.
	KError, VError float64
	// Cosine is the mean cosine between rows and their decoded selves, K (or rows) and V.
	KCosine, VCosine float64
	// FutureError is the future-attention error; NaN where the capture has no later queries.
	FutureError float64
	// Worst is what these means may hide.
	Worst LayerWorst
}

// Comparison is a file held against its original.
type Comparison struct {
	Layers []LayerError
	// Means over layers; FutureError is NaN where no layer has one.
	KError, VError, FutureError float64
	// SideTensors is the number of side tensors found identical.
	SideTensors int
}

// Options say how a file is compared. The zero value computes on the CPU and reads files that need no profile.
type Options struct {
	// Backend computes. The caller closes it. nil: the CPU.
	Backend backend.Backend
	// Profiles are of the model; a file in archive form may need one of them to be read.
	Profiles []*profile.Profile
	// Progress, if set, is told what is done and how much of it, from one goroutine.
	Progress func(stage string, done, total int64)
}

// Compare measures a file against the capture it was made from, a layer at a time.
//
// Errors: quant.ErrShape where the two do not belong together, quant.ErrCorrupt for side tensors
// that differ; *container.CorruptError, *capture.FormatError; those of the backend.
func Compare(ctx context.Context, r *container.Reader, src *capture.Source, o Options) (_ *Comparison, err error) {
	be := o.Backend
	if be == nil {
		if be, err = cpu.Open(cpu.Options{}); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, be.Close()) }()
	}
	h := r.Header()
	records, err := cold.OpenRecords(r, o.Profiles)
	if err != nil {
		return nil, err
	}
	in, err := captured.Of(src, h.SegmentTokens)
	if err != nil {
		return nil, err
	}
	if err := captured.Matches(h, in); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(in.Layers, func(l input.Layer) bool { return l.Next != nil }) {
		if err := in.CheckPositions(); err != nil {
			return nil, err
		}
	}
	cmp := &Comparison{}
	for i := range in.Layers {
		l := &in.Layers[i]
		progress.Func(o.Progress).Say("comparing", int64(i), int64(len(in.Layers)))
		var recs []*container.Record
		for s := range l.Segments() {
			at, ok := r.Find(i, s)
			if !ok {
				return nil, fmt.Errorf("kvist/report: %s segment %d is not in the file: %w",
					l.Name, s, quant.ErrCorrupt)
			}
			rec, err := records.Record(at)
			if err != nil {
				return nil, err
			}
			recs = append(recs, rec)
		}
		e, err := compareLayer(ctx, in, l, h, recs, be, blocks.RowBias(h))
		if err != nil {
			return nil, err
		}
		cmp.Layers = append(cmp.Layers, e)
	}
	progress.Func(o.Progress).Say("comparing", int64(len(in.Layers)), int64(len(in.Layers)))
	cmp.summarise()
	cmp.SideTensors, err = compareSides(r, src)
	return cmp, err
}

func (c *Comparison) summarise() {
	n, future := 0, 0
	var f float64
	for _, l := range c.Layers {
		c.KError += l.KError
		c.VError += l.VError
		n++
		if !math.IsNaN(l.FutureError) {
			f += l.FutureError
			future++
		}
	}
	c.KError, c.VError = c.KError/float64(max(1, n)), c.VError/float64(max(1, n))
	c.FutureError = math.NaN()
	if future > 0 {
		c.FutureError = f / float64(future)
	}
}

// compareLayer measures a layer from its records.
func compareLayer(ctx context.Context, in *input.Data, l *input.Layer, h *container.Header,
	recs []*container.Record, be backend.Backend, rowBias bool) (LayerError, error) {
	e := LayerError{Layer: l.Number, Name: l.Name, FutureError: math.NaN(), Worst: newLayerWorst()}
	k, v := newRowSum(l.Heads), newRowSum(l.Heads)
	for _, rec := range recs {
		first, _ := l.Span(rec.Segment)
		for hi := range rec.Heads {
			for bi := range rec.Heads[hi].Blocks {
				b := &rec.Heads[hi].Blocks[bi]
				if err := k.add(in, l.K, hi, first, b, func() (quant.Rows, error) {
					return blocks.DecodeK(h, rec, hi, b)
				}); err != nil {
					return e, err
				}
				if l.HasV {
					if err := v.add(in, l.V, hi, first, b, func() (quant.Rows, error) {
						return blocks.Decode(b.V, b.VData, b.Rows(), l.V.Dim(), h.Seed)
					}); err != nil {
						return e, err
					}
				}
			}
		}
	}
	e.KError, e.KCosine = k.Relative(), k.cosine()
	e.VError, e.VCosine = v.Relative(), v.cosine()
	e.Worst.KHead, e.Worst.KToken = worstOf(k.heads)
	e.Worst.VHead, e.Worst.VToken = worstOf(v.heads)
	if !l.HasV || l.Next == nil {
		return e, nil
	}
	var want []float32
	s, sums, err := ahead.Error(ctx, in, l, h, recs, be, rowBias, &want)
	e.FutureError = s.Relative()
	e.Worst.FutureHead, e.Worst.FutureToken = worstFuture(sums)
	return e, err
}

// rowSum accumulates errors of rows.
type rowSum struct {
	damage.Sum
	cos   float64
	rows  int
	heads []headSum
}

func newRowSum(heads int) *rowSum { return &rowSum{heads: make([]headSum, heads)} }

func (s *rowSum) cosine() float64 { return s.cos / float64(max(1, s.rows)) }

// add compares the tokens of one block with their rows. Rows that are not finite must be identical
// and count nowhere else; tokens that were dropped count as zeros.
func (s *rowSum) add(in *input.Data, t input.Tensor, head, first int, b *container.Block,
	decode func() (quant.Rows, error)) error {
	var x quant.Rows
	if b.Level != quant.Dropped {
		var err error
		if x, err = decode(); err != nil {
			return err
		}
	}
	refs, zero := make([]float32, min(len(b.Tokens), compareRows)*t.Dim()), make([]float32, t.Dim())
	var run []float32
	row, left := -1, 0
	for i, tok := range b.Tokens {
		if len(run) == 0 {
			n := neighbours(b.Tokens[i:])
			run = refs[:n*t.Dim()]
			if err := t.ReadF32(head, first+int(tok), n, run); err != nil {
				return err
			}
		}
		var ref []float32
		ref, run = run[:t.Dim()], run[t.Dim():]
		got := zero
		switch {
		case b.Level == quant.Dropped:
		case b.Counts == nil:
			row++
			got = x.Row(row)
		default:
			if left == 0 {
				row++
				left = int(b.Counts[row])
			}
			left--
			got = x.Row(row)
		}
		if !input.Finite(ref) {
			for i := range ref {
				if math.Float32bits(ref[i]) != math.Float32bits(got[i]) {
					return fmt.Errorf(
						"kvist/report: %s head %d token %d is not finite and not kept exactly: %w",
						t.Name(), head, first+int(tok), quant.ErrCorrupt)
				}
			}
			continue
		}
		s.Add(ref, got)
		var one damage.Sum
		one.Add(ref, got)
		s.heads[head].add(one, first+int(tok))
		s.cos += cosine(ref, got)
		s.rows++
	}
	return nil
}

// compareRows bounds the rows that are read at a time to compare with.
const compareRows = 64

// neighbours counts tokens that follow each other, at most compareRows of them.
func neighbours(tokens []uint16) int {
	n := 1
	for n < min(len(tokens), compareRows) && int(tokens[n]) == int(tokens[0])+n {
		n++
	}
	return n
}

// cosine of two zero vectors is 1, of one 0.
func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	switch {
	case aa == 0 && bb == 0:
		return 1
	case aa == 0 || bb == 0:
		return 0
	}
	return ab / math.Sqrt(aa*bb)
}

// compareSides checks that every side tensor of the file is that of the capture, byte for byte.
func compareSides(r *container.Reader, src *capture.Source) (int, error) {
	infos, err := r.Auxes()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, info := range infos {
		if cold.Internal(info.Name) {
			continue
		}
		n++
		a, err := r.ReadAux(info.Name)
		if err != nil {
			return 0, err
		}
		t, ok := src.Lookup(info.Name)
		if !ok || t.Bytes != int64(len(a.Data)) {
			return 0, fmt.Errorf(
				"kvist/report: side tensor %q of the file is not in %s at that size: %w",
				info.Name, src.Info().Name, quant.ErrShape)
		}
		want := make([]byte, t.Bytes)
		if err := src.ReadAt(info.Name, 0, want); err != nil {
			return 0, err
		}
		if string(want) != string(a.Data) {
			return 0, fmt.Errorf("kvist/report: side tensor %q differs from the original: %w",
				info.Name, quant.ErrCorrupt)
		}
	}
	return n, nil
}
