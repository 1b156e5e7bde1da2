// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

type embedEvalFlags struct {
	codingFlags
	queries, truth, plot string
	k                    int
	json, force          bool
}

func newEmbedEval(a *app) *cobra.Command {
	var f embedEvalFlags
	cmd := &cobra.Command{
		Use:   "eval VECTORS --queries QUERIES (--bytes BYTES,... | --bits BITS,...)",
		Short: "Measure how many of the true neighbours an index finds, at one size or many",
		Long: `eval makes an index of the vectors for every size and searches it. It prints

  recall      the share of the k true neighbours that are found: comparing whole rows, head first, and with 2k
              and 4k rescored by their originals (recall is of the exact search over the originals)
  slope       of estimated against true scores, over all pairs of 16 queries and, through zero, over the true
              neighbours: 1 where estimates are right on average
  encode      thousands of vectors a second; single, batch: queries a second, one by one and 64 at a time, all
              on as many processors as GOMAXPROCS says

Fields of --json: vectors, queries, dim, k, sizes: a list of {bytes_per_vector, row_bytes, recall, recall_head,
recall_rescored_2x, recall_rescored_4x, slope, slope_nearest, drift, encode_per_s, single_per_s, batch_per_s}.`,
		Example: `  kvist embed eval vectors.npy --queries queries.npy --bytes 52,100,148,196 --sample 2000
  kvist embed eval vectors.npy --queries queries.npy --bits 1,2,3,4 --oblivious --plot recall.svg`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			m, err := f.check()
			if err != nil {
				return err
			}
			if f.k < 1 || f.k > 1000 {
				return usagef("-k %d: want 1 to 1000", f.k)
			}
			return a.embedEval(cmd.Context(), args[0], &f, m)
		}),
	}
	f.add(cmd, "; several by commas")
	fl := cmd.Flags()
	fl.StringVar(&f.queries, "queries", "", "`FILE` of queries (required)")
	fl.StringVar(&f.truth, "truth", "", "`FILE` (.ivecs) of the true neighbours; without it they are computed")
	fl.IntVarP(&f.k, "neighbors", "k", 10, "how many neighbours count")
	fl.StringVar(&f.plot, "plot", "", "draw recall against bytes to `FILE` (SVG)")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the plot if it exists")
	_ = cmd.MarkFlagRequired("queries") // the flag is there
	return cmd
}

type embedSizeJSON struct {
	BytesPerVector float64 `json:"bytes_per_vector"`
	RowBytes       int     `json:"row_bytes"`
	Recall         float64 `json:"recall"`
	RecallHead     float64 `json:"recall_head"`
	Rescored2      float64 `json:"recall_rescored_2x"`
	Rescored4      float64 `json:"recall_rescored_4x"`
	Slope          float64 `json:"slope"`
	SlopeNearest   float64 `json:"slope_nearest"`
	Drift          float64 `json:"drift"`
	Encode         float64 `json:"encode_per_s"`
	Single         float64 `json:"single_per_s"`
	Batch          float64 `json:"batch_per_s"`
}

type embedEvalJSON struct {
	Vectors int             `json:"vectors"`
	Queries int             `json:"queries"`
	Dim     int             `json:"dim"`
	K       int             `json:"k"`
	Sizes   []embedSizeJSON `json:"sizes"`
}

func (a *app) embedEval(ctx context.Context, name string, f *embedEvalFlags, m vectors.Metric) error {
	if err := a.checkOutputs([]string{name, f.queries, f.truth, f.calibrationFile}, destination{"--plot", f.plot, f.force}); err != nil {
		return err
	}
	rows, err := a.readVectors(ctx, name, f.tensor)
	if err != nil {
		return err
	}
	queries, err := a.readVectors(ctx, f.queries, f.tensor)
	if err != nil {
		return err
	}
	if queries.Dim != rows.Dim || rows.Len() < f.k || queries.Len() == 0 {
		return fmt.Errorf("%d vectors of %d values and %d queries of %d: want one dim, at least k vectors and a query: %w",
			rows.Len(), rows.Dim, queries.Len(), queries.Dim, quant.ErrShape)
	}
	sample, err := a.readSample(ctx, rows, &f.codingFlags)
	if err != nil {
		return err
	}
	e := &embedEval{rows: rows, queries: queries, metric: m, k: f.k}
	if f.truth != "" {
		err = a.readTruth(ctx, e, f.truth)
	} else {
		err = e.search(ctx)
	}
	if err != nil {
		return err
	}
	list, err := f.targets(rows.Dim)
	if err != nil {
		return err
	}
	sum := &embedEvalJSON{rows.Len(), queries.Len(), rows.Dim, f.k, nil}
	for _, t := range list {
		x, err := f.open(t, rows, sample, m)
		if err != nil {
			return err
		}
		s, err := e.measure(ctx, x)
		if err != nil {
			return err
		}
		sum.Sizes = append(sum.Sizes, *s)
	}
	if f.plot != "" {
		if err := a.writeFile(ctx, f.plot, f.force, func(w io.Writer) error { return plotRecall(w, sum) }); err != nil {
			return err
		}
	}
	if f.json {
		return printJSON(a.stdout, sum)
	}
	p := &printer{w: a.stdout}
	p.printf("%s vectors of %d values, %s queries, recall of %d neighbours\n", count(int64(rows.Len())), rows.Dim,
		count(int64(queries.Len())), f.k)
	t := newTable([]any{"bytes", "recall", "head first", "2x rescored", "4x rescored", "slope", "nearest", "drift",
		"encode k/s", "single/s", "batch/s"}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	for _, s := range sum.Sizes {
		row := []any{fmt.Sprintf("%.1f", s.BytesPerVector)}
		for _, v := range []float64{s.Recall, s.RecallHead, s.Rescored2, s.Rescored4, s.Slope, s.SlopeNearest} {
			row = append(row, fmt.Sprintf("%.4f", v))
		}
		t.AppendRow(append(row, fmt.Sprintf("%.2f", s.Drift), fmt.Sprintf("%.0f", s.Encode/1000),
			fmt.Sprintf("%.0f", s.Single), fmt.Sprintf("%.0f", s.Batch)))
	}
	p.table(t)
	return p.err
}

// embedEval is vectors and queries with the true neighbours.
type embedEval struct {
	rows, queries quant.Rows
	metric        vectors.Metric
	k             int
	truth         [][]uint64
}

// readTruth reads true neighbours.
func (a *app) readTruth(ctx context.Context, e *embedEval, name string) error {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return err
	}
	b, err := in.all()
	if err != nil {
		return err
	}
	words, n, err := vecs(in.name, b)
	if err != nil {
		return err
	}
	if n < e.k || len(words)/n != e.queries.Len() {
		return fmt.Errorf("%s has %d neighbours of %d queries, want %d of %d: %w", in.name, n, len(words)/n, e.k,
			e.queries.Len(), quant.ErrShape)
	}
	for q := range e.queries.Len() {
		var list []uint64
		for _, w := range words[q*n : q*n+e.k] {
			if int(w) >= e.rows.Len() {
				return fmt.Errorf("%s: query %d has neighbour %d, there are %d vectors: %w", in.name, q, w, e.rows.Len(),
					quant.ErrShape)
			}
			list = append(list, uint64(w))
		}
		e.truth = append(e.truth, list)
	}
	return nil
}

// scores returns those of one query with all vectors.
func (e *embedEval) scores(products []float32, q int) []float64 {
	qq := square(e.queries.Row(q))
	out := make([]float64, e.rows.Len())
	for i := range out {
		x := float64(products[i])
		switch e.metric {
		case vectors.Cosine:
			if d := math.Sqrt(qq * square(e.rows.Row(i))); d > 0 {
				x /= d
			}
		case vectors.L2:
			x = qq + square(e.rows.Row(i)) - 2*x
		}
		out[i] = x
	}
	return out
}

func square(x []float32) (sum float64) {
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return sum
}

// search finds the true neighbours. Of equal scores the lower number is nearer.
func (e *embedEval) search(ctx context.Context) error {
	const part = 64
	n, dim := e.rows.Len(), e.rows.Dim
	var products []float32
	for q := range e.queries.Len() {
		if q%part == 0 {
			var err error
			products, err = e.products(ctx, quant.Rows{Dim: dim, Data: e.queries.Data[q*dim : min(len(e.queries.Data), (q+part)*dim)]})
			if err != nil {
				return err
			}
		}
		scores := e.scores(products[q%part*n:(q%part+1)*n], q)
		sign := -1.0
		if e.metric == vectors.L2 {
			sign = 1
		}
		var list []uint64
		for i, s := range scores {
			if len(list) == e.k && sign*s >= sign*scores[list[e.k-1]] {
				continue
			}
			at, _ := slices.BinarySearchFunc(list, sign*s, func(id uint64, s float64) int {
				if sign*scores[id] <= s {
					return -1
				}
				return 1
			})
			list = slices.Insert(list, at, uint64(i))
			list = list[:min(len(list), e.k)]
		}
		e.truth = append(e.truth, list)
	}
	return nil
}

// products returns those of queries with all vectors, [queries, vectors].
func (e *embedEval) products(ctx context.Context, queries quant.Rows) ([]float32, error) {
	engine, err := matmul.Open(matmul.Options{})
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := make([]float32, queries.Len()*e.rows.Len())
	return out, engine.F32(out, queries.Data, e.rows.Data, queries.Len(), e.rows.Len(), e.rows.Dim)
}

// measure fills an index and searches it.
func (e *embedEval) measure(ctx context.Context, x *vectors.Index) (*embedSizeJSON, error) {
	start := time.Now()
	if err := x.Add(ctx, nil, e.rows); err != nil {
		return nil, err
	}
	n := e.rows.Len()
	s := &embedSizeJSON{Encode: float64(n) / time.Since(start).Seconds()}
	written := &countingWriter{}
	if err := x.Write(discard{written}); err != nil {
		return nil, err
	}
	st := x.Stats()
	s.BytesPerVector, s.RowBytes, s.Drift = float64(written.n)/float64(n), st.RowBytes, st.Drift
	for _, r := range []struct {
		to   *float64
		opts vectors.SearchOptions
	}{
		{&s.Recall, vectors.SearchOptions{Exhaustive: true}},
		{&s.RecallHead, vectors.SearchOptions{}},
		{&s.Rescored2, vectors.SearchOptions{Rescore: vectors.Rescore{Factor: 2, Source: rowSource(e.rows)}}},
		{&s.Rescored4, vectors.SearchOptions{Rescore: vectors.Rescore{Factor: 4, Source: rowSource(e.rows)}}},
	} {
		start = time.Now()
		hits, err := x.Search(ctx, e.queries, e.k, r.opts)
		if err != nil {
			return nil, err
		}
		if r.to == &s.Recall {
			s.Batch = float64(e.queries.Len()) / time.Since(start).Seconds()
		}
		*r.to = e.recall(hits)
	}
	single := min(200, e.queries.Len())
	start = time.Now()
	for q := range single {
		if _, err := x.Search(ctx, quant.Rows{Dim: e.queries.Dim, Data: e.queries.Row(q)}, e.k, vectors.SearchOptions{}); err != nil {
			return nil, err
		}
	}
	s.Single = float64(single) / time.Since(start).Seconds()
	return s, e.slopes(ctx, x, s)
}

// discard counts and drops.
type discard struct{ c *countingWriter }

func (d discard) Write(b []byte) (int, error) {
	d.c.n += int64(len(b))
	return len(b), nil
}

// recall returns the share of true neighbours among hits.
func (e *embedEval) recall(hits [][]vectors.Hit) float64 {
	found := 0
	for q, list := range hits {
		for _, h := range list {
			if slices.Contains(e.truth[q], h.ID) {
				found++
			}
		}
	}
	return float64(found) / float64(e.k*len(hits))
}

// slopes compares estimates with the truth.
func (e *embedEval) slopes(ctx context.Context, x *vectors.Index, s *embedSizeJSON) error {
	few := quant.Rows{Dim: e.queries.Dim, Data: e.queries.Data[:min(16, e.queries.Len())*e.queries.Dim]}
	products, err := e.products(ctx, few)
	if err != nil {
		return err
	}
	hits, err := x.Search(ctx, few, e.rows.Len(), vectors.SearchOptions{Exhaustive: true})
	if err != nil {
		return err
	}
	var n, t, u, tt, tu, near, nearTT float64
	for q, list := range hits {
		truth := e.scores(products[q*e.rows.Len():(q+1)*e.rows.Len()], q)
		for _, h := range list {
			a, b := truth[h.ID], float64(h.Score)
			n, t, u, tt, tu = n+1, t+a, u+b, tt+a*a, tu+a*b
			if slices.Contains(e.truth[q], h.ID) {
				near, nearTT = near+a*b, nearTT+a*a
			}
		}
	}
	if v := tt - t*t/n; v > 0 {
		s.Slope = (tu - t*u/n) / v
	}
	if nearTT > 0 {
		s.SlopeNearest = near / nearTT
	}
	return nil
}

// plotRecall draws recall against bytes.
func plotRecall(w io.Writer, sum *embedEvalJSON) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%s vectors of %d values", count(int64(sum.Vectors)), sum.Dim)
	p.X.Label.Text, p.Y.Label.Text = "bytes/vector", fmt.Sprintf("recall of %d", sum.K)
	for i, c := range []struct {
		name string
		y    func(s *embedSizeJSON) float64
	}{
		{"codes", func(s *embedSizeJSON) float64 { return s.Recall }},
		{"2x rescored", func(s *embedSizeJSON) float64 { return s.Rescored2 }},
		{"4x rescored", func(s *embedSizeJSON) float64 { return s.Rescored4 }},
	} {
		var xy plotter.XYs
		for j := range sum.Sizes {
			xy = append(xy, plotter.XY{X: sum.Sizes[j].BytesPerVector, Y: c.y(&sum.Sizes[j])})
		}
		slices.SortFunc(xy, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return err
		}
		line.Color, points.Color, points.Shape = evalColours[i], evalColours[i], evalShapes[i]
		p.Add(line, points)
		p.Legend.Add(c.name, line, points)
	}
	p.Legend.Top = false
	canvas := vgsvg.New(14*vg.Centimeter, 10*vg.Centimeter)
	p.Draw(draw.New(canvas))
	_, err := canvas.WriteTo(w)
	return err
}
