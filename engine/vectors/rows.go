// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// Reconstruct writes the row of an id as its codes give it with the least squared error: dst has Dim values.
// For Cosine it is the row of unit length that was coded.
//
// Errors: *IDError, quant.ErrShape.
func (x *Index) Reconstruct(id uint64, dst []float32) error {
	if len(dst) != x.Dim() {
		return fmt.Errorf("kvist/vectors: reconstruct: %d values, want %d: %w", len(dst), x.Dim(), quant.ErrShape)
	}
	s, row, err := x.find(id)
	if err != nil {
		return err
	}
	return x.decode(dst, s, row, 1/x.Slope)
}

// decode writes the mean and so much of a row's deviation from it. The factor keeps the length of the
// deviation: the codes stand for its direction, shrunk.
func (c *coding) decode(dst []float32, s *state, row int, share float32) error {
	y := make([]float32, c.comps())
	if err := c.deviation(y, s, row); err != nil {
		return err
	}
	scaleBy(y, share)
	c.restore(dst, y)
	for i, m := range c.Mean {
		dst[i] += m
	}
	return nil
}

// deviation writes the components of a row without the mean.
func (c *coding) deviation(y []float32, s *state, row int) error {
	if err := c.levels(y, s, row); err != nil {
		return err
	}
	g, tile := s.place(row)
	f := c.factor(g.factors, tile*trellis.TileRows+row%trellis.TileRows)
	for i, sd := range c.SD {
		y[i] *= sd * f
	}
	return nil
}

// Distance compares two rows by their codes, without the originals: an inner product or cosine, or a squared
// distance. Products of the deviations from the mean are multiplied by the slope of both sides, so that they
// are right on average. A row and itself are as alike as their lengths say.
//
// Errors: *IDError.
func (x *Index) Distance(a, b uint64) (float32, error) {
	m := x.state.Load().ids
	m.mu.RLock()
	s := x.state.Load()
	i, ok := m.find(s, a)
	j, also := m.find(s, b)
	m.mu.RUnlock()
	switch {
	case !ok:
		return 0, &IDError{ID: a}
	case !also:
		return 0, &IDError{ID: b}
	}
	c := x.coding
	ya, yb := make([]float32, c.comps()), make([]float32, c.comps())
	if err := c.deviation(ya, s, i); err != nil {
		return 0, err
	}
	if err := c.deviation(yb, s, j); err != nil {
		return 0, err
	}
	share := float64(c.Slope) * float64(c.Slope)
	if i == j {
		share = 1 // the factor keeps the length
	}
	dot := share * dot64(ya, yb)
	if c.params.Metric == L2 {
		// The mean cancels.
		return float32(max(0, dot64(ya, ya)+dot64(yb, yb)-2*dot)), nil
	}
	for k, m := range c.meanComponents() {
		dot += float64(m) * (float64(ya[k]) + float64(yb[k])) * float64(c.Slope)
	}
	return float32(dot + dot64(c.Mean, c.Mean)), nil
}

// meanComponents returns the components of the mean, nil without one.
func (c *coding) meanComponents() []float32 {
	if c.Mean == nil {
		return nil
	}
	out := make([]float32, c.comps())
	for k := range out {
		out[k] = float32(dot64(c.Mean, c.axis(k)))
	}
	return out
}

// Pair is two rows that are nearly the same.
type Pair struct {
	A, B   uint64 // A < B
	Cosine float32
}

// DuplicateOptions are the options of Duplicates.
type DuplicateOptions struct {
	Cosine    float32 // the least cosine of a pair; 0 means 0.95
	Neighbors int     // how many neighbours of every row are looked at; 0 means 8
	Max       int     // the most pairs; 0 means a million
	Source    Source  // originals, to take the cosine from; nil: it is estimated from codes
}

// Duplicates lists pairs of rows that are nearly the same, the most alike first: every row is compared with
// its nearest neighbours. It takes as long as a search with every row. With one bit a value the estimate of a
// cosine is off by 0.03; give the originals where that matters.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for L2, the error of ctx, those of the source.
func (x *Index) Duplicates(ctx context.Context, opts DuplicateOptions) ([]Pair, error) {
	if opts.Cosine == 0 {
		opts.Cosine = 0.95
	}
	if opts.Neighbors == 0 {
		opts.Neighbors = 8
	}
	if opts.Max == 0 {
		opts.Max = 1 << 20
	}
	if !(opts.Cosine > -1 && opts.Cosine <= 1) || opts.Neighbors < 1 || opts.Neighbors > most || opts.Max < 0 {
		return nil, fmt.Errorf("kvist/vectors: duplicates: cosine %g, neighbours %d, at most %d pairs: %w", opts.Cosine,
			opts.Neighbors, opts.Max, quant.ErrShape)
	}
	if x.params.Metric == L2 {
		return nil, fmt.Errorf("kvist/vectors: duplicates under l2: %w", quant.ErrUnsupported)
	}
	s := x.state.Load()
	const block = 64
	var mu sync.Mutex
	found := map[[2]uint64]float32{}
	n := (s.rows + block - 1) / block
	err := parallelN(ctx, n, workersOf(0), func() func(i int) error {
		return func(i int) error {
			pairs, err := x.duplicatesOf(ctx, s, i*block, min(s.rows, (i+1)*block), opts)
			mu.Lock()
			defer mu.Unlock()
			for _, p := range pairs {
				if key := [2]uint64{p.A, p.B}; found[key] < p.Cosine {
					found[key] = p.Cosine
				}
			}
			return err
		}
	})
	if err != nil {
		return nil, err
	}
	out := make([]Pair, 0, len(found))
	for key, c := range found {
		out = append(out, Pair{key[0], key[1], c})
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return cmp.Or(cmp.Compare(b.Cosine, a.Cosine), cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B))
	})
	return out[:min(len(out), opts.Max)], nil
}

// duplicatesOf looks for near duplicates of the rows [lo, hi).
func (x *Index) duplicatesOf(ctx context.Context, s *state, lo, hi int, opts DuplicateOptions) ([]Pair, error) {
	dim := x.Dim()
	q := quant.Rows{Dim: dim, Data: make([]float32, (hi-lo)*dim)}
	lengths := make([]float64, hi-lo)
	for i := range q.Len() {
		// Of the length of the original, so that a cosine is a product over two lengths.
		if err := x.decode(q.Row(i), s, lo+i, 1); err != nil {
			return nil, err
		}
		lengths[i] = dot64(q.Row(i), q.Row(i))
	}
	search := &search{Index: x, state: s, k: min(opts.Neighbors+1, s.rows), SearchOptions: SearchOptions{Workers: 1}}
	hits := make([][]Hit, q.Len())
	if err := search.run(ctx, quant.Rows{Dim: dim, Data: slices.Clone(q.Data)}, hits); err != nil {
		return nil, err
	}
	var out []Pair
	row, other := make([]float32, dim), make([]float32, dim)
	for i, list := range hits {
		a := s.id(lo + i)
		for _, h := range list {
			if h.ID == a {
				continue
			}
			p := Pair{min(a, h.ID), max(a, h.ID), 0}
			c, err := x.cosine(s, a, h, lengths[i], row, other, opts.Source)
			if err != nil {
				return nil, err
			}
			if p.Cosine = c; c >= opts.Cosine {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// cosine returns that of a row and a hit of it: by their originals, or from the score.
func (x *Index) cosine(s *state, a uint64, h Hit, length float64, row, other []float32, source Source) (float32, error) {
	if source != nil {
		for id, dst := range map[uint64][]float32{a: row, h.ID: other} {
			if err := source.Row(id, dst); err != nil {
				return 0, fmt.Errorf("kvist/vectors: duplicates: original of id %d: %w", id, err)
			}
			unit(dst)
		}
		return float32(dot64(row, other)), nil
	}
	if x.params.Metric == Cosine {
		return min(1, h.Score), nil
	}
	if err := x.decode(other, s, h.row, 1); err != nil {
		return 0, err
	}
	if length *= dot64(other, other); length == 0 {
		return 0, nil
	}
	return min(1, float32(float64(h.Score)/math.Sqrt(length))), nil
}

// levels writes the levels of a row's codes, head and tail.
func (c *coding) levels(dst []float32, s *state, row int) error {
	g, tile := s.place(row)
	head := c.parts[0].Dim()
	if err := c.scan.Row(dst[:head], c.parts[0], at(g.head, tile, c.parts[0].TileBytes()), row%trellis.TileRows); err != nil {
		return err
	}
	return c.scan.Row(dst[head:], c.parts[1], at(g.tail, tile, c.parts[1].TileBytes()), row%trellis.TileRows)
}
