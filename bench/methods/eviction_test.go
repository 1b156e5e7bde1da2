// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
)

func keptRows(l *CacheLayer, head, tokens int) []int {
	var rows []int
	for t, k := range l.Keep[head*tokens : (head+1)*tokens] {
		if k {
			rows = append(rows, t)
		}
	}
	return rows
}

func TestEviction_KeepsTheBudget(t *testing.T) {
	f := smallFamily(t)
	s := f.future.shapeOf
	for p := SnapKV; int(p) < len(evictionPolicies); p++ {
		for _, share := range []float64{1, 0.5, 0.25, 0.1, 0.004} {
			e := Eviction{Policy: p, Keep: share}
			n := max(int(math.Round(share*float64(s.tokens))), 1)
			total := 0
			cache := compress(t, e, f.c)
			for i := range cache.Layers {
				layer := 0
				for h := range s.kvHeads {
					rows := keptRows(&cache.Layers[i], h, s.tokens)
					layer += len(rows)
					if p != AdaKV && p != KVzip && p != PyramidKV {
						require.Len(t, rows, n, "%s: layer %d head %d", e.Name(), i, h)
					}
					if p == AdaKV {
						require.GreaterOrEqual(t, len(rows), n/5, e.Name())
					}
					for _, tok := range rows {
						if p == EMS {
							break // merged rows are not those they were
						}
						was, is := &f.c.Layers[i], &cache.Layers[i]
						require.Equal(t, s.k(was.K, h).Row(tok), s.k(is.K, h).Row(tok))
						require.Equal(t, s.v(was.V, h).Row(tok), s.v(is.V, h).Row(tok))
					}
				}
				if p != PyramidKV {
					require.Equal(t, n*s.kvHeads, layer, "%s: layer %d", e.Name(), i)
				}
				total += layer
			}
			require.Equal(t, n*s.kvHeads*len(cache.Layers), total, e.Name())
			if share == 1 {
				require.Less(t, f.error(t, cache), 1e-9, e.Name())
			}
		}
	}
}

func TestEviction_SinksAndRecent(t *testing.T) {
	f := smallFamily(t)
	cache := compress(t, Eviction{Policy: SinksRecent, Keep: 0.1}, f.c)
	want := []int{0, 1, 2, 3, 148, 149, 150, 151, 152, 153, 154, 155, 156, 157, 158, 159}
	require.Equal(t, want, keptRows(&cache.Layers[1], 1, 160))
	for p, forced := range map[EvictionPolicy][]int{
		SnapKV:            {152, 153, 154, 155, 156, 157, 158, 159},
		H2O:               {152, 153, 154, 155, 156, 157, 158, 159},
		ExpectedAttention: {0, 1, 2, 3},
		EMS:               {0, 1, 2, 3, 152, 159},
		KVzip:             {152, 159},
	} {
		cache := compress(t, Eviction{Policy: p, Keep: 0.1}, f.c)
		for _, tok := range forced {
			require.Contains(t, keptRows(&cache.Layers[0], 0, 160), tok, p)
		}
	}
}

func TestPyramidBudgets(t *testing.T) {
	// n 96, window 64 of 96/2 = 48 kept: 48 to share, from 2*48-48/20 = 93.6 down to 2.4.
	e := Eviction{Policy: PyramidKV, Keep: 96.0 / 1024}
	b := e.budgets(5, 1024)
	require.Equal(t, []int{48 + 94, 48 + 70, 48 + 48, 48 + 26, 48 + 2}, b)
	for _, layers := range []int{1, 2, 3, 30} {
		for _, share := range []float64{0.01, 0.3, 0.6, 0.95, 1} {
			e := Eviction{Policy: PyramidKV, Keep: share}
			b := e.budgets(layers, 1000)
			sum := 0
			for i, n := range b {
				require.LessOrEqual(t, n, 1000)
				require.GreaterOrEqual(t, n, 1)
				if i > 0 {
					require.LessOrEqual(t, n, b[i-1]+1, "rounding moves a row at most")
				}
				sum += n
			}
			require.Equal(t, int(math.Round(1000*share))*layers, sum)
		}
	}
}

// needle returns a context in which one row gets nearly all attention of the last queries, and another
// row nearly all of the early ones.
func needle(t *testing.T) *Context {
	t.Helper()
	const tokens, dim = 200, 8
	c := one(dim, make([]float32, tokens*dim), make([]float32, tokens*dim))
	l := &c.Layers[0]
	for i := range tokens {
		l.V[i*dim] = 1
		l.Q[i*dim] = 10
		if i >= tokens/2 {
			l.Q[i*dim], l.Q[i*dim+1] = 0, 10
		}
	}
	l.K[20*dim], l.K[70*dim+1] = 10, 10
	return c
}

func TestEviction_Scores(t *testing.T) {
	c := needle(t)
	s, err := c.shape("test", true)
	require.NoError(t, err)
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	require.NoError(t, err)
	j := &job{shapeOf: s, c: c, engine: engine}
	best := func(score []float64) int { return topRows(score, 1)[0] }

	local, err := Eviction{Policy: SnapKV, Pool: 1}.observed(j, 0, 0)
	require.NoError(t, err)
	require.Equal(t, 70, best(local))
	require.InDelta(t, 1, local[70], 1e-6)
	pooled, err := Eviction{Policy: SnapKV}.observed(j, 0, 0)
	require.NoError(t, err)
	require.InDelta(t, 0.2, pooled[68], 1e-6)
	require.InDelta(t, 0.2, pooled[72], 1e-6)
	require.Less(t, pooled[67], 0.01)

	all, err := j.accumulated(0, 0)
	require.NoError(t, err)
	var sum float64
	for _, x := range all {
		sum += x
	}
	require.InDelta(t, 200, sum, 1e-3, "every query gives away a whole probability")
	require.InDelta(t, 80, all[20], 0.5, "queries 20 to 99")
	require.InDelta(t, 100, all[70], 0.5, "queries 100 to 199")

	zip, err := j.reconstruction(0, 0, 32)
	require.NoError(t, err)
	require.InDelta(t, 1, zip[70], 1e-6)
	require.Less(t, zip[20], 0.01, "read in the first half only")
	require.Zero(t, zip[180], "nobody reads it 32 tokens later")
}

func TestEviction_AttentionIsCausal(t *testing.T) {
	f := smallFamily(t)
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	require.NoError(t, err)
	j := &job{shapeOf: f.future.shapeOf, c: f.c, engine: engine}
	seen := 0
	require.NoError(t, j.attention(1, 1, 70, func(query int, p []float32) {
		seen++
		require.Len(t, p, query+1)
		if query != 100 {
			return
		}
		// By definition, for the first query head of the second KV head.
		g := (seen - 1) / 90
		q := j.k(f.c.Layers[1].Q, 2+g).Row(query)
		k := j.k(f.c.Layers[1].K, 1)
		var sum float64
		e := make([]float64, query+1)
		for i := range e {
			e[i] = math.Exp(dot(q, k.Row(i)) / 8)
			sum += e[i]
		}
		for i := range e {
			require.InDelta(t, e[i]/sum, float64(p[i]), 1e-5)
		}
	}))
	require.Equal(t, 2*90, seen)
}

func TestExpectedAttention_UndoesRoPE(t *testing.T) {
	// Queries that are one vector before RoPE have that mean and no covariance; with slow
	// frequencies the mean rotation is the rotation of the middle of the horizon.
	const tokens, dim = 64, 8
	for _, layout := range []quant.RopeLayout{quant.RopeHalf, quant.RopeInterleaved} {
		c := one(dim, make([]float32, tokens*dim), make([]float32, tokens*dim))
		c.Geometry.Rope = quant.Rope{Layout: layout, RotaryDim: dim,
			InvFreq: []float32{1e-4, 2e-4, 0, 3e-4}}
		base := []float32{1, 2, 3, 4, 5, 6, 7, 8}
		want := slices.Clone(base)
		for i, f := range c.Geometry.Rope.Frequencies() {
			for p := range tokens {
				row := c.Layers[0].Q[p*dim : (p+1)*dim]
				if i == 0 {
					copy(row, base)
				}
				turn(row, c.Geometry.Rope, i, math.Cos(f*float64(p)), math.Sin(f*float64(p)))
			}
			middle := f * (tokens + (futureHorizon-1)/2.0)
			turn(want, c.Geometry.Rope, i, math.Cos(middle), math.Sin(middle))
		}
		s, err := c.shape("test", true)
		require.NoError(t, err)
		engine, err := matmul.Open(matmul.Options{Workers: 1})
		require.NoError(t, err)
		j := &job{shapeOf: s, c: c, engine: engine}
		mean, cov, err := j.futureQueries(0, 0, 4)
		require.NoError(t, err)
		require.InDeltaSlice(t, want, mean, 0.02)
		for _, x := range cov {
			require.InDelta(t, 0, x, 1e-6)
		}
	}
}

func TestEMS_Merges(t *testing.T) {
	// Rows 10 and 11 are the same K; rows 12.. point elsewhere each. Keeping all but row 11 must
	// put it into row 10.
	const dim, tokens = 16, 16
	c := one(dim, make([]float32, tokens*dim), make([]float32, tokens*dim))
	l := &c.Layers[0]
	for i := range tokens {
		l.K[i*dim+i] = 1
		l.V[i*dim] = float32(i)
	}
	copy(l.K[11*dim:12*dim], l.K[10*dim:11*dim])
	s, err := c.shape("test", true)
	require.NoError(t, err)
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	require.NoError(t, err)
	j := &job{shapeOf: s, c: c, engine: engine}
	scores := make([]float64, tokens)
	for i := range scores {
		scores[i] = 0.1
	}
	scores[10] = 0.3
	out := &CacheLayer{K: make([]float32, tokens*dim), V: make([]float32, tokens*dim)}
	bytes, err := Eviction{Policy: EMS}.merge(j, 0, out, [][]float64{scores}, [][]int{{0, 10, 14}})
	require.NoError(t, err)
	require.EqualValues(t, 3*(2*dim*2+2), bytes)
	require.Equal(t, []int{0, 10, 14}, keptRows(out, 0, tokens))
	require.InDelta(t, math.Log(2), out.Bias[10], 1e-6)
	require.Zero(t, out.Bias[0])
	require.Zero(t, out.Bias[14], "rows that resemble none are dropped")
	require.InDelta(t, (0.3*10+0.1*11)/0.4, out.V[10*dim], 0.01)
	require.Equal(t, l.K[10*dim:11*dim], out.K[10*dim:11*dim])
}
