// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// found holds the unpacked rows and their products by package quant.
type found struct {
	rows     [][]float32 // by number
	products [][]float64 // [queries][numbers]
}

// drawSearch packs sides of mixed codings. Row numbers are consecutive from 7.
func drawSearch(t *testing.T, b backend.Backend, rng *rand.Rand, dim, queries, k int, sizes []int,
	codings []quant.Coding) (*backend.Search, *found) {
	s := &backend.Search{Dim: dim, TopK: k, Q: make([]float32, queries*dim)}
	for i := range s.Q {
		s.Q[i] = float32(rng.NormFloat64())
	}
	f := &found{rows: make([][]float32, 7)}
	for i, n := range sizes {
		c := codings[i%len(codings)]
		x := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
		for j := range x.Data {
			x.Data[j] = float32(rng.NormFloat64())
		}
		packed := make([]byte, c.PackedBytes(n, dim))
		seed := uint64(3 + i%2)
		require.NoError(t, quant.Encode(packed, c, x, seed))
		require.NoError(t, quant.Decode(x, c, packed, seed))
		buf, err := b.Alloc(int64(len(packed)))
		require.NoError(t, err)
		t.Cleanup(func() { _ = buf.Free() })
		require.NoError(t, buf.Upload(0, packed))
		s.Rows = append(s.Rows, backend.SearchRows{Rows: n, First: int64(len(f.rows)),
			Side: backend.Side{Coding: c, Seed: seed, Data: backend.Span{Buf: buf, Len: int64(len(packed))}}})
		for r := range n {
			f.rows = append(f.rows, x.Row(r))
		}
	}
	for q := range queries {
		p := make([]float64, len(f.rows))
		for r, row := range f.rows {
			for d, v := range row {
				p[r] += float64(v) * float64(s.Q[q*dim+d])
			}
		}
		f.products = append(f.products, p)
	}
	return s, f
}

// slackOf bounds the rounding of a float32 inner product of dim terms, with rows that were rotated
// in float32. Every operation is off by at most 2^-24 of |q||x|; the sum has dim operations and the
// rotation 2 log2(dim) + 2.
func (f *found) slackOf(q []float32, row int64) float64 {
	var qq, xx float64
	for d, v := range f.rows[row] {
		qq, xx = qq+float64(q[d])*float64(q[d]), xx+float64(v)*float64(v)
	}
	dim := float64(len(q))
	return math.Sqrt(qq*xx) * (dim + 2*math.Log2(dim) + 4) * 0x1p-24
}

// check compares hits with the reference: products within rounding, in order, no row twice, and no
// row left out that is clearly better than the last hit.
func (f *found) check(t *testing.T, s *backend.Search, out []backend.Hit) {
	for q := range s.Len() {
		query, hits := s.Q[q*s.Dim:(q+1)*s.Dim], out[q*s.TopK:(q+1)*s.TopK]
		want := min(s.TopK, len(f.rows)-7)
		seen := map[int64]bool{}
		for i, h := range hits {
			if i >= want {
				require.Equal(t, int64(backend.NoHit), h.Row)
				continue
			}
			require.GreaterOrEqual(t, h.Row, int64(7))
			require.Less(t, h.Row, int64(len(f.rows)))
			require.False(t, seen[h.Row], "row %d twice", h.Row)
			seen[h.Row] = true
			require.InDelta(t, f.products[q][h.Row], float64(h.Product), f.slackOf(query, h.Row))
		}
		require.True(t, slices.IsSortedFunc(hits, backend.CompareHits), "%v", hits)
		if want == 0 {
			continue
		}
		last := hits[want-1]
		for r := int64(7); r < int64(len(f.rows)); r++ {
			if !seen[r] {
				require.LessOrEqual(t, f.products[q][r],
					float64(last.Product)+f.slackOf(query, r)+f.slackOf(query, last.Row), "row %d was left out", r)
			}
		}
	}
}

// searchCodings returns the codings that a backend searches at a dim.
func searchCodings(b backend.Backend, dim int) (list []quant.Coding) {
	for _, f := range []quant.Format{quant.F32, quant.F16, quant.BF16, quant.U8, quant.LM1, quant.LM2, quant.LM3,
		quant.LM4, quant.GGMLQ8_0, quant.GGMLQ4_0, quant.TQMSE2, quant.TQMSE4} {
		for _, scale := range []quant.ScaleForm{quant.ScaleF16, quant.ScaleLog8} {
			c := quant.Coding{Format: f, Scale: scale}
			if c.Validate() == nil && c.CheckDim(dim) == nil && b.Supports(backend.OpDecode, c, dim) {
				list = append(list, c)
			}
		}
	}
	return list
}

func testSearch(t *testing.T, b backend.Backend) {
	searcher, ok := b.(backend.Searcher)
	if !ok {
		t.Skip("the backend does not search")
	}
	rng := rand.New(rand.NewPCG(8, 8))
	for _, dim := range []int{8, 12, 40, 64, 384} {
		codings := searchCodings(b, dim)
		for i, c := range codings {
			queries, k := []int{1, 3, 5}[i%3], []int{1, 10, 64}[(i/3)%3]
			t.Run(fmt.Sprintf("dim=%d/coding=%s/queries=%d/k=%d", dim, c, queries, k), func(t *testing.T) {
				s, f := drawSearch(t, b, rng, dim, queries, k, []int{0, 1, 33, 64, 31}, []quant.Coding{c})
				out := make([]backend.Hit, queries*k)
				require.NoError(t, searcher.Search(context.Background(), s, out))
				f.check(t, s, out)
				again := make([]backend.Hit, len(out))
				require.NoError(t, searcher.Search(context.Background(), s, again))
				require.Equal(t, out, again)
			})
		}
		t.Run(fmt.Sprintf("dim=%d/mixed", dim), func(t *testing.T) {
			s, f := drawSearch(t, b, rng, dim, 2, 300, []int{100, 7, 64, 90, 3, 40}, codings)
			out := make([]backend.Hit, 2*300)
			require.NoError(t, searcher.Search(context.Background(), s, out))
			f.check(t, s, out)
		})
	}
	t.Run("long", func(t *testing.T) { // more than one round of selection
		c := quant.Coding{Format: quant.LM2, Rule: quant.InnerProduct}
		s, f := drawSearch(t, b, rng, 16, 2, backend.MaxTopK, []int{5000, 33}, []quant.Coding{c})
		out := make([]backend.Hit, 2*backend.MaxTopK)
		require.NoError(t, searcher.Search(context.Background(), s, out))
		f.check(t, s, out)
	})
}

func testSearchTies(t *testing.T, b backend.Backend) {
	searcher, ok := b.(backend.Searcher)
	if !ok {
		t.Skip("the backend does not search")
	}
	const dim, n = 8, 100
	c := quant.Coding{Format: quant.F32}
	x := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
	for r := range n {
		x.Row(r)[0] = float32(r % 2) // half of them 1, half 0
	}
	x.Row(10)[0], x.Row(12)[0] = float32(math.NaN()), float32(math.Inf(1))
	x.Row(14)[0] = float32(math.Copysign(0, -1))
	packed := make([]byte, c.PackedBytes(n, dim))
	for i, v := range x.Data {
		bits := math.Float32bits(v)
		packed[4*i], packed[4*i+1], packed[4*i+2], packed[4*i+3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
	}
	buf, err := b.Alloc(int64(len(packed)))
	require.NoError(t, err)
	require.NoError(t, buf.Upload(0, packed))
	s := &backend.Search{Q: []float32{1, 1, 1, 1, 1, 1, 1, 1}, Dim: dim, TopK: n,
		Rows: []backend.SearchRows{{Rows: n, First: 1 << 40,
			Side: backend.Side{Coding: c, Data: backend.Span{Buf: buf, Len: int64(len(packed))}}}}}
	out := make([]backend.Hit, n)
	require.NoError(t, searcher.Search(context.Background(), s, out))
	want := []backend.Hit{{Row: 1<<40 + 12, Product: float32(math.Inf(1))}}
	for r := 1; r < n; r += 2 {
		want = append(want, backend.Hit{Row: 1<<40 + int64(r), Product: 1})
	}
	for r := 0; r < n; r += 2 {
		if r != 10 && r != 12 {
			want = append(want, backend.Hit{Row: 1<<40 + int64(r)})
		}
	}
	want = append(want, backend.Hit{Row: backend.NoHit})
	require.Equal(t, want, out, "equal products by number; what is no number is no hit")

	// Arguments.
	bad := func(want error, change func(s *backend.Search), room int) {
		x := *s
		x.Rows = slices.Clone(s.Rows)
		change(&x)
		out := make([]backend.Hit, room)
		require.ErrorIs(t, searcher.Search(context.Background(), &x, out), want)
		require.Equal(t, make([]backend.Hit, room), out, "nothing is written")
	}
	bad(quant.ErrShape, func(s *backend.Search) { s.TopK = 0 }, n)
	bad(quant.ErrShape, func(s *backend.Search) { s.TopK = backend.MaxTopK + 1 }, backend.MaxTopK+1)
	bad(quant.ErrShape, func(s *backend.Search) { s.Dim = 0 }, n)
	bad(quant.ErrShape, func(s *backend.Search) { s.Q = s.Q[:7] }, n)
	bad(quant.ErrShape, func(*backend.Search) {}, n-1)
	bad(quant.ErrShape, func(s *backend.Search) { s.Rows[0].Rows++ }, n)
	bad(quant.ErrShape, func(s *backend.Search) { s.Rows[0].First = -1 }, n)
	bad(quant.ErrUnsupported, func(s *backend.Search) { s.Rows[0].Side.Coding.Format = 99 }, n)
	bad(quant.ErrRange, func(s *backend.Search) {
		s.Q = slices.Clone(s.Q)
		s.Q[3] = float32(math.NaN())
	}, n)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, searcher.Search(ctx, s, out), context.Canceled)
	require.NoError(t, searcher.Search(context.Background(), &backend.Search{Dim: 4, TopK: 1}, nil))
	require.NoError(t, buf.Free())
	require.ErrorIs(t, searcher.Search(context.Background(), s, out), quant.ErrClosed)
}
