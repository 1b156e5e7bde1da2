// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
)

// decoded measures one method with errors feeding back. All tokens go through the model in chunks.
// Before each chunk, at position p, the cache is made anew: the rows of the last Window tokens are
// exact, as this run computed them; the older ones are what the method makes of the rows and queries
// that this run computed. DESIGN.md describes it and says why.
//
// The score is that of the last Next tokens against the exact run in one piece. Its bytes are the
// method's at the last chunk, and 2 a value for the window.
func (r *Run) decoded(ctx context.Context, method methods.Method) (Score, error) {
	g, n := r.m.Geometry(), len(r.tokens)
	c := newCollector(g, n)
	s := scorer{ref: r.ref, each: r.o.OnDecoding}
	var kv *model.ExactKV
	var dropped [][]bool
	var bytes int64
	var held int64 // values that the bytes stand for
	for p := 0; p < n; {
		if err := ctx.Err(); err != nil {
			return Score{}, err
		}
		var err error
		if old := p - r.o.Window; old > 0 {
			var left *methods.Cache
			var x *layered
			if x, err = newLayered(r.m, c.context(r.tokens, old), p); err != nil {
				return Score{}, err
			}
			if left, err = x.compress(ctx, method); err != nil {
				return Score{}, err
			}
			dropped = keepDropped(left, dropped, g.KVHeads, old)
			bytes, held = left.Bytes+2*seen(r.m, old, p, p), seen(r.m, 0, p, p)
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
	if held == 0 { // no token was ever older than the window
		held = seen(r.m, 0, n, n)
		bytes = 2 * held
	}
	return r.sized(score, bytes, held), err
}

// rebuilt returns a cache with the method's rows of tokens [0, old) and exact rows of [old, p).
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

// keepDropped drops from c, of n tokens, the rows that were dropped before. It returns all rows that
// are dropped now, [layers][kv_heads * n]. A row with a positive bias is a merged row and stays.
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
