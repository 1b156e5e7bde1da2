// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

// randomItems draws menus whose damage falls roughly with 4^-bits, as those of codings do.
func randomItems(rng *rand.Rand, n, options int) []item {
	items := make([]item, n)
	for i := range items {
		weight := math.Exp(2 * rng.NormFloat64())
		for o := range options {
			items[i].Options = append(items[i].Options, Option{
				Bytes:  int64(4 + 8*o + rng.IntN(5)),
				Damage: weight * math.Pow(4, -float64(o)) * (0.8 + 0.4*rng.Float64()),
			})
		}
	}
	return items
}

// optimum is the exact answer by dynamic programming over bytes.
func optimum(items []item, budget int) float64 {
	best := make([]float64, budget+1)
	for _, it := range items {
		next := make([]float64, budget+1)
		for b := range next {
			next[b] = math.Inf(1)
			for _, o := range it.Options {
				if int(o.Bytes) <= b {
					next[b] = min(next[b], best[b-int(o.Bytes)]+o.Damage)
				}
			}
		}
		best = next
	}
	return best[budget]
}

func TestOracle_NearOptimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	worst, sum := 0.0, 0.0
	const trials = 60
	for range trials {
		items := randomItems(rng, 60, 5)
		budget := 60*8 + rng.IntN(60*24)
		p, err := solve(items, int64(budget))
		require.NoError(t, err)
		require.LessOrEqual(t, p.Bytes, int64(budget))
		gap := p.Damage/optimum(items, budget) - 1
		require.GreaterOrEqual(t, gap, -1e-9, "better than the optimum")
		worst, sum = max(worst, gap), sum+gap
	}
	t.Logf("above the optimum: mean %.2g, worst %.2g", sum/trials, worst)
	require.Less(t, worst, 0.01)
}

func TestOracle_Properties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 2))
		items := randomItems(rng, rapid.IntRange(0, 40).Draw(rt, "items"),
			rapid.IntRange(1, 7).Draw(rt, "options"))
		low, err := solve(items, 1<<40)
		require.NoError(rt, err)
		top := low.Bytes
		_, err = solve(items, -1)
		require.ErrorIs(rt, err, quant.ErrBudget)
		last := math.Inf(1)
		for f := 0; f <= 10; f++ {
			budget := top * int64(f) / 10
			p, err := solve(items, budget)
			if err != nil {
				require.ErrorIs(rt, err, quant.ErrBudget)
				continue
			}
			require.LessOrEqual(rt, p.Bytes, budget)
			var bytes int64
			var damage float64
			for i, c := range p.Choice {
				bytes += items[i].Options[c].Bytes
				damage += items[i].Options[c].Damage
			}
			require.Equal(rt, bytes, p.Bytes)
			require.InDelta(rt, damage, p.Damage, 1e-9)
			require.LessOrEqual(rt, p.Damage, last*(1+1e-12), "more bytes, more damage")
			last = p.Damage
		}
	})
}

func TestOracle_Refusals(t *testing.T) {
	for _, bad := range [][]item{
		{{}},
		{{Options: []Option{{Bytes: -1}}}},
		{{Options: []Option{{Damage: math.NaN()}}}},
		{{Options: []Option{{Damage: math.Inf(1)}}}},
		{{Options: []Option{{Damage: -1}}}},
	} {
		_, err := solve(bad, 100)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err := solve([]item{{Options: []Option{{Bytes: 10}}}}, 9)
	require.ErrorIs(t, err, quant.ErrBudget)
	require.ErrorContains(t, err, "least possible is 10")
	p, err := solve(nil, 0)
	require.NoError(t, err)
	require.Empty(t, p.Choice)
}

func TestOracle_EqualItems(t *testing.T) {
	it := item{Options: []Option{{Bytes: 10, Damage: 1}, {Bytes: 20, Damage: 0.25}}}
	p, err := solve([]item{it, it, it}, 45)
	require.NoError(t, err)
	require.Equal(t, []int{1, 0, 0}, p.Choice, "ties go to the first item")
	require.InDelta(t, 0.075, p.Slope, 1e-12)
	zero := item{Options: []Option{{Bytes: 10}, {Bytes: 20}}}
	p, err = solve([]item{zero, zero}, 100)
	require.NoError(t, err)
	require.Equal(t, int64(20), p.Bytes, "bytes that save nothing are not spent")
}

func BenchmarkOracle(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{1 << 12, 1 << 16} {
		items := randomItems(rng, n, 16)
		b.Run(fmt.Sprintf("items=%d/options=16", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := solve(items, int64(40*n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
