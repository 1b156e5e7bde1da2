// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// keyChunk is the tokens whose keys are held at a time while attention is measured.
var keyChunk = 8192

// attended weighs the tokens of a layer as Weigh does, for profiles that know relevance alone and
// with all heads of the layer in one call of the backend.
func (c *Weigher) attended(ctx context.Context, l *input.Layer, p importance.Weighting) (w [][]float32,
	use Use, err error) {
	windows, err := c.windows(l, p)
	if err != nil {
		return nil, use, err
	}
	keys := &layerKeys{be: c.Backend, l: l, up: input.Uploader{Backend: c.Backend}}
	defer keys.up.Free()
	if err := keys.standIns(); err != nil {
		return nil, use, err
	}
	if err := keys.observe(ctx, windows); err != nil {
		return nil, use, err
	}
	w = make([][]float32, l.Heads)
	use.Heads = l.Heads
	for h := range w {
		for _, q := range windows {
			// Scores can be beyond the range of float32 though queries and keys are not.
			q.bad[h] = q.bad[h] || !input.Finite(q.sums[h])
		}
		bad := func(q *window) bool { return q.bad[h] }
		if slices.ContainsFunc(windows, bad) {
			use.Skipped++
		}
		if len(windows) > 0 && !slices.ContainsFunc(windows, func(q *window) bool { return !bad(q) }) {
			use.Unweighed++
			continue
		}
		var gone bool
		if w[h], gone, err = relevanceOf(windows, h, l.Tokens, p); err != nil {
			return nil, use, err
		}
		if gone {
			use.Collapsed++
		}
	}
	return w, use, nil
}

// observe sums up the attention that the windows pay: in one pass where the keys fit and the backend
// can, in two over chunks of them where not.
func (k *layerKeys) observe(ctx context.Context, windows []*window) error {
	be, n := k.be, k.l.Tokens
	if w, ok := be.(backend.Weigher); ok && n <= keyChunk {
		blocks, err := k.load(0)
		for i := 0; i < len(windows) && err == nil; i++ {
			q := windows[i]
			err = q.collect(blocks, 0, func(rel *backend.RelevanceOut) error {
				return backend.WeighBlocks(ctx, be, w, q.q, nil, blocks, rel)
			})
		}
		return err
	}
	for first := 0; first < n; first += keyChunk {
		blocks, err := k.load(first)
		for i := 0; i < len(windows) && err == nil; i++ {
			err = windows[i].normalise(ctx, be, blocks)
		}
		if err != nil {
			return err
		}
	}
	for first := 0; first < n; first += keyChunk {
		blocks, err := k.load(first)
		for i := 0; i < len(windows) && err == nil; i++ {
			q := windows[i]
			err = q.collect(blocks, first, func(rel *backend.RelevanceOut) error {
				return backend.RelevanceBlocks(ctx, be, q.q, nil, q.lse, blocks, rel)
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// relevanceOf makes the weights of a head of what the windows saw; collapsed says that attention
// lay on so few tokens that it is not believed.
func relevanceOf(windows []*window, head, tokens int, p importance.Weighting) (w []float32,
	collapsed bool, err error) {
	r, err := importance.NewRelevance(p.Attention)
	if err != nil {
		return nil, false, err
	}
	for _, q := range windows {
		if q.bad[head] {
			err = r.Skip(int64(q.first), q.n)
		} else {
			err = r.Add(importance.Queries{First: int64(q.first), N: q.n, Group: q.q.Group},
				importance.RowSums{Sum: q.sums[head]})
		}
		if err != nil {
			return nil, false, err
		}
	}
	x := make([]float64, tokens)
	if err := r.Values(x); err != nil {
		return nil, false, err
	}
	conc, err := importance.Concentrate(x[min(p.Shape.Sinks, len(x)):])
	if err != nil {
		return nil, false, err
	}
	if err := importance.Shape(x, p.Shape); err != nil {
		return nil, false, err
	}
	if conc.Collapsed {
		p.Relevance = 0
	}
	var s importance.Signals
	s[importance.SignalRelevance] = x
	w = make([]float32, tokens)
	return w, conc.Collapsed, importance.Combine(w, &p, &s)
}

// window is a run of queries of a layer, of all its KV heads. All queries count: with every second
// one of the windows before the last, divergence in the model was 8 % higher at 1.3 bits (five
// calibration texts), and with every fourth 20 % at 1.8.
type window struct {
	first, n int // positions
	q        *backend.Queries
	bad      []bool      // [heads] some query is not finite: the head leaves the window out
	lse      []float32   // [heads*n*group]
	sums     [][]float32 // [heads][tokens]
}

// observed returns the windows that a profile looks at, as first positions and lengths. None crosses a
// window that ends with the last query, so the last one is exact.
func observed(p importance.Weighting, tokens int) (spans [][2]int) {
	at, size := observedFrom(p, tokens)
	filled := 0 // of the window at work: no run crosses its end
	for at < tokens {
		if filled == size {
			filled = 0
		}
		n := min(size-filled, tokens-at)
		if r := (tokens - at) % size; r > 0 {
			n = min(n, r)
		}
		spans = append(spans, [2]int{at, n})
		at, filled = at+n, filled+n
	}
	return spans
}

// windows reads the queries of a layer that count.
func (c *Weigher) windows(l *input.Layer, p importance.Weighting) ([]*window, error) {
	group, dim := c.Geo.GQARatio(), l.K.Dim()
	var all []*window
	for _, span := range observed(p, l.Tokens) {
		n := span[1]
		w := &window{first: span[0], n: n, bad: make([]bool, l.Heads)}
		w.q = &backend.Queries{Group: group, HeadDim: dim, HeadDimV: standInDim,
			Scale: float32(1 / math.Sqrt(float64(dim))), Q: make([]float32, l.Heads*n*group*dim)}
		rows := make([]float32, n*dim)
		for h := range l.Heads {
			q := w.q.Q[h*n*group*dim:][:n*group*dim]
			for g := range group {
				if err := l.Q.ReadF32(h*group+g, w.first, n, rows); err != nil {
					return nil, err
				}
				w.bad[h] = w.bad[h] || !input.Finite(rows)
				for j := range n {
					copy(q[(j*group+g)*dim:], rows[j*dim:(j+1)*dim])
				}
			}
			if w.bad[h] {
				clear(q)
			}
			for j := range n {
				w.q.Pos = append(w.q.Pos, int64(w.first+j))
			}
			w.sums = append(w.sums, make([]float32, l.Tokens))
		}
		w.lse = make([]float32, len(w.q.Pos)*group)
		for i := range w.lse {
			w.lse[i] = float32(math.Inf(-1))
		}
		all = append(all, w)
	}
	return all, nil
}

// lists lets the queries of KV head h attend to block h.
func (w *window) lists(heads int) {
	w.q.BlockIdx, w.q.BlockPtr = w.q.BlockIdx[:0], append(w.q.BlockPtr[:0], 0)
	for h := range heads {
		for range w.n {
			w.q.BlockIdx = append(w.q.BlockIdx, int32(h))
			w.q.BlockPtr = append(w.q.BlockPtr, int32(len(w.q.BlockIdx)))
		}
	}
}

// normalise adds blocks, one of each KV head, to the log-sum-exps of the queries.
func (w *window) normalise(ctx context.Context, be backend.Backend, blocks []backend.Block) error {
	if w.q.Pos[len(w.q.Pos)-1] < blocks[0].Base {
		return nil
	}
	w.lists(len(blocks))
	out, lse := make([]float32, len(w.lse)*standInDim), make([]float32, len(w.lse))
	if err := backend.AttendBlocks(ctx, be, w.q, nil, blocks, backend.Attention{Out: out, LSE: lse}); err != nil {
		return err
	}
	for i, b := range lse {
		a := w.lse[i]
		if a < b {
			a, b = b, a
		}
		if !math.IsInf(float64(b), -1) {
			a += float32(math.Log1p(math.Exp(float64(b - a))))
		}
		w.lse[i] = a
	}
	return nil
}

// collect takes the attention that the rows of blocks, from token first on, get as measure tells it.
func (w *window) collect(blocks []backend.Block, first int, measure func(*backend.RelevanceOut) error) error {
	if w.q.Pos[len(w.q.Pos)-1] < blocks[0].Base {
		return nil
	}
	w.lists(len(blocks))
	n := int(blocks[0].Rows)
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}, Sum: make([]float32, n*len(blocks))}
	for range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+int32(n))
	}
	if err := measure(rel); err != nil {
		return err
	}
	for h := range blocks {
		copy(w.sums[h][first:], rel.Sum[h*n:(h+1)*n])
	}
	return nil
}

// layerKeys holds the keys of a chunk of tokens, as a block of each KV head.
type layerKeys struct {
	be     backend.Backend
	l      *input.Layer
	up     input.Uploader
	zeros  backend.Span // in place of V: only the log-sum-exp is wanted
	bufs   []backend.Span
	blocks []backend.Block
	raw    []byte
	at     int // first token of the blocks
}

func (k *layerKeys) standIns() (err error) {
	n := min(k.l.Tokens, keyChunk)
	if k.zeros, err = k.up.Alloc(int64(n) * 2 * standInDim); err != nil {
		return err
	}
	for range k.l.Heads {
		b, err := k.up.Alloc(int64(n) * int64(k.l.K.RowBytes()))
		if err != nil {
			return err
		}
		k.bufs = append(k.bufs, b)
	}
	k.raw, k.at = make([]byte, n*k.l.K.RowBytes()), -1
	return nil
}

// load reads the keys from token first on. Rows that are not finite become zeros.
func (k *layerKeys) load(first int) ([]backend.Block, error) {
	if k.at == first {
		return k.blocks, nil
	}
	l, n := k.l, min(keyChunk, k.l.Tokens-first)
	size := l.K.RowBytes()
	k.blocks, k.at = k.blocks[:0], first
	for h := range l.Heads {
		raw := k.raw[:n*size]
		if err := l.K.Read(h, first, n, raw); err != nil {
			return nil, err
		}
		for r := range n {
			if row := raw[r*size : (r+1)*size]; !input.FiniteRow(l.K.DType(), row) {
				clear(row)
			}
		}
		data, zeros := k.bufs[h], k.zeros
		if err := data.Buf.Upload(0, raw); err != nil {
			return nil, err
		}
		data.Len, zeros.Len = int64(len(raw)), int64(n)*2*standInDim
		k.blocks = append(k.blocks, backend.Block{Layer: int32(l.Number), KVHead: int32(h), Rows: int32(n),
			Base: int64(first), K: backend.Side{Coding: input.Exact(l.K), Data: data},
			V: backend.Side{Coding: quant.Coding{Format: quant.F16}, Data: zeros}})
	}
	return k.blocks, nil
}

// relevanceAlone reports whether weights are made of relevance and nothing else.
func relevanceAlone(p importance.Weighting) bool {
	for s := range importance.SignalDecay + 1 {
		if p.Uses(s) != (s == importance.SignalRelevance) {
			return false
		}
	}
	return true
}
