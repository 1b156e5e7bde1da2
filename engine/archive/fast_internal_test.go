// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestQuick_LikeGroup holds the machine's way of choosing levels to plain Go: the same symbols, sums and
// exceptions.
func TestQuick_LikeGroup(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	odd := []float32{0, float32(math.Copysign(0, -1)), float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)),
		maxLevel, -maxLevel, maxLevel - 0.25, 0.5, -0.5, 1e-40, 3e38}
	kinds := [3]int{}
	for _, lambda := range []float32{0, 0.12, 3} {
		q := newCoder(DefaultTables(), true).quantizer(lambda)
		if _, _, ok := new(levels).quick(q, make([]uint16, groupSize), make([]float32, groupSize),
			make([]int16, groupSize), 0, 1); !ok {
			t.Skip("this machine has plain Go alone")
		}
		for range 20000 {
			var s levels
			y, scale := make([]float32, groupSize), make([]int16, groupSize)
			got, want := make([]uint16, groupSize), make([]uint16, groupSize)
			for i := range y {
				scale[i] = int16(deadScale - 6 + rng.IntN(classTop-deadScale+16))
				y[i] = float32(rng.NormFloat64() * math.Exp2(float64(scale[i])/8))
				if rng.IntN(16) == 0 {
					y[i] = odd[rng.IntN(len(odd))]
				}
			}
			shift, inv := rng.IntN(64)-24, float32(math.Exp2(rng.Float64()))
			sum, slow := s.group(q, want, y, scale, shift, inv)
			quickSum, quickSlow, _ := s.quick(q, got, y, scale, shift, inv)
			if sum != quickSum || slow != quickSlow {
				t.Fatalf("y=%v scale=%v shift=%d: sum %d, slow %#x, want %d, %#x", y, scale, shift, quickSum, quickSlow,
					sum, slow)
			}
			for i := range want {
				if slow>>i&1 != 0 {
					kinds[0]++
					continue
				}
				kinds[1+int(want[i]&1)]++
				if got[i] != want[i] {
					t.Fatalf("y=%v scale=%v shift=%d: symbol %d is %d, want %d", y, scale, shift, i, got[i], want[i])
				}
			}
		}
	}
	for _, n := range kinds {
		if n == 0 {
			t.Fatalf("not all kinds of components were met: %v", kinds)
		}
	}
}
