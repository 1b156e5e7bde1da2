// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

// randomGroups draws groups of a few variants: fewer items, and so fewer bytes, for more damage.
func randomGroups(t require.TestingT, rng *rand.Rand, groups int) *Problem {
	p := &Problem{}
	p.Classes = randomMenus(rng, 0, 3, false).Classes
	for range groups {
		var g Group
		items, damage := 1+rng.IntN(4), 0.0
		weight := math.Exp(2 * rng.NormFloat64())
		for range 1 + rng.IntN(4) {
			v := Variant{First: len(p.Class), Items: items, Bytes: int64(rng.IntN(3)),
				Damage: damage}
			for range items {
				p.Class = append(p.Class, uint32(rng.IntN(3)))
				p.Sensitivity = append(p.Sensitivity, weight*math.Exp(rng.NormFloat64()))
			}
			g.Variants = append(g.Variants, v)
			items = max(0, items-1-rng.IntN(2))
			damage += weight * rng.Float64()
		}
		var err error
		g.Picks, err = p.Picks(g.Variants)
		require.NoError(t, err)
		p.Groups = append(p.Groups, g)
	}
	return p
}

// groupOptimum is the exact answer by dynamic programming over bytes.
func groupOptimum(p *Problem, budget int) float64 {
	best := make([]float64, budget+1)
	for _, g := range p.Groups {
		next := make([]float64, budget+1)
		for b := range next {
			next[b] = math.Inf(1)
		}
		for _, v := range g.Variants {
			part := make([]float64, budget+1)
			for b := range part {
				part[b] = math.Inf(1)
				if b >= int(v.Bytes) {
					part[b] = best[b-int(v.Bytes)] + v.Damage
				}
			}
			for i := v.First; i < v.First+v.Items; i++ {
				with := make([]float64, budget+1)
				for b := range with {
					with[b] = math.Inf(1)
					for _, o := range p.Classes[p.Class[i]].Options {
						if int(o.Bytes) <= b {
							with[b] = min(with[b], part[b-int(o.Bytes)]+p.Sensitivity[i]*o.Damage)
						}
					}
				}
				part = with
			}
			for b := range next {
				next[b] = min(next[b], part[b])
			}
		}
		best = next
	}
	return best[budget]
}

func TestSolver_NearOptimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 4))
	trials, worst, sum := 40, 0.0, 0.0
	if testing.Short() {
		trials = 10
	}
	for range trials {
		p := randomGroups(t, rng, 80)
		s, err := NewSolver(p)
		require.NoError(t, err)
		least, most := s.Least().Bytes, s.Best().Bytes
		budget := least + rng.Int64N(most-least+1)
		got, err := s.Solve(budget)
		require.NoError(t, err)
		require.LessOrEqual(t, got.Bytes, budget)
		gap := got.Damage/groupOptimum(p, int(budget)) - 1
		require.GreaterOrEqual(t, gap, -1e-9, "better than the optimum")
		worst, sum = max(worst, gap), sum+gap
	}
	t.Logf("above the optimum: mean %.2g, worst %.2g", sum/float64(trials), worst)
	require.Less(t, worst, 0.01)
}

func TestSolver_Properties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 5))
		p := randomGroups(rt, rng, rapid.IntRange(0, 30).Draw(rt, "groups"))
		s, err := NewSolver(p)
		require.NoError(rt, err)
		least, most := s.Least(), s.Best()
		_, err = s.Solve(least.Bytes - 1)
		require.ErrorIs(rt, err, quant.ErrBudget)
		last := math.Inf(1)
		for f := int64(0); f <= 10; f++ {
			budget := least.Bytes + (most.Bytes-least.Bytes)*f/10
			got, err := s.Solve(budget)
			require.NoError(rt, err)
			var bytes int64
			var damage float64
			for g, n := range got.Variant {
				v := p.Groups[g].Variants[n]
				bytes, damage = bytes+v.Bytes, damage+v.Damage
				for i := v.First; i < v.First+v.Items; i++ {
					o := p.Classes[p.Class[i]].Options[got.Choice[i]]
					bytes, damage = bytes+o.Bytes, damage+p.Sensitivity[i]*o.Damage
				}
			}
			require.Equal(rt, bytes, got.Bytes)
			require.LessOrEqual(rt, got.Bytes, budget)
			require.InDelta(rt, damage, got.Damage, 1e-9*(1+damage))
			require.LessOrEqual(rt, got.Damage, last*(1+1e-12), "more bytes, more damage")
			last = min(last, got.Damage)
			fresh, err := NewSolver(p)
			require.NoError(rt, err)
			again, err := fresh.Solve(budget)
			require.NoError(rt, err)
			require.Equal(rt, got, again, "a plan depends on the budgets before it")
		}
		require.InDelta(rt, most.Damage, last, 1e-9*(1+most.Damage))
	})
}

// Every budget of small problems, in which a plan that changes by one group shows.
func TestSolver_EveryBudget(t *testing.T) {
	for seed := uint64(80); seed < 90; seed++ {
		p := randomGroups(t, rand.New(rand.NewPCG(seed, 5)), 1+int(seed)%4)
		everyBudget(t, p)
	}
}

// everyBudget holds that more bytes are never more damage, and returns the damage of the last budget.
func everyBudget(t *testing.T, p *Problem) (last float64) {
	t.Helper()
	s, err := NewSolver(p)
	require.NoError(t, err)
	last = math.Inf(1)
	for budget := s.Least().Bytes; budget <= s.Best().Bytes; budget++ {
		got, err := s.Solve(budget)
		require.NoError(t, err)
		require.LessOrEqual(t, got.Bytes, budget)
		require.LessOrEqual(t, got.Damage, last*(1+1e-12), "%d groups, %d bytes", len(p.Groups), budget)
		last = got.Damage
	}
	return last
}

// Damages at both ends of what float64 holds.
func TestSolver_Extremes(t *testing.T) {
	tiny := &Problem{}
	huge := &Problem{}
	huge.Classes = []Class{{Options: []Option{{Bytes: 0, Damage: 1e10}, {Bytes: 1}}}}
	huge.Class, huge.Sensitivity = []uint32{0}, []float64{1e303}
	for _, x := range []struct {
		p        *Problem
		variants []Variant
	}{
		{tiny, []Variant{{Bytes: 5000}, {Bytes: 10, Damage: math.SmallestNonzeroFloat64}}},
		{huge, []Variant{{Bytes: 11}, {Bytes: 5, Damage: 1e308}, {Bytes: 10, Items: 1}}},
	} {
		picks, err := x.p.Picks(x.variants)
		require.NoError(t, err)
		x.p.Groups = []Group{{Variants: x.variants, Picks: picks}}
		require.Zero(t, everyBudget(t, x.p))
	}
}

// One variant each: the plan of solveItems over all items.
func TestSolver_SingleVariant(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	flat := randomMenus(rng, 500, 4, false)
	p := flat
	for i := 0; i < 500; i += 5 {
		p.Groups = append(p.Groups, Group{Variants: []Variant{{First: i, Items: 5}}})
	}
	s, err := NewSolver(p)
	require.NoError(t, err)
	budget := (s.Least().Bytes + s.Best().Bytes) / 2
	want, err := solveItems(flat, budget)
	require.NoError(t, err)
	got, err := s.Solve(budget)
	require.NoError(t, err)
	want.Variant = make([]int, len(p.Groups))
	require.Equal(t, want, got)
}

// BenchmarkSolver plans 32 layers x 8 KV heads x 8K tokens, each segment of 512 tokens in six
// variants.
func BenchmarkSolver(b *testing.B) {
	flat := largeItems(1)
	rng := rand.New(rand.NewPCG(8, 8))
	p := &Problem{}
	p.Classes = flat.Classes
	for head := range 256 {
		for range 16 {
			var g Group
			weight := math.Exp(rng.NormFloat64())
			for level := range 6 {
				v := Variant{First: len(p.Class), Items: 2 * (16 - 3*level),
					Damage: weight * float64(level*level) / 50}
				for range v.Items {
					p.Class = append(p.Class, uint32(2*head))
					p.Sensitivity = append(p.Sensitivity, weight*math.Exp(2*rng.NormFloat64()))
				}
				g.Variants = append(g.Variants, v)
			}
			sub := Problem{Classes: p.Classes[2*head : 2*head+1]}
			first := g.Variants[0].First
			sub.Class = make([]uint32, len(p.Class)-first)
			sub.Sensitivity = p.Sensitivity[first:]
			local := make([]Variant, len(g.Variants))
			for i, v := range g.Variants {
				local[i] = v
				local[i].First -= first
			}
			var err error
			g.Picks, err = sub.Picks(local)
			require.NoError(b, err)
			p.Groups = append(p.Groups, g)
		}
	}
	s, err := NewSolver(p)
	require.NoError(b, err)
	budget := s.Best().Bytes / 8
	b.Run("layers=32/kv_heads=8/tokens=8K/variants=6", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := s.Solve(budget + budget/100*int64(i%5)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestSolver_Refusals(t *testing.T) {
	ok := Problem{Classes: []Class{{Options: []Option{{Bytes: 1}}}},
		Class: []uint32{0, 0}, Sensitivity: []float64{1, 1}}
	one := []Pick{{Variant: 0}}
	for name, groups := range map[string][]Group{
		"no variants":   {{}},
		"items left":    {{Variants: []Variant{{Items: 1}}}},
		"items beyond":  {{Variants: []Variant{{Items: 3}}}},
		"items twice":   {{Variants: []Variant{{Items: 2}, {Items: 2}}, Picks: one}},
		"no picks":      {{Variants: []Variant{{Items: 1}, {First: 1, Items: 1}}}},
		"wrong pick":    {{Variants: []Variant{{Items: 2}}, Picks: []Pick{{Variant: 1}}}},
		"rising slopes": {{Variants: []Variant{{Items: 2}}, Picks: []Pick{{1, 0}, {2, 0}}}},
		"NaN damage":    {{Variants: []Variant{{Items: 2, Damage: math.NaN()}}}},
		"bytes":         {{Variants: []Variant{{Items: 2, Bytes: -1}}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := ok
			p.Groups = groups
			_, err := NewSolver(&p)
			require.ErrorIs(t, err, quant.ErrShape)
		})
	}
	_, err := ok.Picks(nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = ok.Picks([]Variant{{First: 1, Items: 2}})
	require.ErrorIs(t, err, quant.ErrShape)
	short := ok
	short.Sensitivity = nil
	_, err = short.Picks([]Variant{{Items: 1}})
	require.ErrorIs(t, err, quant.ErrShape)
}
