// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/blocks"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/damage"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/plan"
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

// Compare measures a file against the capture it was made from, a layer at a time.
//
// Errors: quant.ErrShape where the two do not belong together, quant.ErrCorrupt for side tensors
// that differ; *container.CorruptError, *capture.FormatError; those of the backend.
func Compare(ctx context.Context, r *container.Reader, src *capture.Source, be backend.Backend,
	progress Progress, profiles ...*profile.Profile) (*Comparison, error) {
	h := r.Header()
	codec, err := archiveCodec(r, profiles)
	if err != nil {
		return nil, err
	}
	in, err := captured.Of(src, h.SegmentTokens)
	if err != nil {
		return nil, err
	}
	if err := belongs(h, in); err != nil {
		return nil, err
	}
	cmp := &Comparison{}
	for i := range in.Layers {
		l := &in.Layers[i]
		progress.say("comparing", int64(i), int64(len(in.Layers)))
		var recs []*container.Record
		for s := range l.Segments() {
			at, ok := r.Find(i, s)
			if !ok {
				return nil, fmt.Errorf("kvist/kvfile: %s segment %d is not in the file: %w",
					l.Name, s, quant.ErrCorrupt)
			}
			rec, err := r.ReadRecord(at)
			if err == nil {
				rec, err = expand(codec, h, rec)
			}
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
	progress.say("comparing", int64(len(in.Layers)), int64(len(in.Layers)))
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

// kindOf names what an input holds.
func kindOf(in *input.Data) container.Kind {
	if in.KV {
		return container.KindCache
	}
	return container.KindRows
}

// belongs checks that a file can have been made from a capture.
func belongs(h *container.Header, in *input.Data) error {
	mismatch := func(what string, got, want any) error {
		return fmt.Errorf(
			"kvist/kvfile: %s is not what the file was made from: %s %v, the file has %v: %w",
			in.Name, what, got, want, quant.ErrShape)
	}
	if (h.Kind == container.KindCache) != in.KV {
		return mismatch("kind", kindOf(in), h.Kind)
	}
	if h.Stored() != len(in.Layers) {
		return mismatch("layers", len(in.Layers), h.Stored())
	}
	for i := range in.Layers {
		l := &in.Layers[i]
		k, v := h.Dims(i)
		switch {
		case l.K.Dim() != k || l.DimV() != v:
			return mismatch(l.Name+" dims", []int{l.K.Dim(), l.DimV()}, []int{k, v})
		case int64(l.Tokens) != h.LayerTokens(i):
			return mismatch(l.Name+" tokens", l.Tokens, h.LayerTokens(i))
		case l.Heads != h.KVHeads():
			return mismatch(l.Name+" kv_heads", l.Heads, h.KVHeads())
		case in.KV && l.Number != h.Layers[i]:
			return mismatch("layer number", l.Number, h.Layers[i])
		}
	}
	return nil
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
				if err := k.add(in, l.K, hi, first, b, b.K, b.KData, h.Seed); err != nil {
					return e, err
				}
				if l.HasV {
					if err := v.add(in, l.V, hi, first, b, b.V, b.VData, h.Seed); err != nil {
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
	s, sums, err := futureError(ctx, in, l, h, recs, be, rowBias, &want)
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
func (s *rowSum) add(in *input.Data, t input.Tensor, head, first int, b *container.Block, c quant.Coding,
	data []byte, seed uint64) error {
	var x quant.Rows
	if b.Level != quant.Dropped {
		var err error
		if x, err = blocks.Decode(c, data, b.Rows(), t.Dim(), seed); err != nil {
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
						"kvist/kvfile: %s head %d token %d is not finite and not kept exactly: %w",
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

// futureError runs the later queries of a layer over its compressed and its exact context. want
// keeps the outputs over the exact context from call to call. Also returned are the sums of each KV head and
// query.
func futureError(ctx context.Context, in *input.Data, l *input.Layer, h *container.Header,
	recs []*container.Record, be backend.Backend, rowBias bool, want *[]float32) (damage.Sum, [][]damage.Sum, error) {
	up := &input.Uploader{Backend: be}
	defer up.Free()
	rope := in.Geo.Rope
	f := &damage.Future{
		Group:    in.Geo.GQARatio(),
		HeadDim:  l.K.Dim(),
		HeadDimV: l.V.Dim(),
		Rope:     &rope,
		Coded:    make([][]backend.Block, l.Heads),
		Want:     *want,
	}
	for _, rec := range recs {
		heads, err := blocks.Load(up, h, rec, l.Number, rowBias)
		if err != nil {
			return damage.Sum{}, nil, err
		}
		for hi := range heads {
			f.Coded[hi] = append(f.Coded[hi], heads[hi]...)
		}
	}
	next, qNext := l.Next.Tokens, l.Next.Q
	for hi := range l.Heads {
		if f.Want == nil {
			blocks, _, err := input.LoadHead(up, l, hi, []int{0, l.Tokens}, false)
			if err != nil {
				return damage.Sum{}, nil, err
			}
			f.Exact = append(f.Exact, blocks)
		}
		tail, err := exactBlock(up, in.Name, l.Next, hi, int64(l.Tokens))
		if err != nil {
			return damage.Sum{}, nil, err
		}
		f.Tail = append(f.Tail, []backend.Block{tail})
	}
	f.Q = make([]float32, l.Next.Heads*next*l.K.Dim())
	for hd := range l.Next.Heads {
		if err := qNext.ReadF32(hd, 0, next, f.Q[hd*next*l.K.Dim():(hd+1)*next*l.K.Dim()]); err != nil {
			return damage.Sum{}, nil, err
		}
		if !input.Finite(f.Q[hd*next*l.K.Dim() : (hd+1)*next*l.K.Dim()]) {
			return damage.Sum{}, nil, notMeasured(in.Name, qNext, hd)
		}
	}
	for i := range next {
		f.Pos = append(f.Pos, int64(l.Tokens+i))
	}
	sum, err := f.Measure(ctx, be)
	*want = f.Want
	return sum, f.Sums, err
}

// exactBlock uploads the rows that come after a head's as they are.
func exactBlock(up *input.Uploader, name string, next *input.Next, head int, base int64) (backend.Block, error) {
	n := next.Tokens
	b := backend.Block{KVHead: int32(head), Rows: int32(n), Base: base}
	for _, side := range []struct {
		t  input.Tensor
		to *backend.Side
	}{{next.K, &b.K}, {next.V, &b.V}} {
		raw := make([]byte, n*side.t.RowBytes())
		if err := side.t.Read(head, 0, n, raw); err != nil {
			return b, err
		}
		if !input.FiniteRow(side.t.DType(), raw) {
			return b, notMeasured(name, side.t, head)
		}
		span, err := up.Upload(raw)
		if err != nil {
			return b, err
		}
		*side.to = backend.Side{Coding: input.Exact(side.t), Data: span}
	}
	return b, nil
}

// notMeasured says why no future-attention error can be told.
func notMeasured(name string, t input.Tensor, head int) error {
	return fmt.Errorf("kvist/kvfile: %s: %s head %d holds NaN or Inf: the future-attention error cannot be measured: %w",
		name, t.Name(), head, quant.ErrRange)
}

// compareSides checks that every side tensor of the file is that of the capture, byte for byte.
func compareSides(r *container.Reader, src *capture.Source) (int, error) {
	infos, err := r.Auxes()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, info := range infos {
		if info.Name == archiveAux {
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
				"kvist/kvfile: side tensor %q of the file is not in %s at that size: %w",
				info.Name, src.Name(), quant.ErrShape)
		}
		want := make([]byte, t.Bytes)
		if err := src.ReadAt(info.Name, 0, want); err != nil {
			return 0, err
		}
		if string(want) != string(a.Data) {
			return 0, fmt.Errorf("kvist/kvfile: side tensor %q differs from the original: %w",
				info.Name, quant.ErrCorrupt)
		}
	}
	return n, nil
}

// fitError finds the least bytes whose measured future-attention error is within the bound, by
// bisection on the file's bytes.
func (c *compressor) fitError(ctx context.Context) (*plan.Plan, float64, error) {
	for i := range c.in.Layers {
		if l := &c.in.Layers[i]; !l.HasV || l.Next == nil {
			return nil, 0, fmt.Errorf(
				"kvist/kvfile: a bound on the future-attention error needs q_next, k_next and v_next of every layer; %s of %s has none: %w",
				l.Name,
				c.in.Name,
				quant.ErrUnsupported,
			)
		}
	}
	best := c.main.Solver.Best()
	top, err := c.fileBytes(best)
	if err != nil {
		return nil, 0, err
	}
	bestErr, err := c.measureChoice(ctx, best)
	if err != nil {
		return nil, 0, err
	}
	if bestErr > c.cfg.MaxError {
		return nil, 0, fmt.Errorf(
			"kvist/kvfile: future-attention error of at most %g: the least possible with these codings is %.3g, at %d bytes: %w",
			c.cfg.MaxError,
			bestErr,
			top,
			quant.ErrBudget,
		)
	}
	// The measured error follows the planner's damage: error = factor * damage^power, with a power
	// near 1. The last two plans that were measured say which damage to try next.
	low, high := c.main.Solver.Least().Bytes, best.Bytes
	lastDamage, lastErr, power := 1.0, 1.0, 1.0
	const rounds = 10
	for i := range rounds {
		c.say.say("fitting the error", int64(i), rounds)
		if float64(high) < 1.01*float64(low) || bestErr > 0.95*c.cfg.MaxError {
			break
		}
		target := lastDamage * math.Pow(0.98*c.cfg.MaxError/lastErr, 1/power)
		p, err := c.guess(target, low, high)
		if p == nil || err != nil {
			return best, bestErr, err
		}
		e, err := c.measureChoice(ctx, p)
		if err != nil {
			return nil, 0, err
		}
		if e <= c.cfg.MaxError {
			best, bestErr, high = p, e, p.Bytes
		} else {
			low = p.Bytes
		}
		if p.Damage > 0 && e > 0 {
			if x := math.Log(e/lastErr) / math.Log(p.Damage/lastDamage); i > 0 && !math.IsNaN(x) {
				power = min(max(x, 0.5), 2)
			}
			lastDamage, lastErr = p.Damage, e
		}
	}
	c.say.say("fitting the error", rounds, rounds)
	return best, bestErr, nil
}

// guess returns a plan of about so much damage, with bytes well within the bracket; nil where the
// bracket holds none.
func (c *compressor) guess(damage float64, low, high int64) (*plan.Plan, error) {
	// Never at the ends, so that every round narrows the bracket.
	from, to := low+(high-low)/50, high-(high-low)/50
	var p *plan.Plan
	for from < to {
		var err error
		if p, err = c.main.Solver.Solve((from + to) / 2); err != nil {
			return nil, err
		}
		if p.Damage > damage {
			from = (from+to)/2 + 1
		} else {
			to = (from + to) / 2
		}
		if float64(to-from) < 0.001*float64(to) {
			break
		}
	}
	if p == nil || p.Bytes <= low || p.Bytes >= high {
		return nil, nil
	}
	return p, nil
}

// measureChoice encodes a plan in memory, a layer at a time, and measures its mean
// future-attention error.
func (c *compressor) measureChoice(ctx context.Context, choice *plan.Plan) (float64, error) {
	if c.want == nil {
		c.want = make([][]float32, len(c.in.Layers))
	}
	var sum float64
	var recs []*container.Record
	err := c.eachRecord(choice, func(rec *container.Record) error {
		if err := c.encodeRecord(ctx, rec); err != nil {
			return err
		}
		recs = append(recs, rec)
		l := &c.in.Layers[rec.Layer]
		if rec.Segment < l.Segments()-1 {
			return nil
		}
		want := c.want[rec.Layer]
		s, _, err := futureError(ctx, c.in, l, c.header, recs, c.be, c.rowBias(), &want)
		c.want[rec.Layer] = want
		sum, recs = sum+s.Relative(), nil
		return err
	})
	return sum / float64(len(c.in.Layers)), err
}
