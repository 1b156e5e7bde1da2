// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// BenchmarkSignal reports the tokens of one KV head that a signal gets through in a second.
func BenchmarkSignal(b *testing.B) {
	const n, dim = 1024, 64
	rng := rand.New(rand.NewPCG(71, 72))
	x, out := randomRows(rng, n, dim, 1), make([]float64, n)
	raw := make([]float64, n)
	for i := range raw {
		raw[i] = rng.ExpFloat64()
	}
	run := func(name string, f func() error) {
		b.Run("signal="+name+"/head_dim=64/tokens=1024", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, f())
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
		})
	}
	rel, err := NewRelevance(defaultWeighting().Attention)
	require.NoError(b, err)
	rows, at := RowSums{Sum: make([]float32, n)}, int64(n)
	for i := range rows.Sum {
		rows.Sum[i] = float32(raw[i])
	}
	run("relevance-add", func() error {
		at++
		return rel.Add(Queries{First: at, N: 1, Group: 3}, rows)
	})
	run("relevance-values", func() error { return rel.Values(out) })
	run("shape", func() error {
		copy(out, raw)
		return Shape(out, defaultWeighting().Shape)
	})
	for _, full := range []bool{false, true} {
		name := map[bool]string{false: "diagonal", true: "full"}[full]
		s, err := newQueryStats(dim, quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim,
			Theta: 1e4}, full)
		require.NoError(b, err)
		pos := upTo(n)
		run("query-stats-"+name, func() error { return s.Add(x, pos) })
		f, err := s.Future(n, 256)
		require.NoError(b, err)
		run("expected-"+name, func() error { return f.LogScores(out, x, scores{scale: 0.125}) })
	}
	s := surpriseOf(b, dim)
	run("surprise", func() error { return s.Add(out, x) })
	h := habituationOf(b, dim)
	var blocks []float64
	run("habituation", func() (err error) {
		blocks, err = h.Add(blocks[:0], x)
		return err
	})
	d, err := newDeviation(dim)
	require.NoError(b, err)
	run("value-norm", func() error { return d.Add(out, x) })
	decay, err := newDecay(0.5, 1)
	require.NoError(b, err)
	run("decay", func() error { decay.Values(out, 0, n-1); return nil })
	run("collapse", func() error {
		_, err := Concentrate(raw)
		return err
	})
	w := make([]float32, n)
	p, signals := defaultWeighting(), signals{raw}
	run("combine", func() error { return combineInto(w, &p, &signals) })
}
