// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/cpu/scan"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// Search returns, for every query, the k rows that are most alike, the best first; fewer where the index or
// the filter does not have as many. Rows of equal score are in the order of their ids.
//
// queries: [queries, dim], finite. Rows of int8 sums find 4k candidates and at least 32; these are compared
// in float32 with what their codes stand for.
//
// Errors: quant.ErrShape, quant.ErrRange, quant.ErrClosed, the error of ctx, those of the source.
func (x *Index) Search(ctx context.Context, queries quant.Rows, k int, opts SearchOptions) ([][]Hit, error) {
	if x.closed.Load() {
		return nil, fmt.Errorf("kvist/vectors: search: %w", quant.ErrClosed)
	}
	if queries.Dim != x.Dim() || queries.Validate() != nil {
		return nil, fmt.Errorf("kvist/vectors: search: %d values in rows of %d, the index has rows of %d: %w",
			len(queries.Data), queries.Dim, x.Dim(), quant.ErrShape)
	}
	if k < 1 || k > most || opts.Candidates < 0 || opts.Candidates > most || opts.Workers < 0 ||
		opts.Rescore.Factor < 0 || opts.Rescore.Factor > most {
		return nil, fmt.Errorf("kvist/vectors: search: k %d, candidates %d, workers %d, factor %d: %w", k,
			opts.Candidates, opts.Workers, opts.Rescore.Factor, quant.ErrShape)
	}
	if err := checkFinite("search", queries); err != nil {
		return nil, err
	}
	s := &search{Index: x, SearchOptions: opts, state: x.state.Load(), k: k}
	if s.Rescore.Source != nil && s.Rescore.Factor == 0 {
		s.Rescore.Factor = 4
	}
	out := make([][]Hit, queries.Len())
	if s.state.rows == 0 {
		return out, ctx.Err()
	}
	// A batch of queries shares the work of reading the codes.
	const batch = 64
	n := (queries.Len() + batch - 1) / batch
	if workers := s.workers(); n < workers {
		n = min(workers, queries.Len())
	}
	return out, parallelN(ctx, n, s.workers(), func() func(i int) error {
		return func(i int) error {
			lo, hi := i*queries.Len()/n, (i+1)*queries.Len()/n
			return s.run(ctx, quant.Rows{Dim: queries.Dim, Data: queries.Data[lo*queries.Dim : hi*queries.Dim]}, out[lo:hi])
		}
	})
}

// search is one call of Search.
type search struct {
	*Index
	SearchOptions
	state *state
	k     int
}

// candidate is a row with its key: the larger, the better.
type candidate struct {
	key float32
	row int
}

// better orders candidates, the best first.
func better(a, b candidate) int {
	if c := cmp.Compare(b.key, a.key); c != 0 {
		return c
	}
	return cmp.Compare(a.row, b.row)
}

// query is one query of a batch.
type query struct {
	x, y   []float32 // the row as it came, or of unit length, and its components
	offset float32   // what the mean contributes to every key
	norm   float32   // |x|^2, for L2
	parts  [2]scan.Query
	top    top
}

// batch is the work space of a batch of queries.
type batch struct {
	queries []query
	scores  []float32
	masks   []uint16
	parts   [2][]*scan.Query
	y       []float32
	row     []float32
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// run searches for a batch of queries.
func (s *search) run(ctx context.Context, rows quant.Rows, out [][]Hit) error {
	w := batches.Get().(*batch)
	defer batches.Put(w)
	if err := s.prepare(w, rows); err != nil {
		return err
	}
	tail := s.parts[1].Dim() > 0
	first := tail && !s.Exhaustive
	want := s.finalists()
	if first {
		want = s.candidates(want)
	}
	for i := range w.queries {
		w.queries[i].top.reset(want)
	}
	for i := range s.state.views() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.scan(w, i, first); err != nil {
			return err
		}
	}
	for i := range w.queries {
		q := &w.queries[i]
		found := q.top.take()
		if first {
			if err := s.complete(w, q, found); err != nil {
				return err
			}
			n := min(len(found), s.finalists())
			selectBest(found, n)
			found = found[:n]
		}
		hits, err := s.finish(w, q, found)
		if err != nil {
			return err
		}
		out[i] = hits
	}
	return nil
}

// finalists returns the number of rows that are compared in float32.
func (s *search) finalists() int {
	n := max(4*s.k, 32)
	if s.Rescore.Source != nil {
		n = max(n, s.k*s.Rescore.Factor)
	}
	return min(n, s.state.rows)
}

func (s *search) candidates(finalists int) int {
	n := s.Candidates
	if n == 0 {
		n = max(200, 20*s.k)
		if s.Rescore.Source != nil {
			n *= 3 // what the heads miss, originals cannot bring back
		}
	}
	return min(max(n, finalists), s.state.rows)
}

func (s *search) workers() int { return workersOf(s.Workers) }

// prepare makes the queries of a batch.
func (s *search) prepare(w *batch, rows quant.Rows) error {
	c, n := s.coding, rows.Len()
	w.queries = grown(w.queries, n)
	w.y = resize(w.y, n*c.comps())
	w.parts[0], w.parts[1] = w.parts[0][:0], w.parts[1][:0]
	x := rows.Data
	if c.params.Metric == Cosine {
		x = slices.Clone(x)
	}
	factor := c.Slope
	if c.params.Metric == L2 {
		factor *= 2
	}
	for i := range w.queries {
		q := &w.queries[i]
		q.x = x[i*c.Dim : (i+1)*c.Dim]
		if c.params.Metric == Cosine {
			unit(q.x)
		}
	}
	if err := c.components(w.y, x, n); err != nil {
		return err
	}
	for i := range w.queries {
		q := &w.queries[i]
		q.y = w.y[i*c.comps() : (i+1)*c.comps()]
		for k, sd := range c.SD {
			q.y[k] *= sd * factor
		}
		q.offset, q.norm = 0, 0
		if c.Mean != nil {
			q.offset = float32(dot64(q.x, c.Mean))
		}
		if c.params.Metric == L2 {
			q.offset *= 2
			q.norm = float32(dot64(q.x, q.x))
		}
		head := c.parts[0].Dim()
		for p, y := range [...][]float32{q.y[:head], q.y[head:]} {
			if err := c.parts[p].Prepare(&q.parts[p], y); err != nil {
				return err
			}
			w.parts[p] = append(w.parts[p], &q.parts[p])
		}
	}
	return nil
}

// scan compares the rows of a segment.
func (s *search) scan(w *batch, i int, first bool) error {
	v, rows := s.state.view(s.coding, i)
	firstRow := i * segmentRows
	if i == len(s.state.segments) {
		firstRow = s.state.tiles() * trellis.TileRows
	}
	all := (rows + trellis.TileRows - 1) / trellis.TileRows * trellis.TileRows
	n := len(w.queries)
	w.masks = resize(w.masks, all/trellis.TileRows)
	parts := 1
	if !first && s.parts[1].Dim() > 0 {
		parts = 2
	}
	w.scores = resize(w.scores, parts*n*all)
	for p, tiles := range [][]byte{v.head, v.tail}[:parts] {
		if err := s.Index.scan.Scores(w.scores[p*n*all:(p+1)*n*all], s.parts[p], tiles, w.parts[p]); err != nil {
			return err
		}
	}
	f := scan.Factors{Codes: v.factors, Table: s.table}
	for k := range w.queries {
		scores := w.scores[k*all : (k+1)*all]
		if parts == 2 {
			for r, t := range w.scores[(n+k)*all : (n+k+1)*all] {
				scores[r] += t
			}
		}
		top := &w.queries[k].top
		// In blocks, because the threshold rises.
		const block = 32
		for t := 0; t < len(w.masks); t += block {
			end := min(len(w.masks), t+block)
			lo, hi := t*trellis.TileRows, end*trellis.TileRows
			part := scan.Factors{Codes: f.Codes[lo*s.factorBytes() : hi*s.factorBytes()], Table: f.Table}
			var norms []float32
			if v.norms != nil {
				norms = v.norms[lo:hi]
			}
			if err := s.Index.scan.Finish(w.masks[t:end], scores[lo:hi], part, norms, top.threshold); err != nil {
				return err
			}
			for i, mask := range w.masks[t:end] {
				if mask != 0 {
					s.keep(top, scores, mask, t+i, rows, firstRow, &v)
				}
			}
		}
	}
	return nil
}

// keep adds rows of a tile to the best.
func (s *search) keep(top *top, scores []float32, mask uint16, t, rows, first int, v *segment) {
	for ; mask != 0; mask &= mask - 1 {
		i := trellis.TileRows*t + bits.TrailingZeros16(mask)
		if i >= rows {
			return
		}
		if s.Filter != nil {
			id := uint64(first + i)
			if v.ids != nil {
				id = v.ids[i]
			}
			if !s.Filter(id) {
				continue
			}
		}
		top.add(candidate{scores[i], first + i})
	}
}

// complete adds what the tails contribute to the keys of rows whose heads were compared.
func (s *search) complete(w *batch, q *query, found []candidate) error {
	w.scores = resize(w.scores, trellis.TileRows)
	for i := range found {
		c := &found[i]
		g, tile := s.state.place(c.row)
		t := at(g.tail, tile, s.parts[1].TileBytes())
		if err := s.Index.scan.Scores(w.scores, s.parts[1], t, []*scan.Query{&q.parts[1]}); err != nil {
			return err
		}
		r := c.row % trellis.TileRows
		c.key += w.scores[r] * s.factor(g.factors, tile*trellis.TileRows+r)
	}
	return nil
}

// finish compares the last candidates in float32, and by their originals if there is a source.
func (s *search) finish(w *batch, q *query, found []candidate) ([]Hit, error) {
	w.row = resize(w.row, s.comps())
	for i := range found {
		c := &found[i]
		if err := s.levels(w.row, s.state, c.row); err != nil {
			return nil, err
		}
		g, tile := s.state.place(c.row)
		n := tile*trellis.TileRows + c.row%trellis.TileRows
		c.key = float32(dot64(q.y, w.row))*s.factor(g.factors, n) + q.offset
		if g.norms != nil {
			c.key -= g.norms[n]
		}
	}
	slices.SortFunc(found, better)
	if s.Rescore.Source != nil {
		if err := s.rescore(q, found[:min(len(found), s.k*s.Rescore.Factor)]); err != nil {
			return nil, err
		}
		found = found[:min(len(found), s.k*s.Rescore.Factor)]
	}
	hits := make([]Hit, len(found))
	for i, c := range found {
		hits[i] = Hit{s.state.id(c.row), s.score(q, c.key), c.row}
	}
	slices.SortStableFunc(hits, func(a, b Hit) int {
		c := cmp.Compare(b.Score, a.Score)
		if s.params.Metric == L2 {
			c = -c
		}
		if c == 0 {
			c = cmp.Compare(a.ID, b.ID)
		}
		return c
	})
	return hits[:min(s.k, len(hits))], nil
}

// score turns a key into a score.
func (s *search) score(q *query, key float32) float32 {
	if s.params.Metric == L2 {
		return max(0, q.norm-key)
	}
	return key
}

// rescore compares originals.
func (s *search) rescore(q *query, found []candidate) error {
	row := make([]float32, s.Dim())
	for i := range found {
		c := &found[i]
		id := s.state.id(c.row)
		err := s.Rescore.Source.Row(id, row)
		if err == nil {
			err = checkFinite("original", quant.Rows{Dim: s.Dim(), Data: row})
		}
		if err != nil {
			return fmt.Errorf("kvist/vectors: search: original of id %d: %w", id, err)
		}
		switch s.params.Metric {
		case Cosine:
			unit(row)
		case L2:
			for j, v := range q.x {
				row[j] -= v
			}
			c.key = q.norm - float32(dot64(row, row))
			continue
		}
		c.key = float32(dot64(q.x, row))
	}
	return nil
}
