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
	Profile string // as importance.Weighting.String writes it; "none" where it was off
	Heads   int    // heads that were to be weighed
	// Collapsed counts heads whose attention lay on so few tokens that relevance was not believed.
	Collapsed int
	// Skipped counts heads of which queries were left out, because one among them holds NaN or Inf, or
	// attends with scores that are no numbers.
	Skipped int
	// Unweighed counts heads whose tokens weigh the same although a profile was given: the profile asks
	// for queries, and there are none or none that counts.
	Unweighed int
	// Reason is why that is so of all heads; empty otherwise.
	Reason string
}

// Why no head was weighed.
const (
	noQueries   = "the capture holds no queries"
	badQueries  = "the queries that count all hold NaN or Inf, or stand beside some that do"
	someQueries = "the capture holds no queries of some layers, and of the others none that is a number"
)

func (u *ImportanceUse) add(o ImportanceUse) {
	u.Heads, u.Collapsed = u.Heads+o.Heads, u.Collapsed+o.Collapsed
	u.Skipped, u.Unweighed = u.Skipped+o.Skipped, u.Unweighed+o.Unweighed
}

// conclude says why no head was weighed, where that is so.
func (u *ImportanceUse) conclude() {
	if u.Unweighed < u.Heads || u.Heads == 0 {
		return
	}
	switch u.Skipped {
	case 0:
		u.Reason = noQueries
	case u.Heads:
		u.Reason = badQueries
	default:
		u.Reason = someQueries
	}
}

// headWeights are the weights of a layer's heads, of root mean square 1 over tokens that are no sinks:
// now [heads][tokens], and past [heads][pastOf] as they were known before the queries of the last
// quarter. Heads have nil where all tokens weigh the same.
type headWeights struct {
	now, past [][]float32
}

// level puts weights that are nil, or a layer's, on the planner's scale.
func (c *compressor) level(l *layerInput, now, past [][]float32) headWeights {
	w := headWeights{make([][]float32, l.heads), make([][]float32, l.heads)}
	for h := range l.heads {
		if now != nil && now[h] != nil {
			w.now[h] = levelWeights(now[h], c.cfg.Sinks)
			if past != nil {
				w.past[h] = levelWeights(past[h], c.cfg.Sinks)
			} else if n := pastOf(l); n > 0 {
				w.past[h] = levelWeights(now[h][:n], c.cfg.Sinks)
			}
		}
	}
	return w
}

// weigh runs the importance profile over a layer: [heads][tokens] weights, or nil, now and, if asked for, as
// of pastOf.
func (c *compressor) weigh(ctx context.Context, l *layerInput, withPast bool) (now, past [][]float32, use ImportanceUse, err error) {
	p, err := importance.ParseWeighting(c.cfg.Importance)
	if err != nil {
		return nil, nil, use, err
	}
	switch {
	case !l.hasV || p.String() == "none":
		return nil, nil, use, nil
	case (p.Uses(importance.SignalRelevance) || p.Uses(importance.SignalExpected)) && !l.hasQ:
		use.Heads, use.Unweighed = l.heads, l.heads
		return nil, nil, use, nil
	}
	if now, use, err = c.weighedLayer(ctx, l, p); err != nil {
		return nil, nil, use, err
	}
	past = make([][]float32, l.heads)
	if n := pastOf(l); n > 0 && withPast {
		short := *l
		short.tokens = n
		past, _, err = c.weighedLayer(ctx, &short, p)
	}
	return now, past, use, err
}

// weighLayer weighs the tokens of a layer, as if they were all there are.
func (c *compressor) weighLayer(ctx context.Context, l *layerInput, p importance.Weighting) (w [][]float32,
	use ImportanceUse, err error) {
	if l.hasQ && relevanceAlone(p) {
		return c.attended(ctx, l, p)
	}
	return c.weighHeads(ctx, l, p)
}

// weighHeads is weighLayer for any profile, head by head.
func (c *compressor) weighHeads(ctx context.Context, l *layerInput, p importance.Weighting) (w [][]float32,
	use ImportanceUse, err error) {
	w, use.Heads = make([][]float32, l.heads), l.heads
	for h := range w {
		x, err := c.weighHead(ctx, l, h, p, l.tokens)
		if err != nil {
			return nil, use, err
		}
		w[h] = x.w
		if x.collapsed {
			use.Collapsed++
		}
		if x.skipped {
			use.Skipped++
		}
		if x.w == nil {
			use.Unweighed++
		}
		if err := ctx.Err(); err != nil {
			return nil, use, err
		}
	}
	return w, use, nil
}

// weighed are the weights of a head.
type weighed struct {
	w []float32 // [tokens], or nil where the profile asks for queries and none is a number
	// As in ImportanceUse.
	collapsed, skipped bool
}

// weighHead weighs the first tokens of a head by what was known when they were all there were.
func (c *compressor) weighHead(ctx context.Context, l *layerInput, head int, p importance.Weighting,
	tokens int) (x weighed, err error) {
	up := &uploader{be: c.be}
	defer up.free()
	blocks, rows, err := c.exactHead(up, l, head, []int{0, tokens})
	if err != nil {
		return x, err
	}
	track, err := importance.NewTracker(p, l.k.Dim(), l.v.Dim(), c.in.geo.Rope)
	if err != nil {
		return x, err
	}
	var surprisal []float32
	if p.Uses(importance.SignalSurprisal) && c.in.src.HasSurprisal(false) {
		surprisal = make([]float32, tokens)
		if err := c.in.src.ReadSurprisal(false, 0, surprisal); err != nil {
			return x, err
		}
	}
	for first := 0; first < tokens; first += exactChunk {
		n := min(exactChunk, tokens-first)
		part := surprisal
		if surprisal != nil {
			part = surprisal[first : first+n]
		}
		if err := track.Append(rows.keys[first/exactChunk], rows.values[first/exactChunk], part); err != nil {
			return x, err
		}
	}
	if x.skipped, err = c.observeAll(ctx, l, head, blocks, track, p, tokens); err != nil {
		return x, err
	}
	if tokens > 0 && !track.Observed() {
		return x, nil
	}
	keys := quant.Rows{Dim: l.k.Dim()}
	for _, k := range rows.keys {
		keys.Data = append(keys.Data, k.Data...)
	}
	x.w = make([]float32, tokens)
	conc, err := track.Weights(x.w, keys)
	x.collapsed = conc.Collapsed
	return x, err
}

// observeAll feeds the tracker with what the profile asks of the capture's queries.
func (c *compressor) observeAll(ctx context.Context, l *layerInput, head int, blocks []backend.Block,
	track *importance.Tracker, p importance.Weighting, tokens int) (skipped bool, err error) {
	if p.Uses(importance.SignalRelevance) {
		if skipped, err = c.observe(ctx, l, head, blocks, track, p, tokens); err != nil {
			return skipped, err
		}
	}
	if p.Uses(importance.SignalExpected) {
		more, err := c.observeQueries(l, head, track, tokens)
		return skipped || more, err
	}
	return skipped, nil
}

// standInDim is the head_dim_v of rows that stand in for V.
const standInDim = 8

// observedFrom returns the first query that a profile looks at, and the queries of a window. The last
// window ends with the last query; where all queries count there are as many windows before it as
// have not faded to a quarter.
func observedFrom(p importance.Weighting, tokens int) (first, window int) {
	window = p.Attention.Window
	if window == 0 {
		window = 64
	}
	need := tokens
	if p.Attention.Mix == 0 {
		need = window
	} else if p.Attention.HalfLife > 0 {
		need = window + int(math.Ceil(2*p.Attention.HalfLife))
	}
	return max(0, tokens-(need+window-1)/window*window), window
}

// observe feeds the tracker with the attention of the capture's last queries, but for windows that hold one
// that is not finite.
func (c *compressor) observe(ctx context.Context, l *layerInput, head int, blocks []backend.Block,
	track *importance.Tracker, p importance.Weighting, tokens int) (skipped bool, err error) {
	// Only the log-sum-exp is wanted: V is stood in for by a few zeros a row.
	up := &uploader{be: c.be}
	defer up.free()
	blocks = slices.Clone(blocks)
	for i := range blocks {
		zeros, err := up.alloc(int64(blocks[i].Rows) * 2 * standInDim)
		if err != nil {
			return skipped, err
		}
		blocks[i].V = backend.Side{Coding: quant.Coding{Format: quant.F16}, Data: zeros}
	}
	for _, span := range observed(p, tokens) {
		at, n := span[0], span[1]
		q, err := c.windowOf(l, head, at, n, len(blocks))
		if err != nil {
			return skipped, err
		}
		ok := finiteValues(q.Q)
		if ok {
			if ok, err = c.observeBatch(ctx, tokens, q, blocks, track, int64(at)); err != nil {
				return skipped, err
			}
		}
		if !ok {
			skipped = true
			if err := track.Skip(int64(at), n); err != nil {
				return skipped, err
			}
		}
	}
	return skipped, nil
}

// windowOf reads the queries [at, at+n) of a head, which attend to nb blocks.
func (c *compressor) windowOf(l *layerInput, head, at, n, nb int) (*backend.Queries, error) {
	group, dim := c.in.geo.GQARatio(), l.k.Dim()
	q := &backend.Queries{Group: group, HeadDim: dim, HeadDimV: standInDim, BlockPtr: []int32{0},
		Scale: float32(1 / math.Sqrt(float64(dim))), Q: make([]float32, n*group*dim)}
	row := make([]float32, n*dim)
	for g := range group {
		if err := c.in.src.ReadRowsF32(l.q, head*group+g, at, n, row); err != nil {
			return nil, err
		}
		for i := range n {
			copy(q.Q[(i*group+g)*dim:], row[i*dim:(i+1)*dim])
		}
	}
	for i := range n {
		q.Pos = append(q.Pos, int64(at+i))
		for b := range nb {
			q.BlockIdx = append(q.BlockIdx, int32(b))
		}
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	return q, nil
}

// expectedWindow is the queries that are left out of expected attention together.
const expectedWindow = 64

// observeQueries feeds the tracker with all queries of the capture, for expected attention, but for
// windows that hold one that is not finite.
func (c *compressor) observeQueries(l *layerInput, head int, track *importance.Tracker,
	tokens int) (skipped bool, err error) {
	group, dim := c.in.geo.GQARatio(), l.k.Dim()
	for first := 0; first < tokens; first += expectedWindow {
		n := min(expectedWindow, tokens-first)
		heads := make([]quant.Rows, group)
		finite := true
		for g := range heads {
			heads[g] = quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
			if err := c.in.src.ReadRowsF32(l.q, head*group+g, first, n, heads[g].Data); err != nil {
				return skipped, err
			}
			finite = finite && finiteValues(heads[g].Data)
		}
		if !finite {
			skipped = true
			continue // queries that are not finite weigh nothing
		}
		if err := track.ObserveQueries(int64(first), heads...); err != nil {
			return skipped, err
		}
	}
	return skipped, nil
}

// observeBatch hands the attention of a batch of queries to the tracker; false where it is no number:
// scores can be beyond the range of float32 though queries and keys are not.
func (c *compressor) observeBatch(ctx context.Context, tokens int, q *backend.Queries,
	blocks []backend.Block, track *importance.Tracker, at int64) (bool, error) {
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	lse := make([]float32, q.Len()*q.Group)
	if err := c.be.Attend(ctx, q, blocks, out, lse); err != nil {
		return false, err
	}
	if !finiteValues(lse) {
		return false, nil
	}
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}, Sum: make([]float32, tokens)}
	for _, b := range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+b.Rows)
	}
	if err := c.be.Relevance(ctx, q, lse, blocks, rel); err != nil {
		return false, err
	}
	if !finiteValues(rel.Sum) {
		return false, nil
	}
	return true, track.Observe(importance.Queries{First: at, N: q.Len(), Group: q.Group},
		importance.RowSums{Sum: rel.Sum})
}

// levelWeights scales the weights of a head to a root mean square of 1 over the tokens that are no
// sinks, so that weighing moves bytes between the head's tokens and not between heads, whose costs
// were measured.
func levelWeights(w []float32, sinks int) []float32 {
	f := 1 / rootMeanSquare(w[min(sinks, len(w)):])
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return w
	}
	out := make([]float32, len(w))
	for t := range w {
		out[t] = float32(min(float64(w[t])*f, math.MaxFloat32))
	}
	return out
}

// rootMeanSquare of nothing is 0.
func rootMeanSquare(w []float32) float64 {
	return math.Sqrt(energyOf(w) / float64(max(1, len(w))))
}
