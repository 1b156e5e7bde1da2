// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// ImportanceUse says what became of the importance profile.
type ImportanceUse struct {
	Profile string // as importance.Profile.String writes it; "none" where it was off
	Heads   int    // heads that were weighed
	// Collapsed counts heads whose attention lay on so few tokens that relevance was not believed.
	Collapsed int
	// Reason is why tokens weigh the same although a profile was given; empty otherwise.
	Reason string
}

// weigh runs the importance profile over a layer: [heads][tokens] weights, or nil.
func (c *compressor) weigh(ctx context.Context, l *layerInput) ([][]float32, error) {
	p, err := importance.ParseProfile(c.cfg.Importance)
	if err != nil {
		return nil, err
	}
	switch {
	case !l.hasV || p.String() == "none":
		return nil, nil
	case (p.Uses(importance.SignalRelevance) || p.Uses(importance.SignalExpected)) && !l.hasQ:
		c.use.Reason = "the capture holds no queries"
		return nil, nil
	}
	all := make([][]float32, l.heads)
	for h := range all {
		if all[h], err = c.weighHead(ctx, l, h, p); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (c *compressor) weighHead(ctx context.Context, l *layerInput, head int,
	p importance.Profile) ([]float32, error) {
	up := &uploader{be: c.be}
	defer up.free()
	blocks, rows, err := c.exactHead(up, l, head, []int{0, l.tokens})
	if err != nil {
		return nil, err
	}
	track, err := importance.NewTracker(p, l.k.Dim(), l.v.Dim(), c.in.geo.Rope)
	if err != nil {
		return nil, err
	}
	var surprisal []float32
	if p.Uses(importance.SignalSurprisal) && c.in.src.HasSurprisal(false) {
		surprisal = make([]float32, l.tokens)
		if err := c.in.src.ReadSurprisal(false, 0, surprisal); err != nil {
			return nil, err
		}
	}
	for first := 0; first < l.tokens; first += exactChunk {
		n := min(exactChunk, l.tokens-first)
		part := surprisal
		if surprisal != nil {
			part = surprisal[first : first+n]
		}
		if err := track.Append(rows.keys[first/exactChunk], rows.values[first/exactChunk], part); err != nil {
			return nil, err
		}
	}
	if p.Uses(importance.SignalRelevance) {
		if err := c.observe(ctx, l, head, blocks, track, p); err != nil {
			return nil, err
		}
	}
	if p.Uses(importance.SignalExpected) {
		if err := c.observeQueries(l, head, track); err != nil {
			return nil, err
		}
	}
	keys := quant.Rows{Dim: l.k.Dim()}
	for _, k := range rows.keys {
		keys.Data = append(keys.Data, k.Data...)
	}
	w := make([]float32, l.tokens)
	conc, err := track.Weights(w, keys)
	if err != nil {
		return nil, err
	}
	c.use.Heads++
	if conc.Collapsed {
		c.use.Collapsed++
	}
	return w, nil
}

// standInDim is the head_dim_v of rows that stand in for V.
const standInDim = 8

// observe feeds the tracker with the attention of the capture's last queries: those of the
// window, and where all queries count as many more as have not faded to a quarter.
func (c *compressor) observe(ctx context.Context, l *layerInput, head int, blocks []backend.Block,
	track *importance.Tracker, p importance.Profile) error {
	window := p.Attention.Window
	if window == 0 {
		window = 64
	}
	need := l.tokens
	if p.Attention.Mix == 0 {
		need = window
	} else if p.Attention.HalfLife > 0 {
		need = window + int(math.Ceil(2*p.Attention.HalfLife))
	}
	group, dim := c.in.geo.GQARatio(), l.k.Dim()
	// Only the log-sum-exp is wanted: V is stood in for by a few zeros a row.
	up := &uploader{be: c.be}
	defer up.free()
	blocks = slices.Clone(blocks)
	for i := range blocks {
		zeros, err := up.alloc(int64(blocks[i].Rows) * 2 * standInDim)
		if err != nil {
			return err
		}
		blocks[i].V = backend.Side{Coding: quant.Coding{Format: quant.F16}, Data: zeros}
	}
	// A batch never crosses a window that ends with the last query, so the last one is exact.
	first := max(0, l.tokens-(need+window-1)/window*window)
	for at := first; at < l.tokens; {
		n := min(track.Room(), l.tokens-at)
		if r := (l.tokens - at) % window; r > 0 {
			n = min(n, r)
		}
		q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: standInDim, BlockPtr: []int32{0},
			Scale: float32(1 / math.Sqrt(float64(dim))), Q: make([]float32, n*group*dim)}
		row := make([]float32, n*dim)
		for g := range group {
			if err := c.in.src.ReadRowsF32(l.q, head*group+g, at, n, row); err != nil {
				return err
			}
			for i := range n {
				copy(q.Q[(i*group+g)*dim:], row[i*dim:(i+1)*dim])
			}
		}
		if !finiteValues(q.Q) {
			at += n
			continue
		}
		for i := range n {
			q.Pos = append(q.Pos, int64(at+i))
			for b := range blocks {
				q.BlockIdx = append(q.BlockIdx, int32(b))
			}
			q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		}
		if err := c.observeBatch(ctx, l, q, blocks, track, int64(at)); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// observeQueries feeds the tracker with all queries of the capture, for expected attention.
func (c *compressor) observeQueries(l *layerInput, head int, track *importance.Tracker) error {
	group, dim := c.in.geo.GQARatio(), l.k.Dim()
	for first := 0; first < l.tokens; first += exactChunk {
		n := min(exactChunk, l.tokens-first)
		heads := make([]quant.Rows, group)
		finite := true
		for g := range heads {
			heads[g] = quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
			if err := c.in.src.ReadRowsF32(l.q, head*group+g, first, n, heads[g].Data); err != nil {
				return err
			}
			finite = finite && finiteValues(heads[g].Data)
		}
		if !finite {
			continue // queries that are not finite weigh nothing
		}
		if err := track.ObserveQueries(int64(first), heads...); err != nil {
			return err
		}
	}
	return nil
}

func (c *compressor) observeBatch(ctx context.Context, l *layerInput, q *backend.Queries,
	blocks []backend.Block, track *importance.Tracker, at int64) error {
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	lse := make([]float32, q.Len()*q.Group)
	if err := c.be.Attend(ctx, q, blocks, out, lse); err != nil {
		return err
	}
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}, Sum: make([]float32, l.tokens)}
	for _, b := range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+b.Rows)
	}
	if err := c.be.Relevance(ctx, q, lse, blocks, rel); err != nil {
		return err
	}
	return track.Observe(importance.Queries{First: at, N: q.Len(), Group: q.Group},
		importance.RowSums{Sum: rel.Sum})
}

// levelWeights scales the weights of a head to a root mean square of 1 over the tokens that are no
// sinks, so that weighing moves bytes between the head's tokens and not between heads, whose costs
// were measured.
func levelWeights(w []float32, sinks int) []float32 {
	var sum float64
	for _, v := range w[min(sinks, len(w)):] {
		sum += float64(v) * float64(v)
	}
	f := math.Sqrt(float64(len(w)-min(sinks, len(w))) / sum)
	if !(sum > 0) || math.IsInf(f, 0) {
		return w
	}
	out := make([]float32, len(w))
	for t := range w {
		out[t] = float32(min(float64(w[t])*f, math.MaxFloat32))
	}
	return out
}
