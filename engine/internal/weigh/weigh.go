// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/memo"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// Use says what became of the importance profile.
type Use struct {
	Profile string // as importance.Weighting.String writes it; "none" where it was off
	Heads   int    // heads that were to be weighed
	// Collapsed counts heads whose attention lay on so few tokens that relevance was not believed.
	Collapsed int
	// Skipped counts heads of which queries were left out, because one among them holds NaN or Inf, or
	// attends with scores that are no numbers.
	Skipped int
	// Unweighed counts heads whose tokens Weigh the same although a profile was given: the profile asks
	// for queries, and there are none or none that counts.
	Unweighed int
	// Expected counts heads whose tokens were weighed by the attention that is expected of queries as the
	// profile knows them, because the capture holds none.
	Expected int
	// Reason is why that is so of all heads; empty otherwise.
	Reason string
}

// Why no head was weighed.
const (
	noQueries   = "the capture holds no queries"
	badQueries  = "the queries that count all hold NaN or Inf, or stand beside some that do"
	someQueries = "the capture holds no queries of some layers, and of the others none that is a number"
)

func (u *Use) Add(o Use) {
	u.Heads, u.Collapsed = u.Heads+o.Heads, u.Collapsed+o.Collapsed
	u.Skipped, u.Unweighed = u.Skipped+o.Skipped, u.Unweighed+o.Unweighed
	u.Expected += o.Expected
}

// Conclude says why no head was weighed, where that is so.
func (u *Use) Conclude() {
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

// Weigher weighs the tokens of layers through a backend.
type Weigher struct {
	Backend backend.Backend
	Geo     quant.Geometry
	Sinks   int    // tokens that are kept finely whatever they Weigh
	Recipe  string // as importance.ParseWeighting reads it
	Memo    *memo.Memo
	// surprisal reads -log p of tokens; nil where it is not known.
	Surprisal func(first int, dst []float32) error
	// Queries returns what is known of the queries of a layer's query head, for captures that hold none; nil
	// where nothing is known.
	Queries func(layer, head int) importance.QueryMoments
}

// weighKey is all that weights depend on, beside capture and backend.
type weighKey struct {
	layer, tokens int
	recipe        string
}

// layerWeight is the weights of a layer and how they came about.
type layerWeight struct {
	w   [][]float32 // [heads][tokens]
	use Use
}

// weighedLayer is weighLayer, or what it gave before.
func (c *Weigher) weighedLayer(ctx context.Context, l *input.Layer, p importance.Weighting) ([][]float32,
	Use, error) {
	got, err := memo.Of(c.Memo, weighKey{l.Index, l.Tokens, p.String()}, func() (x layerWeight, err error) {
		x.w, x.use, err = c.weighLayer(ctx, l, p)
		return x, err
	})
	return got.w, got.use, err
}

// Weights are the weights of a layer's heads, of root mean square 1 over tokens that are no sinks:
// now [heads][tokens], and past [heads][pastOf] as they were known before the queries of the last
// quarter. Heads have nil where all tokens Weigh the same.
type Weights struct {
	Now, Past [][]float32
}

// Level puts weights that are nil, or a layer's, on the planner's scale.
func (c *Weigher) Level(l *input.Layer, now, past [][]float32) Weights {
	w := Weights{make([][]float32, l.Heads), make([][]float32, l.Heads)}
	for h := range l.Heads {
		if now != nil && now[h] != nil {
			w.Now[h] = LevelHead(now[h], c.apart(l, l.Tokens))
			n := input.FutureFrom(&c.Geo, l)
			if past != nil {
				w.Past[h] = LevelHead(past[h], c.apart(l, n))
			} else if n > 0 {
				w.Past[h] = LevelHead(now[h][:n], c.apart(l, n))
			}
		}
	}
	return w
}

// Weigh runs the importance profile over a layer: [heads][tokens] weights, or nil, now and, if asked for, as
// of pastOf.
func (c *Weigher) Weigh(ctx context.Context, l *input.Layer, withPast bool) (now, past [][]float32, use Use, err error) {
	p, err := importance.ParseWeighting(c.Recipe)
	if err != nil {
		return nil, nil, use, err
	}
	switch {
	case !l.HasV || p.String() == "none":
		return nil, nil, use, nil
	case (p.Relevance != 0 || p.Expected != 0) && !l.HasQ && c.Queries == nil:
		use.Heads, use.Unweighed = l.Heads, l.Heads
		return nil, nil, use, nil
	}
	if now, use, err = c.weighedLayer(ctx, l, p); err != nil {
		return nil, nil, use, err
	}
	past = make([][]float32, l.Heads)
	if n := input.FutureFrom(&c.Geo, l); n > 0 && withPast {
		short := *l
		short.Tokens = n
		past, _, err = c.weighedLayer(ctx, &short, p)
	}
	return now, past, use, err
}

// weighLayer weighs the tokens of a layer, as if they were all there are.
func (c *Weigher) weighLayer(ctx context.Context, l *input.Layer, p importance.Weighting) (w [][]float32,
	use Use, err error) {
	p = c.ofLayer(l, p)
	if !l.HasQ && (p.Relevance != 0 || p.Expected != 0) {
		// What attention is expected takes the place of what attention was.
		p.Expected, p.Relevance = cmp.Or(p.Expected, p.Relevance), 0
	}
	if l.HasQ && relevanceAlone(p) {
		return c.attended(ctx, l, p)
	}
	return c.weighHeads(ctx, l, p)
}

// weighHeads is weighLayer for any profile, head by head.
func (c *Weigher) weighHeads(ctx context.Context, l *input.Layer, p importance.Weighting) (w [][]float32,
	use Use, err error) {
	w, use.Heads = make([][]float32, l.Heads), l.Heads
	for h := range w {
		x, err := c.weighHead(ctx, l, h, p, l.Tokens)
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
		if !l.HasQ && p.Expected != 0 {
			use.Expected++
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
	// As in Use.
	collapsed, skipped bool
}

// weighHead weighs the first tokens of a head by what was known when they were all there were.
func (c *Weigher) weighHead(ctx context.Context, l *input.Layer, head int, p importance.Weighting,
	tokens int) (x weighed, err error) {
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	blocks, rows, err := input.LoadHead(up, l, head, []int{0, tokens}, false)
	if err != nil {
		return x, err
	}
	p.Scale, p.Softcap = c.Geo.ScaleOf(l.Number), c.Geo.SoftcapOf(l.Number)
	track, err := importance.NewTracker(p, l.K.Dim(), l.V.Dim(), c.Geo.RopeOf(l.Number))
	if err != nil {
		return x, err
	}
	var surprisal []float32
	if p.Surprisal != 0 && c.Surprisal != nil {
		surprisal = make([]float32, tokens)
		if err := c.Surprisal(0, surprisal); err != nil {
			return x, err
		}
	}
	for first := 0; first < tokens; first += input.ChunkRows {
		n := min(input.ChunkRows, tokens-first)
		part := surprisal
		if surprisal != nil {
			part = surprisal[first : first+n]
		}
		if err := track.Append(rows.Keys[first/input.ChunkRows], rows.Values[first/input.ChunkRows], part); err != nil {
			return x, err
		}
	}
	if x.skipped, err = c.observeAll(ctx, l, head, blocks, track, p, tokens); err != nil {
		return x, err
	}
	if tokens > 0 && !track.Observed() {
		return x, nil
	}
	keys := quant.Rows{Dim: l.K.Dim()}
	for _, k := range rows.Keys {
		keys.Data = append(keys.Data, k.Data...)
	}
	x.w = make([]float32, tokens)
	conc, err := track.Weights(x.w, keys)
	x.collapsed = conc.Collapsed
	return x, err
}

// observeAll feeds the tracker with what the profile asks of the capture's queries.
func (c *Weigher) observeAll(ctx context.Context, l *input.Layer, head int, blocks []backend.Block,
	track *importance.Tracker, p importance.Weighting, tokens int) (skipped bool, err error) {
	if p.Relevance != 0 {
		if skipped, err = c.observe(ctx, l, head, blocks, track, p, tokens); err != nil {
			return skipped, err
		}
	}
	if p.Expected != 0 && !l.HasQ {
		return false, c.expect(l, head, track)
	}
	if p.Expected != 0 {
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
func (c *Weigher) observe(ctx context.Context, l *input.Layer, head int, blocks []backend.Block,
	track *importance.Tracker, p importance.Weighting, tokens int) (skipped bool, err error) {
	// Only the log-sum-exp is wanted: V is stood in for by a few zeros a row.
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	blocks = slices.Clone(blocks)
	for i := range blocks {
		zeros, err := up.Alloc(int64(blocks[i].Rows) * 2 * standInDim)
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
		ok := input.Finite(q.Q)
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
func (c *Weigher) windowOf(l *input.Layer, head, at, n, nb int) (*backend.Queries, error) {
	group, dim := c.Geo.GQARatio(), l.K.Dim()
	q := input.Attend(&backend.Queries{Group: group, HeadDim: dim, HeadDimV: standInDim, BlockPtr: []int32{0},
		Q: make([]float32, n*group*dim)}, &c.Geo, l.Number)
	row := make([]float32, n*dim)
	for g := range group {
		if err := l.Q.ReadF32(head*group+g, at, n, row); err != nil {
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

// observeBatch hands the attention of a batch of queries to the tracker; false where it is no number:
// scores can be beyond the range of float32 though queries and keys are not.
func (c *Weigher) observeBatch(ctx context.Context, tokens int, q *backend.Queries,
	blocks []backend.Block, track *importance.Tracker, at int64) (bool, error) {
	out := make([]float32, q.Len()*q.Group*q.HeadDimV)
	lse := make([]float32, q.Len()*q.Group)
	if err := backend.AttendBlocks(ctx, c.Backend, q, nil, blocks, backend.Attention{Out: out, LSE: lse}); err != nil {
		return false, err
	}
	if !input.Finite(lse) {
		return false, nil
	}
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0}, Sum: make([]float32, tokens)}
	for _, b := range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+b.Rows)
	}
	if err := backend.RelevanceBlocks(ctx, c.Backend, q, nil, lse, blocks, rel); err != nil {
		return false, err
	}
	if !input.Finite(rel.Sum) {
		return false, nil
	}
	return true, track.Observe(importance.Queries{First: at, N: q.Len(), Group: q.Group},
		importance.RowSums{Sum: rel.Sum})
}

// LevelHead scales the weights of a head to a root mean square of 1 over the tokens that are no
// sinks, so that weighing moves bytes between the head's tokens and not between heads, whose costs
// were measured.
func LevelHead(w []float32, sinks int) []float32 {
	f := 1 / RootMeanSquare(w[min(sinks, len(w)):])
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return w
	}
	out := make([]float32, len(w))
	for t := range w {
		out[t] = float32(min(float64(w[t])*f, math.MaxFloat32))
	}
	return out
}
