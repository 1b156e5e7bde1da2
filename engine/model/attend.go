// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
)

// attendTile is the number of queries of a head in one tile. A tile holds the queries of all heads
// that share a KV head: up to attendTile * gqa rows.
const attendTile = 32

// attendScratch is the working memory of one worker.
type attendScratch struct {
	q      []float32 // [rows, head_dim], scaled
	scores []float32 // [rows, kvBlock]
	p      []float32 // [rows, kvBlock], 0 where masked or beyond the last token
	acc    []float32 // [rows, head_dim_v rounded up to whole panels]
	top    []float32 // [rows], largest score so far
	sum    []float32 // [rows], sum of exp(score - top)
}

// Attend implements KVStore. It takes the softmax block by block with a running maximum, tiles of
// queries in parallel. The output of a query that sees no row is zero.
//
// Source: Dao et al., FlashAttention (2022, arXiv 2205.14135).
// Errors: ErrShape.
func (kv *ExactKV) Attend(layer, pos int, q []float32, n int, out []float32) error {
	const op = "attend"
	l, err := kv.layer(op, layer)
	if err != nil {
		return err
	}
	g := kv.geo
	qLen, outLen := n*g.Heads*g.HeadDim, n*g.Heads*g.HeadDimV
	if n < 0 || pos < 0 || pos > l.n-n || len(q) != qLen || len(out) != outLen {
		return shapef(op, "layer %d: %d queries at position %d with %d values, room for %d, "+
			"want %d, %d and positions below %d", layer, n, pos, len(q), len(out), qLen, outLen, l.n)
	}
	gqa := g.GQARatio()
	tiles := (n + attendTile - 1) / attendTile
	workers := min(len(kv.scratch), max(1, n*g.Heads*(pos+n)/attendWorth))
	return parallelItems(workers, tiles*g.KVHeads, func(worker, item int) error {
		// The last tiles see most rows, so they go first: otherwise one worker would end with a long one.
		first := (tiles - 1 - item/g.KVHeads) * attendTile
		t := tile{kv: kv, l: l, how: &kv.attends[layer], s: &kv.scratch[worker], pos: pos, first: first,
			n: min(attendTile, n-first), kvHead: item % g.KVHeads, gqa: gqa}
		return t.run(q, out)
	})
}

// attendWorth is the number of scores from which another goroutine pays.
const attendWorth = 2048

// tile computes the attention of the queries [first, first+n) of all heads of one KV head. Row r of
// the tile is query r/gqa of head r%gqa within the KV head.
type tile struct {
	kv            *ExactKV
	l             *kvLayer
	how           *LayerAttention
	s             *attendScratch
	pos, first, n int
	kvHead, gqa   int
}

func (t *tile) run(q, out []float32) error {
	g, s, rows := t.kv.geo, t.s, t.n*t.gqa
	s.q = resize(s.q, rows*g.HeadDim)
	s.scores = resize(s.scores, rows*kvBlock)
	s.p = resize(s.p, rows*kvBlock)
	s.acc = resize(s.acc, rows*panelled(g.HeadDimV))
	s.top, s.sum = resize(s.top, rows), resize(s.sum, rows)
	clear(s.acc)
	clear(s.sum)
	scale := float32(t.how.Scale)
	for r := range rows {
		s.top[r] = float32(math.Inf(-1))
		i := (t.first+r/t.gqa)*g.Heads + t.kvHead*t.gqa + r%t.gqa
		dst := s.q[r*g.HeadDim : (r+1)*g.HeadDim]
		for c, x := range q[i*g.HeadDim : (i+1)*g.HeadDim] {
			dst[c] = x * scale
		}
	}
	visible := t.pos + t.first + t.n // rows that the last query sees
	from := t.how.first(t.pos+t.first) / kvBlock
	for i, b := range t.l.heads[t.kvHead].blocks[from:] {
		start := (from + i) * kvBlock
		if start >= visible {
			break
		}
		if err := t.block(b, start, min(kvBlock, visible-start)); err != nil {
			return err
		}
	}
	for r := range rows {
		i := (t.first+r/t.gqa)*g.Heads + t.kvHead*t.gqa + r%t.gqa
		dst := out[i*g.HeadDimV : (i+1)*g.HeadDimV]
		if s.sum[r] == 0 {
			clear(dst)
			continue
		}
		inv := 1 / s.sum[r]
		for c, x := range s.acc[r*panelled(g.HeadDimV):][:g.HeadDimV] {
			dst[c] = x * inv
		}
	}
	return nil
}

// block adds n tokens, from position start on, to the running softmax of the tile.
func (t *tile) block(b *kvBlockData, start, n int) error {
	g, s, rows := t.kv.geo, t.s, t.n*t.gqa
	err := t.kv.engine.Panels(s.scores, kvBlock, s.q, g.HeadDim, b.k, rows, panelled(n), g.HeadDim, false)
	if err != nil {
		return err
	}
	for r := range rows {
		// The query of row r sees positions up to its own, from the first of its window on.
		pos := t.pos + t.first + r/t.gqa
		m, lo := min(n, pos+1-start), max(0, t.how.first(pos)-start)
		p := s.p[r*kvBlock : (r+1)*kvBlock]
		if m <= lo {
			clear(p)
			continue
		}
		score := s.scores[r*kvBlock+lo : r*kvBlock+m]
		if t.how.Softcap > 0 {
			softcapped(score, float32(t.how.Softcap))
		}
		if b.bias != nil {
			addTo(score, b.bias[lo:])
		}
		clear(p[:lo])
		t.softmax(r, score, p[lo:])
	}
	dim := panelled(g.HeadDimV)
	return t.kv.engine.Panels(s.acc, dim, s.p, kvBlock, b.v, rows, dim, kvBlock, true)
}

// softmax replaces the scores of row r with exp(score - top), top the largest score so far. It
// rescales the sums of earlier blocks to the new top.
func (t *tile) softmax(r int, score, p []float32) {
	s, old := t.s, t.s.top[r]
	e := t.kv.engine
	top := e.Largest(score, old)
	if math.IsInf(float64(top), -1) {
		if !hasNaN(score) { // every row so far is dropped
			clear(p)
			return
		}
		top = 0 // the result must be NaN
	}
	if top > old {
		s.top[r] = top
		f := exp32(old - top)
		s.sum[r] *= f
		dim := panelled(t.kv.geo.HeadDimV)
		acc := s.acc[r*dim : (r+1)*dim]
		for c := range acc {
			acc[c] *= f
		}
	}
	s.sum[r] += e.ExpSum(p, score, top)
	clear(p[len(score):])
}

func hasNaN(x []float32) bool {
	for _, v := range x {
		if v != v {
			return true
		}
	}
	return false
}
