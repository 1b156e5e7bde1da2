// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

// rehearsal finds what an archive does to attention: the last queries of a layer attend to the tokens before them as
// the records hold them, and to their own exact ones. Earlier queries would not do: they look at tokens that are old
// by now, and stored coarsely for that. On captures of SmolLM2 and Gemma 3 270M it is 1.0 to 1.7 times the
// future-attention error, at 0.5 to 2.25 bits.
//
// Records are handed over as they are written, those of a layer one behind the other, and are held until a few layers
// are there.
type rehearsal struct {
	w      *Writer
	enc    *encoder
	layers []heldLayer // the last one may lack records
	errs   []float64   // relative, of layers
	missed bool        // a layer without queries, or with some that are not finite
}

type heldLayer struct {
	l    *input.Layer
	recs []*container.Record
}

// rehearsedTokens bounds the tokens of a layer that is rehearsed: its exact rows are held.
const rehearsedTokens = 1 << 14

// rehearsedQueries is the number of positions whose queries rehearse a layer.
const rehearsedQueries = 16

// rehearsedLayers is about the number of layers that are rehearsed, evenly spread: all of 30 take half the time of
// coding.
const rehearsedLayers = 10

// rehearsed reports whether a layer is among those that are rehearsed.
func (r *rehearsal) rehearsed(l *input.Layer) bool {
	n := len(r.w.Input.Layers)
	return l.Index*rehearsedLayers/n != (l.Index-1)*rehearsedLayers/n || n <= rehearsedLayers || l.Index == 0
}

// can reports whether a layer has queries that see tokens which are no sinks, and is not too long.
func (r *rehearsal) can(l *input.Layer) bool {
	return r.w.Price != nil && r.w.Price.Memo == nil && l.HasV && l.HasQ && l.Tokens <= rehearsedTokens &&
		l.Tokens-rehearsedQueries > r.w.Sinks
}

// add takes a record that was written.
func (r *rehearsal) add(ctx context.Context, rec *container.Record) error {
	l := &r.w.Input.Layers[rec.Layer]
	if !r.rehearsed(l) {
		return nil
	}
	if !r.can(l) {
		r.missed = true
		return nil
	}
	n := len(r.layers)
	if n == 0 || r.layers[n-1].l != l {
		r.layers = append(r.layers, heldLayer{l: l})
		n++
	}
	held := &r.layers[n-1]
	if held.recs = append(held.recs, rec); len(held.recs) < l.Segments() || n < r.w.Input.Workers() {
		return nil
	}
	return r.measure(ctx)
}

// predicted returns the mean error of the layers, NaN where some layer could not be rehearsed.
func (r *rehearsal) predicted(ctx context.Context) (float64, error) {
	if err := r.measure(ctx); err != nil || r.missed || len(r.errs) == 0 {
		return math.NaN(), err
	}
	var sum float64
	for _, e := range r.errs {
		sum += e / float64(len(r.errs))
	}
	return sum, nil
}

// measure rehearses the layers at hand.
func (r *rehearsal) measure(ctx context.Context) error {
	sums, ok := make([]damage.Sum, len(r.layers)), make([]bool, len(r.layers))
	err := parallel.Each(ctx, len(r.layers), func(i int) (err error) {
		sums[i], ok[i], err = r.layer(ctx, &r.layers[i])
		return err
	})
	for i, s := range sums {
		r.errs, r.missed = append(r.errs, s.Relative()), r.missed || !ok[i]
	}
	r.layers = r.layers[:0]
	return err
}

// layer returns the error of a layer; false where some queries are not finite.
func (r *rehearsal) layer(ctx context.Context, held *heldLayer) (sum damage.Sum, ok bool, err error) {
	in, l := r.w.Input, held.l
	up := &input.Uploader{Backend: r.w.Price.Backend}
	defer up.Free()
	past := l.Tokens - rehearsedQueries
	coded, err := r.coded(up, held, past)
	if err != nil {
		return sum, false, err
	}
	for h := range l.Heads {
		cuts := []int{0, past, l.Tokens}
		if gone := in.Outside(l, l.Tokens); gone > 0 && gone < past { // not stored, and seen by queries of the rehearsal
			cuts = []int{0, gone, past, l.Tokens}
		}
		exact, _, err := input.LoadHead(up, l, h, cuts, false)
		if err != nil {
			return sum, false, err
		}
		q, err := r.w.Price.LastQueries(l, h, past, len(exact))
		if q == nil || err != nil {
			return sum, false, err
		}
		want, err := r.attend(ctx, q, exact)
		if err != nil {
			return sum, false, err
		}
		now := coded[h]
		for _, b := range exact {
			if b.Base >= int64(past) || len(cuts) == 4 && b.Base < int64(cuts[1]) {
				now = append(now, b)
			}
		}
		got, err := r.attend(ctx, q, now)
		if err != nil {
			return sum, false, err
		}
		sum.Add(want, got)
	}
	return sum, true, nil
}

// attend returns the outputs of queries over blocks.
func (r *rehearsal) attend(ctx context.Context, q *backend.Queries, over []backend.Block) ([]float32, error) {
	all := *q
	all.BlockPtr, all.BlockIdx = []int32{0}, nil
	for range q.Len() {
		for b := range over {
			all.BlockIdx = append(all.BlockIdx, int32(b))
		}
		all.BlockPtr = append(all.BlockPtr, int32(len(all.BlockIdx)))
	}
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	return out, backend.AttendBlocks(ctx, r.w.Price.Backend, &all, nil, over, backend.Attention{Out: out})
}

// coded uploads the tokens before past as the records hold them, by head.
func (r *rehearsal) coded(up *input.Uploader, held *heldLayer, past int) ([][]backend.Block, error) {
	heads := make([][]backend.Block, held.l.Heads)
	for _, rec := range held.recs {
		first, n := held.l.Span(rec.Segment)
		if n = min(n, past-first); n <= 0 {
			continue
		}
		exact, err := Expand(r.enc.codec, r.w.Header, rec)
		if err != nil {
			return nil, err
		}
		for h := range exact.Heads {
			cutTo(&exact.Heads[h], n)
		}
		loaded, err := blocks.Load(up, r.w.Header, exact, held.l.Number, false)
		if err != nil {
			return nil, err
		}
		for h := range loaded {
			heads[h] = append(heads[h], loaded[h]...)
		}
	}
	return heads, nil
}

// cutTo leaves the first n tokens of a segment in blocks of exact rows, which have them in order.
func cutTo(head *container.Head, n int) {
	for i := range head.Blocks {
		b := &head.Blocks[i]
		k := 0
		for k < len(b.Tokens) && int(b.Tokens[k]) < n {
			k++
		}
		if b.Level != quant.Dropped && len(b.Tokens) > 0 {
			b.KData, b.VData = b.KData[:len(b.KData)/len(b.Tokens)*k], b.VData[:len(b.VData)/len(b.Tokens)*k]
		}
		if b.Tokens = b.Tokens[:k]; k == 0 {
			b.Level = quant.Dropped
		}
	}
}
