// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
)

// Decoding, exactly: all tokens, context and continuation, go through the model in chunks of
// Options.Chunk. Before each chunk, at position p, the cache is made anew:
//
//   - the rows of tokens [p-Window, p) are exact, as this run computed them;
//   - the rows of tokens [0, p-Window) are the method's. It is given these rows as this run
//     computed them, which is from an already compressed past, with the queries of the same
//     tokens, and nothing of the window. What it returns takes the place of what it returned
//     before. A row that it dropped stays dropped, unless it comes back as a merged row.
//
// So hidden states, and with them later rows and queries, carry the errors of the past, as in a
// server. A method that codes rows each by itself gives them the same bytes every time, which is
// coding them once. A method that plans over the whole context may plan again; it sees the
// rows as computed, so a second plan may refine a row, which a server without an archive cannot
// do: for these the mode is a little kind.
//
// Of the queries of the window, which a server would know, the method sees none. With them (the window planned as
// exact rows of the same file) kvist's divergence was lower over two calibration texts, 0.0040 for 0.0050 at 2.75
// bits and 0.0088 for 0.0100 at 2.25 with FULL alone, and levels did harm still: 0.0059 and 0.019.
//
// The divergence is that of the last Next tokens from the exact run in one piece. Bytes are those
// at the last chunk: the method's and 2 a value for the window.

// decoded measures one method with errors feeding back.
func (r *Run) decoded(ctx context.Context, method methods.Method) (Score, error) {
	g, n := r.m.Geometry(), len(r.tokens)
	c := newCollector(g, n)
	s := scorer{ref: r.ref}
	var kv *model.ExactKV
	var dropped [][]bool
	var bytes int64
	var held int
	for p := 0; p < n; {
		if err := ctx.Err(); err != nil {
			return Score{}, err
		}
		var err error
		if old := p - r.o.Window; old > 0 {
			var left *methods.Cache
			if left, err = compressChecked(ctx, method, c.context(r.tokens, old)); err != nil {
				return Score{}, err
			}
			dropped = keepDropped(left, dropped, g.KVHeads, old)
			bytes, held = left.Bytes+2*values(g, r.o.Window), p
			kv, err = r.rebuilt(left, c, old, p)
		} else if kv == nil {
			kv, err = r.m.NewKV(model.KVOptions{})
		}
		if err != nil {
			return Score{}, err
		}
		end := min(p+r.o.Chunk, n)
		if p < r.o.Context { // the measured tokens start a chunk of their own
			end = min(end, r.o.Context)
		}
		fo := model.ForwardOptions{Logits: model.LogitsNone, Observer: c.observe}
		if first := p - r.o.Context; first >= 0 {
			fo.Logits = model.LogitsAll
			fo.OnLogits = func(i int, logits []float32) error { return s.add(first+i, logits) }
		}
		if _, err := r.m.Forward(r.tokens[p:end], kv, p, fo); err != nil {
			return Score{}, err
		}
		p = end
	}
	score, err := s.score()
	if held == 0 { // nothing was ever older than the window
		bytes, held = 2*values(g, n), n
	}
	return r.sized(score, bytes, held), err
}

// rebuilt returns a cache with the method's rows of [0, old) and exact ones of [old, p).
func (r *Run) rebuilt(left *methods.Cache, c *collector, old, p int) (*model.ExactKV, error) {
	kv, err := r.m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, err
	}
	if err := fill(kv, left, old); err != nil {
		return nil, err
	}
	g := c.geo
	for l, x := range c.layers {
		rows := model.ContextRows{K: c.cut(x.K, g.KVHeads, g.HeadDim, old, p),
			V: c.cut(x.V, g.KVHeads, g.HeadDimV, old, p)}
		if err := kv.AppendRows(l, p-old, rows); err != nil {
			return nil, err
		}
	}
	return kv, nil
}

// keepDropped drops from c, which has n tokens, the rows that were dropped before, and returns
// all that are dropped now, [layers][kv_heads * n]. A row with a positive bias stands for others
// and stays.
func keepDropped(c *methods.Cache, before [][]bool, kvHeads, n int) [][]bool {
	now := make([][]bool, len(c.Layers))
	for l := range c.Layers {
		x := &c.Layers[l]
		now[l] = make([]bool, kvHeads*n)
		for i := range now[l] {
			now[l][i] = i < len(x.Keep) && !x.Keep[i]
		}
		if before == nil {
			continue
		}
		was := len(before[l]) / kvHeads
		keep := make([]bool, kvHeads*n)
		for i := range keep {
			h, t := i/n, i%n
			merged := i < len(x.Bias) && x.Bias[i] > 0
			if t < was && before[l][h*was+t] && !merged {
				now[l][i] = true
			}
			keep[i] = !now[l][i]
		}
		x.Keep = keep
	}
	return now
}
