// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// keyChunk is the tokens whose keys are held at a time while attention is measured.
const keyChunk = 8192

// Of the windows before the last one every olderStride-th query stands for its neighbours, where
// they have at most olderMix of the say: with the default profile they only lift what was looked
// at some time ago off the floor. All queries of the last window count.
const (
	olderStride = 2
	olderMix    = 0.1
)

// attended weighs the tokens of a layer as weigh does, for profiles that know relevance alone and
// with all heads of the layer in one call of the backend.
func (c *compressor) attended(ctx context.Context, l *layerInput, p importance.Profile) (w [][]float32,
	collapsed int, err error) {
	windows, err := c.windows(l, p)
	if err != nil {
		return nil, 0, err
	}
	keys := &layerKeys{c: c, l: l, up: uploader{be: c.be}}
	defer keys.up.free()
	if err := keys.standIns(); err != nil {
		return nil, 0, err
	}
	for first := 0; first < l.tokens; first += keyChunk {
		blocks, err := keys.load(first)
		if err != nil {
			return nil, 0, err
		}
		for _, q := range windows {
			if err := q.normalise(ctx, c.be, blocks); err != nil {
				return nil, 0, err
			}
		}
	}
	for first := 0; first < l.tokens; first += keyChunk {
		blocks, err := keys.load(first)
		if err != nil {
			return nil, 0, err
		}
		for _, q := range windows {
			if err := q.sum(ctx, c.be, blocks, first); err != nil {
				return nil, 0, err
			}
		}
	}
	w = make([][]float32, l.heads)
	for h := range w {
		var gone bool
		if w[h], gone, err = relevanceOf(windows, h, l.tokens, p); err != nil {
			return nil, 0, err
		}
		if gone {
			collapsed++
		}
	}
	return w, collapsed, nil
}

// relevanceOf makes the weights of a head of what the windows saw; collapsed says that attention
// lay on so few tokens that it is not believed.
func relevanceOf(windows []*window, head, tokens int, p importance.Profile) (w []float32,
	collapsed bool, err error) {
	r, err := importance.NewRelevance(p.Attention)
	if err != nil {
		return nil, false, err
	}
	for _, q := range windows {
		if q.bad[head] {
			continue
		}
		err := r.Add(importance.Queries{First: int64(q.first), N: q.n, Group: q.q.Group},
			importance.RowSums{Sum: q.sums[head]})
		if err != nil {
			return nil, false, err
		}
	}
	x := make([]float64, tokens)
	if err := r.Values(x); err != nil {
		return nil, false, err
	}
	conc, err := importance.Concentrate(x[min(p.Shape.Sinks, len(x)):], importance.CollapseLimits{})
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

// window is a run of queries of a layer: of all KV heads, some or all of its positions.
type window struct {
	first, n int // positions it stands for
	q        *backend.Queries
	taken    int         // queries of each KV head
	bad      []bool      // [heads] some query is not finite: the head leaves the window out
	lse      []float32   // [heads*taken*group]
	sums     [][]float32 // [heads][tokens]
}

// observed returns the windows that a profile looks at, as first positions and lengths: the
// last ends with the last query, and where all queries count there are as many before it as have
// not faded to a quarter.
func observed(p importance.Profile, tokens int) (spans [][2]int) {
	size := p.Attention.Window
	if size == 0 {
		size = 64
	}
	need := tokens
	if p.Attention.Mix == 0 {
		need = size
	} else if p.Attention.HalfLife > 0 {
		need = size + int(math.Ceil(2*p.Attention.HalfLife))
	}
	for at := max(0, tokens-(need+size-1)/size*size); at < tokens; {
		n := min(size, tokens-at)
		if r := (tokens - at) % size; r > 0 {
			n = r
		}
		spans = append(spans, [2]int{at, n})
		at += n
	}
	return spans
}

// windows reads the queries of a layer that count.
func (c *compressor) windows(l *layerInput, p importance.Profile) ([]*window, error) {
	group, dim := c.in.geo.GQARatio(), l.k.Dim()
	var all []*window
	spans := observed(p, l.tokens)
	for i, span := range spans {
		stride := 1
		if i < len(spans)-1 && p.Attention.Mix <= olderMix {
			stride = min(olderStride, span[1])
		}
		w := &window{first: span[0], n: span[1], taken: span[1] / stride, bad: make([]bool, l.heads)}
		w.q = &backend.Queries{Group: group, HeadDim: dim, HeadDimV: standInDim,
			Scale: float32(1 / math.Sqrt(float64(dim))), Q: make([]float32, l.heads*w.taken*group*dim)}
		rows := make([]float32, span[1]*dim)
		for h := range l.heads {
			for g := range group {
				if err := c.in.src.ReadRowsF32(l.q, h*group+g, span[0], span[1], rows); err != nil {
					return nil, err
				}
				for j := range w.taken {
					row := rows[((j+1)*stride-1)*dim:][:dim]
					w.bad[h] = w.bad[h] || !finiteValues(row)
					copy(w.q.Q[((h*w.taken+j)*group+g)*dim:], row)
				}
			}
			if w.bad[h] {
				clear(w.q.Q[h*w.taken*group*dim:][:w.taken*group*dim])
			}
			for j := range w.taken {
				w.q.Pos = append(w.q.Pos, int64(span[0]+(j+1)*stride-1))
			}
			w.sums = append(w.sums, make([]float32, l.tokens))
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
		for range w.taken {
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
	if err := be.Attend(ctx, w.q, blocks, out, lse); err != nil {
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

// sum takes the attention that the rows of blocks, from token first on, get.
func (w *window) sum(ctx context.Context, be backend.Backend, blocks []backend.Block, first int) error {
	if w.q.Pos[len(w.q.Pos)-1] < blocks[0].Base {
		return nil
	}
	w.lists(len(blocks))
	n := int(blocks[0].Rows)
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}, Sum: make([]float32, n*len(blocks))}
	for range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+int32(n))
	}
	if err := be.Relevance(ctx, w.q, w.lse, blocks, rel); err != nil {
		return err
	}
	each := float32(w.n) / float32(w.taken) // a query stands for so many
	for h := range blocks {
		for t, x := range rel.Sum[h*n : (h+1)*n] {
			w.sums[h][first+t] = each * x
		}
	}
	return nil
}

// layerKeys holds the keys of a chunk of tokens, as a block of each KV head.
type layerKeys struct {
	c      *compressor
	l      *layerInput
	up     uploader
	zeros  backend.Span // in place of V: only the log-sum-exp is wanted
	bufs   []backend.Span
	blocks []backend.Block
	raw    []byte
	at     int // first token of the blocks
}

func (k *layerKeys) standIns() (err error) {
	n := min(k.l.tokens, keyChunk)
	if k.zeros, err = k.up.alloc(int64(n) * 2 * standInDim); err != nil {
		return err
	}
	for range k.l.heads {
		b, err := k.up.alloc(int64(n) * int64(k.l.k.RowBytes()))
		if err != nil {
			return err
		}
		k.bufs = append(k.bufs, b)
	}
	k.raw, k.at = make([]byte, n*k.l.k.RowBytes()), -1
	return nil
}

// load reads the keys from token first on. Rows that are not finite become zeros.
func (k *layerKeys) load(first int) ([]backend.Block, error) {
	if k.at == first {
		return k.blocks, nil
	}
	l, n := k.l, min(keyChunk, k.l.tokens-first)
	size := l.k.RowBytes()
	k.blocks, k.at = k.blocks[:0], first
	for h := range l.heads {
		raw := k.raw[:n*size]
		if err := k.c.in.src.ReadRows(l.k, h, first, n, raw); err != nil {
			return nil, err
		}
		for r := range n {
			if row := raw[r*size : (r+1)*size]; !finiteRow(l.k.DType(), row) {
				clear(row)
			}
		}
		data, zeros := k.bufs[h], k.zeros
		if err := data.Buf.Upload(0, raw); err != nil {
			return nil, err
		}
		data.Len, zeros.Len = int64(len(raw)), int64(n)*2*standInDim
		k.blocks = append(k.blocks, backend.Block{Layer: int32(l.number), KVHead: int32(h), Rows: int32(n),
			Base: int64(first), K: backend.Side{Coding: exact(l.k), Data: data},
			V: backend.Side{Coding: quant.Coding{Format: quant.F16}, Data: zeros}})
	}
	return k.blocks, nil
}
