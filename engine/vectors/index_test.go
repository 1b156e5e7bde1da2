// SPDX-License-Identifier: Apache-2.0

package vectors_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// clustered returns rows with a spectrum like that of real embeddings: a mean, and variances that fall.
func clustered(n, dim int, seed uint64) quant.Rows {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
	for r := range n {
		for i := range dim {
			x.Row(r)[i] = float32(0.2 + rng.NormFloat64()*math.Exp(-3*float64(i)/float64(dim)))
		}
	}
	return x
}

func calibrated(t testing.TB, dim int, opts vectors.Options) *vectors.Index {
	t.Helper()
	x, err := vectors.Calibrate(clustered(256, dim, 99), opts)
	require.NoError(t, err)
	return x
}

func oblivious(t testing.TB, dim, bits int, m vectors.Metric) *vectors.Index {
	t.Helper()
	x, err := vectors.Oblivious(dim, bits, m, 1)
	require.NoError(t, err)
	return x
}

func find(t testing.TB, x *vectors.Index, q []float32, k int, opts vectors.SearchOptions) []vectors.Hit {
	t.Helper()
	hits, err := x.Search(context.Background(), quant.Rows{Dim: len(q), Data: q}, k, opts)
	require.NoError(t, err)
	return hits[0]
}

// memory is a Source.
type memory map[uint64][]float32

func (m memory) Row(id uint64, dst []float32) error {
	row, ok := m[id]
	if !ok {
		return errors.New("gone")
	}
	copy(dst, row)
	return nil
}

// truth returns the score of a row by its original.
func truth(m vectors.Metric, q, row []float32) float64 {
	var dot, qq, rr float64
	for i, v := range q {
		dot += float64(v) * float64(row[i])
		qq += float64(v) * float64(v)
		rr += float64(row[i]) * float64(row[i])
	}
	switch m {
	case vectors.Cosine:
		return dot / math.Sqrt(qq*rr)
	case vectors.L2:
		return qq + rr - 2*dot
	}
	return dot
}

// Every metric, in both modes: scores are near the truth, and exact after rescoring.
func TestSearch_Scores(t *testing.T) {
	const dim = 200
	rows, queries := clustered(300, dim, 1), clustered(8, dim, 2)
	for _, m := range []vectors.Metric{vectors.InnerProduct, vectors.Cosine, vectors.L2} {
		for _, x := range []*vectors.Index{calibrated(t, dim, vectors.Options{Bytes: 110, Metric: m}),
			oblivious(t, dim, 4, m)} {
			require.Equal(t, m, x.Metric())
			require.NoError(t, x.Add(context.Background(), nil, rows))
			source := memory{}
			for i := range rows.Len() {
				source[uint64(i)] = rows.Row(i)
			}
			for q := range queries.Len() {
				query := queries.Row(q)
				var scores []float64
				for i := range rows.Len() {
					scores = append(scores, truth(m, query, rows.Row(i)))
				}
				sd := deviation(scores)
				for _, exhaustive := range []bool{false, true} {
					for _, h := range find(t, x, query, 300, vectors.SearchOptions{Exhaustive: exhaustive}) {
						require.InDelta(t, scores[h.ID], h.Score, 0.6*sd, "%s, row %d, %v", m, h.ID, x.Stats())
					}
				}
				hits := find(t, x, query, 5, vectors.SearchOptions{Rescore: vectors.Rescore{Source: source, Factor: 8}})
				order := make([]int, len(scores))
				for i := range order {
					order[i] = i
				}
				slices.SortFunc(order, func(a, b int) int {
					if m == vectors.L2 {
						a, b = b, a
					}
					return cmpDesc(scores[a], scores[b])
				})
				for i, h := range hits {
					require.Equal(t, uint64(order[i]), h.ID, "%s hit %d", m, i)
					require.InDelta(t, scores[h.ID], h.Score, 1e-4*math.Abs(scores[h.ID])+1e-4)
				}
			}
		}
	}
}

func deviation(x []float64) float64 {
	var sum, squares float64
	for _, v := range x {
		sum += v
		squares += v * v
	}
	n := float64(len(x))
	return math.Sqrt(squares/n - sum*sum/n/n)
}

func cmpDesc(a, b float64) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	}
	return 0
}

// Rows come and go at random; the index always has those of a map, in file and memory.
func TestIndex_AddRemove(t *testing.T) {
	const dim = 40
	seeds := uint64(4)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 5))
		var x *vectors.Index
		if seed%2 == 0 {
			x = calibrated(t, dim, vectors.Options{Bytes: 24, Metric: vectors.L2})
		} else {
			x = oblivious(t, dim, 3, vectors.InnerProduct)
		}
		want := map[uint64][]float32{}
		next := uint64(0)
		check := func() {
			require.Equal(t, len(want), x.Len())
			got := make([]float32, dim)
			for id, row := range want {
				require.True(t, x.Has(id))
				require.NoError(t, x.Reconstruct(id, got))
				require.Less(t, truth(vectors.L2, row, got), 0.35*truth(vectors.L2, row, make([]float32, dim)), "id %d", id)
			}
			require.False(t, x.Has(1<<40))
		}
		for step := range 40 {
			switch rng.IntN(3) {
			case 0, 1:
				n := 1 + rng.IntN(60)
				rows := clustered(n, dim, seed*100+uint64(step))
				var ids []uint64
				if seed > 1 || step > 6 {
					for range n {
						ids = append(ids, next*7+3)
						next++
					}
				} else if int(next) != x.Len() {
					continue // ids that are row numbers would clash
				}
				require.NoError(t, x.Add(context.Background(), ids, rows))
				for i := range n {
					id := next + uint64(i)
					if ids != nil {
						id = ids[i]
					}
					want[id] = rows.Row(i)
				}
				if ids == nil {
					next += uint64(n)
				}
			default:
				var gone []uint64
				for id := range want {
					if len(gone) < rng.IntN(50) {
						gone = append(gone, id)
					}
				}
				require.NoError(t, x.Remove(gone...))
				for _, id := range gone {
					delete(want, id)
				}
			}
			if step%10 == 9 {
				check()
				path := filepath.Join(t.TempDir(), "index.kvist")
				require.NoError(t, x.Save(path))
				loaded, err := vectors.Open(path, vectors.LoadOptions{})
				require.NoError(t, err)
				old := x
				x = loaded
				check()
				q := clustered(1, dim, 77).Row(0)
				require.Equal(t, find(t, old, q, 7, vectors.SearchOptions{}), find(t, x, q, 7, vectors.SearchOptions{}))
				require.Equal(t, old.Stats(), x.Stats())
				if step < 39 {
					continue // the next changes are made to the mapped one
				}
				require.NoError(t, x.Close())
				require.ErrorIs(t, x.Remove(), quant.ErrClosed)
				x, err = vectors.Load(path, vectors.LoadOptions{})
				require.NoError(t, err)
				check()
			}
		}
	}
}

// What fails changes nothing.
func TestIndex_Errors(t *testing.T) {
	const dim = 32
	ctx := context.Background()
	x := oblivious(t, dim, 2, vectors.InnerProduct)
	rows := clustered(20, dim, 1)
	require.NoError(t, x.Add(ctx, nil, rows))
	before := find(t, x, rows.Row(3), 5, vectors.SearchOptions{})
	bad := func(v float64) quant.Rows {
		r := clustered(3, dim, 2)
		r.Row(2)[dim-1] = float32(v)
		return r
	}
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e20} {
		require.ErrorIs(t, x.Add(ctx, nil, bad(v)), quant.ErrRange)
		_, err := x.Search(ctx, bad(v), 3, vectors.SearchOptions{})
		require.ErrorIs(t, err, quant.ErrRange)
		_, err = vectors.Calibrate(quant.Rows{Dim: dim, Data: slices.Repeat(bad(v).Data, 30)}, vectors.Options{Bytes: 20})
		require.ErrorIs(t, err, quant.ErrRange)
	}
	require.ErrorIs(t, x.Add(ctx, nil, clustered(2, dim+8, 1)), quant.ErrShape)
	require.ErrorIs(t, x.Add(ctx, nil, quant.Rows{Dim: dim, Data: make([]float32, dim+1)}), quant.ErrShape)
	require.ErrorIs(t, x.Add(ctx, []uint64{1}, rows), quant.ErrShape)
	var idErr *vectors.IDError
	two := quant.Rows{Dim: dim, Data: rows.Data[:2*dim]}
	require.ErrorAs(t, x.Add(ctx, []uint64{50, 50}, two), &idErr)
	require.Equal(t, uint64(50), idErr.ID)
	require.True(t, idErr.Twice)
	require.ErrorAs(t, x.Add(ctx, []uint64{50, 7}, two), &idErr)
	require.ErrorIs(t, idErr, quant.ErrShape)
	require.ErrorAs(t, x.Remove(3, 999), &idErr)
	require.ErrorAs(t, x.Remove(3, 3), &idErr)
	require.ErrorAs(t, x.Reconstruct(77, make([]float32, dim)), &idErr)
	require.ErrorIs(t, x.Reconstruct(7, make([]float32, 3)), quant.ErrShape)
	_, err := x.Distance(1, 400)
	require.ErrorAs(t, err, &idErr)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, x.Add(canceled, nil, rows), context.Canceled)
	_, err = x.Search(canceled, rows, 3, vectors.SearchOptions{})
	require.ErrorIs(t, err, context.Canceled)
	for _, k := range []int{0, -1, 1 << 30} {
		_, err = x.Search(ctx, rows, k, vectors.SearchOptions{})
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = x.Search(ctx, clustered(1, 24, 1), 3, vectors.SearchOptions{})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = x.Search(ctx, two, 3, vectors.SearchOptions{Rescore: vectors.Rescore{Source: memory{}}})
	require.ErrorContains(t, err, "gone")
	for _, v := range []float64{math.NaN(), math.Inf(1)} {
		source := memory{}
		for id := range uint64(20) {
			source[id] = bad(v).Row(2)
		}
		_, err = x.Search(ctx, two, 3, vectors.SearchOptions{Rescore: vectors.Rescore{Source: source}})
		require.ErrorIs(t, err, quant.ErrRange)
	}
	require.Equal(t, 20, x.Len())
	require.Equal(t, before, find(t, x, rows.Row(3), 5, vectors.SearchOptions{}))

	_, err = vectors.Calibrate(clustered(10, dim, 1), vectors.Options{Bytes: 20})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = vectors.Calibrate(clustered(100, dim, 1), vectors.Options{Bytes: 1})
	require.ErrorIs(t, err, quant.ErrBudget)
	_, err = vectors.Calibrate(clustered(100, dim, 1), vectors.Options{Bytes: 20, Rows: 10})
	require.ErrorIs(t, err, quant.ErrBudget)
	_, err = vectors.Calibrate(clustered(100, dim, 1), vectors.Options{Bytes: 20, ISA: "mmx"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	for _, bits := range []int{0, 7} {
		_, err = vectors.Oblivious(dim, bits, vectors.Cosine, 1)
		require.ErrorIs(t, err, quant.ErrUnsupported)
	}
}

// An empty index, more asked for than there is, and a filter.
func TestSearch_Few(t *testing.T) {
	const dim = 24
	x := oblivious(t, dim, 4, vectors.Cosine)
	rows := clustered(18, dim, 1)
	require.Empty(t, find(t, x, rows.Row(0), 3, vectors.SearchOptions{}))
	ids := make([]uint64, 18)
	for i := range ids {
		ids[i] = uint64(100 - i)
	}
	require.NoError(t, x.Add(context.Background(), ids, rows))
	require.NoError(t, x.Add(context.Background(), nil, quant.Rows{Dim: dim}))
	require.Len(t, find(t, x, rows.Row(0), 50, vectors.SearchOptions{}), 18)
	even := vectors.SearchOptions{Filter: func(id uint64) bool { return id%2 == 0 }}
	hits := find(t, x, rows.Row(3), 50, even)
	require.Len(t, hits, 9)
	for _, h := range hits {
		require.Zero(t, h.ID%2)
	}
	require.Equal(t, uint64(97), find(t, x, rows.Row(3), 1, vectors.SearchOptions{})[0].ID)
	require.NoError(t, x.Remove(ids...))
	require.Empty(t, find(t, x, rows.Row(0), 3, vectors.SearchOptions{}))
	require.NoError(t, x.Add(context.Background(), nil, rows))
	require.Equal(t, uint64(3), find(t, x, rows.Row(3), 1, vectors.SearchOptions{})[0].ID)
}

// Rows of equal codes have equal scores and come in the order of their ids.
func TestSearch_Ties(t *testing.T) {
	const dim = 16
	x := oblivious(t, dim, 2, vectors.InnerProduct)
	row := clustered(1, dim, 1).Row(0)
	require.NoError(t, x.Add(context.Background(), nil, quant.Rows{Dim: dim, Data: slices.Repeat(row, 100)}))
	for i, h := range find(t, x, row, 10, vectors.SearchOptions{}) {
		require.Equal(t, uint64(i), h.ID)
	}
}

// A row far from the calibration is counted, bounded, and does not win every query. Zero rows are rows too.
func TestAdd_FarRows(t *testing.T) {
	const dim = 64
	x := calibrated(t, dim, vectors.Options{Bytes: 30})
	rows := clustered(64, dim, 3)
	for i := range dim {
		rows.Row(5)[i] *= 1e6
		rows.Row(6)[i] = 0
	}
	require.NoError(t, x.Add(context.Background(), nil, rows))
	require.Equal(t, 1, x.Stats().Bounded)
	wins := 0
	queries := clustered(50, dim, 4)
	for q := range queries.Len() {
		h := find(t, x, queries.Row(q), 1, vectors.SearchOptions{})[0]
		require.Less(t, h.Score, float32(1e3))
		if h.ID == 5 {
			wins++
		}
	}
	require.Less(t, wins, 40)
}

// Heavy tails: lengths over many orders of magnitude still give relative precision.
func TestAdd_HeavyTails(t *testing.T) {
	const dim = 48
	rows := clustered(400, dim, 3)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range rows.Len() {
		f := float32(math.Exp(5 * rng.NormFloat64()))
		for j := range dim {
			rows.Row(i)[j] *= f
		}
	}
	x, err := vectors.Calibrate(rows, vectors.Options{Bytes: 40})
	require.NoError(t, err)
	require.NoError(t, x.Add(context.Background(), nil, rows))
	require.Zero(t, x.Stats().Bounded)
	require.Less(t, x.Stats().Error, 0.05)
	y := oblivious(t, dim, 4, vectors.InnerProduct)
	require.NoError(t, y.Add(context.Background(), nil, rows))
	got := make([]float32, dim)
	for i := range rows.Len() {
		require.NoError(t, y.Reconstruct(uint64(i), got))
		require.Less(t, truth(vectors.L2, rows.Row(i), got), 0.05*truth(vectors.InnerProduct, rows.Row(i), rows.Row(i)))
	}
}

func TestDistance(t *testing.T) {
	const dim = 96
	rows := clustered(120, dim, 1)
	for _, m := range []vectors.Metric{vectors.InnerProduct, vectors.Cosine, vectors.L2} {
		for _, x := range []*vectors.Index{calibrated(t, dim, vectors.Options{Bytes: 60, Metric: m}),
			oblivious(t, dim, 4, m)} {
			require.NoError(t, x.Add(context.Background(), nil, rows))
			var want, diff []float64
			for i := range rows.Len() - 1 {
				d, err := x.Distance(uint64(i), uint64(i+1))
				require.NoError(t, err)
				w := truth(m, rows.Row(i), rows.Row(i+1))
				want, diff = append(want, w), append(diff, float64(d)-w)
			}
			require.Less(t, deviation(diff), 0.3*deviation(want), "%s", m)
			d, err := x.Distance(7, 7)
			require.NoError(t, err)
			require.InDelta(t, truth(m, rows.Row(7), rows.Row(7)), float64(d), 0.1*truth(vectors.InnerProduct, rows.Row(7), rows.Row(7)))
		}
	}
}

func TestDuplicates(t *testing.T) {
	const dim = 64
	rows := clustered(500, dim, 1)
	copies := map[[2]uint64]bool{{3, 400}: true, {77, 78}: true, {0, 499}: true}
	source := memory{}
	for p := range copies {
		copy(rows.Row(int(p[1])), rows.Row(int(p[0])))
		rows.Row(int(p[1]))[5] += 0.01
	}
	for i := range rows.Len() {
		source[uint64(i)] = rows.Row(i)
	}
	for _, m := range []vectors.Metric{vectors.InnerProduct, vectors.Cosine} {
		for _, s := range []vectors.Source{nil, source} {
			x := calibrated(t, dim, vectors.Options{Bytes: 50, Metric: m})
			require.NoError(t, x.Add(context.Background(), nil, rows))
			pairs, err := x.Duplicates(context.Background(), vectors.DuplicateOptions{Cosine: 0.97, Source: s})
			require.NoError(t, err)
			require.Len(t, pairs, len(copies))
			for _, p := range pairs {
				require.True(t, copies[[2]uint64{p.A, p.B}], "%v", p)
			}
			pairs, err = x.Duplicates(context.Background(), vectors.DuplicateOptions{Cosine: 0.97, Source: s, Max: 1})
			require.NoError(t, err)
			require.Len(t, pairs, 1)
		}
	}
	_, err := oblivious(t, dim, 1, vectors.L2).Duplicates(context.Background(), vectors.DuplicateOptions{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

// Rows of another distribution show in Stats.
func TestStats_Drift(t *testing.T) {
	const dim = 64
	x := calibrated(t, dim, vectors.Options{Bytes: 20})
	require.NoError(t, x.Add(context.Background(), nil, clustered(300, dim, 7)))
	st := x.Stats()
	require.InDelta(t, 1, st.Drift, 0.25) // 256 rows tell variances to 10 %
	require.InDelta(t, 1, st.Spread, 0.15)
	require.Equal(t, 300, st.Added)
	require.LessOrEqual(t, st.RowBytes, 20)
	y := calibrated(t, dim, vectors.Options{Bytes: 20})
	other := clustered(300, dim, 7)
	for i := range other.Len() {
		slices.Reverse(other.Row(i))
	}
	require.NoError(t, y.Add(context.Background(), nil, other))
	require.Greater(t, y.Stats().Drift, 1.5)
}

// Searches run beside changes and see whole states.
func TestIndex_Concurrent(t *testing.T) {
	const dim = 32
	x := calibrated(t, dim, vectors.Options{Bytes: 18})
	rows := clustered(600, dim, 1)
	require.NoError(t, x.Add(context.Background(), nil, rows))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			q := clustered(5, dim, uint64(g))
			dst := make([]float32, dim)
			for {
				select {
				case <-stop:
					return
				default:
				}
				hits, err := x.Search(context.Background(), q, 5, vectors.SearchOptions{Exhaustive: g == 0})
				if err != nil || len(hits[0]) != 5 || hits[0][0].ID == hits[0][1].ID {
					t.Errorf("%v %v", hits, err)
					return
				}
				// The first rows are never removed.
				if err := x.Reconstruct(uint64(g), dst); err != nil {
					t.Error(err)
					return
				}
				x.Stats()
			}
		})
	}
	for i := range 30 {
		lo := uint64(10_000 + 100*i)
		ids := make([]uint64, 37)
		for j := range ids {
			ids[j] = lo + uint64(j)
		}
		require.NoError(t, x.Add(context.Background(), ids, quant.Rows{Dim: dim, Data: rows.Data[:37*dim]}))
		if i > 2 {
			require.NoError(t, x.Remove(ids[:20]...))
			require.NoError(t, x.Remove(uint64(100+i)))
		}
	}
	close(stop)
	wg.Wait()
	require.Equal(t, 600+30*37-27*21, x.Len())
}

func ExampleCalibrate() {
	rows := clustered(1000, 64, 1) // the embeddings: [rows, 64]
	x, err := vectors.Calibrate(rows, vectors.Options{Bytes: 33, Metric: vectors.Cosine})
	if err != nil {
		panic(err)
	}
	if err := x.Add(context.Background(), nil, rows); err != nil {
		panic(err)
	}
	query := quant.Rows{Dim: 64, Data: rows.Row(42)}
	hits, err := x.Search(context.Background(), query, 3, vectors.SearchOptions{})
	if err != nil {
		panic(err)
	}
	fmt.Println(hits[0][0].ID, x.Stats().RowBytes, "bytes instead of", 4*64)
	// Output: 42 33 bytes instead of 256
}
