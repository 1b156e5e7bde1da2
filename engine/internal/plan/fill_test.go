// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
)

// randomMenus draws classes and items. With few distinct numbers, all sums of powers of two, slopes
// of different items tie exactly and nothing rounds.
func randomMenus(rng *rand.Rand, n, classes int, dyadic bool) *Problem {
	p := &Problem{}
	for range classes {
		var c Class
		bytes, damage := int64(0), 1.0
		for range 1 + rng.IntN(6) {
			step := int64(8) << rng.IntN(3)
			if !dyadic {
				step += int64(rng.IntN(9))
			}
			bytes += step
			c.Options = append(c.Options, Option{Bytes: bytes, Damage: damage})
			if dyadic {
				damage *= []float64{0.5, 0.25, 0.125}[rng.IntN(3)]
			} else {
				damage *= 0.15 + 0.5*rng.Float64()
			}
		}
		rng.Shuffle(len(c.Options), func(i, j int) {
			c.Options[i], c.Options[j] = c.Options[j], c.Options[i]
		})
		p.Classes = append(p.Classes, c)
	}
	for range n {
		v := math.Exp(3 * rng.NormFloat64())
		if dyadic {
			v = math.Ldexp(1, rng.IntN(6))
		}
		if rng.IntN(20) == 0 {
			v = 0
		}
		p.Class = append(p.Class, uint32(rng.IntN(classes)))
		p.Sensitivity = append(p.Sensitivity, v)
	}
	return p
}

// written returns the items of a problem one by one, as the oracle wants them.
func written(p *Problem) []item {
	items := make([]item, len(p.Class))
	for i, c := range p.Class {
		items[i].Options = slices.Clone(p.Classes[c].Options)
		for j := range items[i].Options {
			items[i].Options[j].Damage *= p.Sensitivity[i]
		}
	}
	return items
}

// The fast planner is the general one: the same choices where slopes are exact, ties and all; the
// same bytes and damage up to slopes that rounding swaps where they are not.
func TestSolveItems_AgreesWithOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 7))
		dyadic := rapid.Bool().Draw(rt, "dyadic")
		n := rapid.SampledFrom([]int{0, 1, 2, 40, 400, 9000}).Draw(rt, "items")
		p := randomMenus(rng, n, rapid.IntRange(1, 5).Draw(rt, "classes"), dyadic)
		items := written(p)
		least, most := leastBytes(items), mostBytes(items)
		w, err := newWalk(p)
		require.NoError(rt, err)
		require.Equal(rt, least, w.bytes)
		_, err = solveItems(p, least-1)
		require.ErrorIs(rt, err, quant.ErrBudget)
		require.ErrorContains(rt, err, fmt.Sprintf("least possible is %d", least))
		for _, budget := range []int64{least, least + rng.Int64N(most-least+1), most, most + 100} {
			want, err := solve(items, budget)
			require.NoError(rt, err)
			got, err := solveItems(p, budget)
			require.NoError(rt, err)
			require.LessOrEqual(rt, got.Bytes, budget)
			var bytes int64
			var damage float64
			for i, c := range got.Choice {
				bytes += items[i].Options[c].Bytes
				damage += items[i].Options[c].Damage
			}
			require.Equal(rt, bytes, got.Bytes)
			require.InDelta(rt, damage, got.Damage, 1e-9*(1+damage))
			if dyadic {
				for i, c := range got.Choice {
					require.Equal(rt, want.Choice[i], int(c), "item %d of %d", i, n)
				}
				require.Equal(rt, want.Slope, got.Slope)
				continue
			}
			require.InDelta(rt, want.Damage, got.Damage, 1e-9*(1+want.Damage))
			require.InDelta(rt, want.Slope, got.Slope, 1e-9*(1+want.Slope))
		}
	})
}

func TestSolveItems_NearOptimum(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	worst := 0.0
	for range 60 {
		p := randomMenus(rng, 60, 3, false)
		items := written(p)
		least, most := leastBytes(items), mostBytes(items)
		budget := least + rng.Int64N(most-least+1)
		got, err := solveItems(p, budget)
		require.NoError(t, err)
		if best := optimum(items, int(budget)); best > 0 {
			worst = max(worst, got.Damage/best-1)
		}
	}
	t.Logf("worst above the optimum: %.2g", worst)
	require.Less(t, worst, 0.01)
}

// All slopes equal: more steps tie than are ever sorted at once in the usual case.
func TestSolveItems_AllEqual(t *testing.T) {
	const n = 1 << 16
	p := &Problem{Classes: []Class{{Options: []Option{{Bytes: 10, Damage: 1},
		{Bytes: 20, Damage: 0.25}}}}, Class: make([]uint32, n), Sensitivity: make([]float64, n)}
	for i := range p.Sensitivity {
		p.Sensitivity[i] = 3
	}
	got, err := solveItems(p, 10*n+10*1000+5)
	require.NoError(t, err)
	require.Equal(t, int64(10*n+10*1000), got.Bytes)
	require.InEpsilon(t, 0.225, got.Slope, 1e-12)
	for i, c := range got.Choice {
		require.Equal(t, i < 1000, c == 1, "ties go to the first items: item %d", i)
	}
	// One item that matters far more, so that the window of slopes spans both.
	p.Sensitivity[77] = 1e12
	got, err = solveItems(p, 10*n+10)
	require.NoError(t, err)
	require.Equal(t, uint8(1), got.Choice[77])
	require.Equal(t, int64(10*n+10), got.Bytes)
}

// Sensitivities of an item move its own choice: an item that matters more never gets fewer bytes
// than one of the same class that matters less, but for the items around the break.
func TestSolver_AtSlope(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	p := randomMenus(rng, 3000, 2, false)
	p.Groups = []Group{{Variants: []Variant{{Items: len(p.Class)}}}}
	s, err := NewSolver(p)
	require.NoError(t, err)
	got, err := s.Solve((s.Least().Bytes + mostBytes(written(p))) / 2)
	require.NoError(t, err)
	at := s.AtSlope(got.Slope).Choice
	differ := 0
	for i := range at {
		if at[i] != got.Choice[i] {
			differ++
		}
	}
	require.LessOrEqual(t, differ, 32, "more than the core differs")
	order := make([]int, len(at))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return int(math.Copysign(1, p.Sensitivity[a]-p.Sensitivity[b]))
	})
	last := map[uint32]int64{}
	for _, i := range order {
		b := p.Classes[p.Class[i]].Options[at[i]].Bytes
		require.GreaterOrEqual(t, b, last[p.Class[i]])
		last[p.Class[i]] = b
	}
}

func TestSolveItems_Refusals(t *testing.T) {
	ok := Class{Options: []Option{{Bytes: 1, Damage: 1}}}
	for name, bad := range map[string]*Problem{
		"no options":      {Classes: []Class{{}}},
		"too many":        {Classes: []Class{{Options: make([]Option, 256)}}},
		"negative bytes":  {Classes: []Class{{Options: []Option{{Bytes: -1}}}}},
		"NaN damage":      {Classes: []Class{{Options: []Option{{Damage: math.NaN()}}}}},
		"unknown class":   {Classes: []Class{ok}, Class: []uint32{1}, Sensitivity: []float64{1}},
		"NaN":             {Classes: []Class{ok}, Class: []uint32{0}, Sensitivity: []float64{math.NaN()}},
		"infinite":        {Classes: []Class{ok}, Class: []uint32{0}, Sensitivity: []float64{math.Inf(1)}},
		"negative weight": {Classes: []Class{ok}, Class: []uint32{0}, Sensitivity: []float64{-1}},
		"lengths":         {Classes: []Class{ok}, Class: []uint32{0}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := solveItems(bad, 1<<40)
			require.ErrorIs(t, err, quant.ErrShape)
		})
	}
}

// largeItems is a cache of 64 layers x 8 KV heads x 128K tokens in blocks of 32, K and V chosen
// apart: 4.2 M items in 1,024 classes of six codings, weights spread over five orders of magnitude.
func largeItems(blocks int) *Problem {
	rng := rand.New(rand.NewPCG(1, 2))
	codings := []quant.Coding{{Format: quant.LM1}, {Format: quant.LM2}, {Format: quant.LM3},
		{Format: quant.LM4}, {Format: quant.U8}, {Format: quant.F16}}
	const heads = 64 * 8
	p := &Problem{}
	for range 2 * heads {
		var c Class
		bend := 1 + rng.Float64()
		for j, coding := range codings {
			c.Options = append(c.Options, Option{Bytes: int64(coding.PackedBytes(32, 128)),
				Damage: coding.RelativeError() * math.Pow(bend, float64(-j))})
		}
		p.Classes = append(p.Classes, c)
	}
	for h := range 2 * heads {
		for range blocks {
			p.Class = append(p.Class, uint32(h))
			p.Sensitivity = append(p.Sensitivity, math.Exp(2*rng.NormFloat64()))
		}
	}
	return p
}

func BenchmarkSolveItems(b *testing.B) {
	for _, bench := range []struct {
		name   string
		blocks int
	}{{"layers=64/kv_heads=8/tokens=128K", 4096}, {"layers=64/kv_heads=8/tokens=8K", 256}} {
		p := largeItems(bench.blocks)
		for _, bits := range []float64{1.5, 2.75, 4.25} {
			b.Run(fmt.Sprintf("%s/bits=%g", bench.name, bits), func(b *testing.B) {
				b.ReportAllocs()
				budget := int64(bits / 8 * 32 * 128 * float64(len(p.Class)))
				for b.Loop() {
					if _, err := solveItems(p, budget); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(p.Class)), "items")
			})
		}
	}
}
