// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// randomItems draws menus whose damage falls roughly with 4^-bits, as those of codings do.
func randomItems(rng *rand.Rand, n, options int) []plan.Item {
	items := make([]plan.Item, n)
	for i := range items {
		weight := math.Exp(2 * rng.NormFloat64())
		for o := range options {
			items[i].Options = append(items[i].Options, plan.Option{
				Bytes:  int64(4 + 8*o + rng.IntN(5)),
				Damage: weight * math.Pow(4, -float64(o)) * (0.8 + 0.4*rng.Float64()),
			})
		}
	}
	return items
}

// optimum is the exact answer by dynamic programming over bytes.
func optimum(items []plan.Item, budget int) float64 {
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

func TestSolve_NearOptimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	worst, sum := 0.0, 0.0
	const trials = 60
	for range trials {
		items := randomItems(rng, 60, 5)
		budget := 60*8 + rng.IntN(60*24)
		p, err := plan.Solve(items, int64(budget))
		require.NoError(t, err)
		require.LessOrEqual(t, p.Bytes, int64(budget))
		gap := p.Damage/optimum(items, budget) - 1
		require.GreaterOrEqual(t, gap, -1e-9, "better than the optimum")
		worst, sum = max(worst, gap), sum+gap
	}
	t.Logf("above the optimum: mean %.2g, worst %.2g", sum/trials, worst)
	require.Less(t, worst, 0.01)
}

func TestSolve_Properties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 2))
		items := randomItems(rng, rapid.IntRange(0, 40).Draw(rt, "items"),
			rapid.IntRange(1, 7).Draw(rt, "options"))
		low, err := plan.Solve(items, 1<<40)
		require.NoError(rt, err)
		top := low.Bytes
		_, err = plan.Solve(items, -1)
		require.ErrorIs(rt, err, quant.ErrBudget)
		last := math.Inf(1)
		for f := 0; f <= 10; f++ {
			budget := top * int64(f) / 10
			p, err := plan.Solve(items, budget)
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

			q, err := plan.SolveDamage(items, p.Damage)
			require.NoError(rt, err)
			require.LessOrEqual(rt, q.Damage, p.Damage*(1+1e-9)+1e-12)
		}
	})
}

func TestSolve_Refusals(t *testing.T) {
	for _, bad := range [][]plan.Item{
		{{}},
		{{Options: []plan.Option{{Bytes: -1}}}},
		{{Options: []plan.Option{{Damage: math.NaN()}}}},
		{{Options: []plan.Option{{Damage: math.Inf(1)}}}},
		{{Options: []plan.Option{{Damage: -1}}}},
	} {
		_, err := plan.Solve(bad, 100)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err := plan.Solve([]plan.Item{{Options: []plan.Option{{Bytes: 10}}}}, 9)
	require.ErrorIs(t, err, quant.ErrBudget)
	require.ErrorContains(t, err, "least possible is 10")
	_, err = plan.SolveDamage([]plan.Item{{Options: []plan.Option{{Bytes: 10, Damage: 3}}}}, 2)
	require.ErrorIs(t, err, quant.ErrBudget)
	p, err := plan.Solve(nil, 0)
	require.NoError(t, err)
	require.Empty(t, p.Choice)
}

func TestSolve_EqualItems(t *testing.T) {
	it := plan.Item{Options: []plan.Option{{Bytes: 10, Damage: 1}, {Bytes: 20, Damage: 0.25}}}
	p, err := plan.Solve([]plan.Item{it, it, it}, 45)
	require.NoError(t, err)
	require.Equal(t, []int{1, 0, 0}, p.Choice, "ties go to the first item")
	require.InDelta(t, 0.075, p.Slope, 1e-12)
	zero := plan.Item{Options: []plan.Option{{Bytes: 10}, {Bytes: 20}}}
	p, err = plan.Solve([]plan.Item{zero, zero}, 100)
	require.NoError(t, err)
	require.Equal(t, int64(20), p.Bytes, "bytes that save nothing are not spent")
}

func TestMenu_Item(t *testing.T) {
	lm3, lm2 := quant.Coding{Format: quant.LM3}, quant.Coding{Format: quant.LM2}
	m := plan.Menu{K: []quant.Coding{lm3, lm2}, V: []quant.Coding{lm2}}
	it, err := m.Item(plan.Block{Rows: 32, KDamage: 2, VDamage: 1}, 64, 128)
	require.NoError(t, err)
	require.Len(t, it.Options, 2)
	require.Equal(t, int64(lm3.PackedBytes(32, 64)+lm2.PackedBytes(32, 128)), it.Options[0].Bytes)
	require.InDelta(t, 2*lm3.RelativeError()+lm2.RelativeError(), it.Options[0].Damage, 1e-12)
	_, err = m.Item(plan.Block{Rows: 32}, 60, 128)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = m.Item(plan.Block{Rows: 32}, 64, 0)
	require.ErrorIs(t, err, quant.ErrShape)
	one := plan.Menu{K: []quant.Coding{lm3, lm2}}
	it, err = one.Item(plan.Block{Rows: 8, KDamage: 1}, 384, 0)
	require.NoError(t, err)
	require.Len(t, it.Options, 2)
}

func BenchmarkSolve(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{1 << 12, 1 << 16} {
		items := randomItems(rng, n, 16)
		b.Run(fmt.Sprintf("items=%d/options=16", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := plan.Solve(items, int64(40*n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func ExampleSolve() {
	items := []plan.Item{
		{Options: []plan.Option{{Bytes: 100, Damage: 8}, {Bytes: 200, Damage: 2}}}, // read often
		{Options: []plan.Option{{Bytes: 100, Damage: 4}, {Bytes: 200, Damage: 1}}},
	}
	p, err := plan.Solve(items, 300)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Choice, p.Bytes, p.Damage)
	// Output: [1 0] 300 6
}
