// SPDX-License-Identifier: Apache-2.0

package trellis_test

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/quant/trellis"
)

var train = flag.Int("train", 0, "print the levels after this many steps of training instead of testing them")

// step returns the mean squared error of n Gaussian values under levels, and the centroid of every level:
// generalised Lloyd. Levels mirror, so that a value counts for its mirror image as well.
func step(levels []float32, width, n int, rng *rand.Rand) (float64, []float64) {
	const row = 4096
	sums, counts := make([]float64, len(levels)), make([]float64, len(levels))
	var damage float64
	x := make([]float32, row)
	for range n / row {
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		for i, k := range path(levels, x) {
			e := float64(x[i] - levels[k])
			damage += e * e
			sums[k] += float64(x[i])
			counts[k]++
			sums[len(levels)-1-k] -= float64(x[i])
			counts[len(levels)-1-k]++
		}
	}
	for k := range sums {
		sums[k] /= math.Max(counts[k], 1)
	}
	return damage / float64(n/row*row), sums
}

// path is the trellis search with any levels, from and to any state, in float64.
func path(levels, x []float32) []int {
	var cost [trellis.States]float64
	type choice struct {
		level [trellis.States]int
		from  [trellis.States]int
	}
	choices := make([]choice, len(x))
	for i, v := range x {
		var best [4]float64
		var which [4]int
		for k := range best {
			best[k] = math.Inf(1)
			for l := k; l < len(levels); l += 4 {
				if d := float64(v-levels[l]) * float64(v-levels[l]); d < best[k] {
					best[k], which[k] = d, l
				}
			}
		}
		var next [trellis.States]float64
		for s := range next {
			next[s] = math.Inf(1)
		}
		for s := range cost {
			for u := range 2 {
				to, k := trellis.Next(s, u), trellis.Subset(s, u)
				if c := cost[s] + best[k]; c < next[to] {
					next[to] = c
					choices[i].level[to], choices[i].from[to] = which[k], s
				}
			}
		}
		cost = next
	}
	state := 0
	for s := range cost {
		if cost[s] < cost[state] {
			state = s
		}
	}
	out := make([]int, len(x))
	for i := len(x) - 1; i >= 0; i-- {
		out[i], state = choices[i].level[state], choices[i].from[state]
	}
	return out
}

// TestLevels_Train prints new levels: go test ./quant/trellis -run Train -train 60
func TestLevels_Train(t *testing.T) {
	if *train == 0 {
		t.Skip("no -train")
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for width := 1; width <= trellis.MaxWidth; width++ {
		n := 2 << width
		levels := make([]float32, n)
		for k := range levels { // quantiles of a wider Gaussian, as Lloyd-Max levels lie
			levels[k] = float32(1.6 * math.Sqrt2 * math.Erfinv(2*(float64(k)+.5)/float64(n)-1))
		}
		var damage float64
		for i := range *train {
			var c []float64
			damage, c = step(levels, width, 1<<17<<(4*(i+1) / *train), rng)
			for k := range levels {
				levels[k] = float32(c[k])
			}
		}
		fmt.Printf("// %.5f\n{", damage)
		for _, l := range levels[n/2:] {
			fmt.Printf("%d, ", int(math.Round(float64(l)*4096)))
		}
		fmt.Println("},")
	}
}
