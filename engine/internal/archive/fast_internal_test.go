// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"math/rand/v2"
	"slices"
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

// TestQuickPair_LikeRow holds two rows at a time to the same rows one by one: symbols and exceptions.
func TestQuickPair_LikeRow(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 5))
	odd := []float32{0, float32(math.Copysign(0, -1)), float32(math.NaN()), float32(math.Inf(1)), maxLevel, -maxLevel,
		maxLevel - 0.25, 1.5, 1e-40, 3e38}
	pairs, slow, dead := 0, 0, 0
	for _, lambda := range []float32{0, 0.12, 0.2} {
		q := newCoder(DefaultTables(), true).quantizer(lambda)
		for range 3000 {
			l := &lane{rows: 2, dim: groupSize * (1 + rng.IntN(12))}
			l.step8 = []int16{int16(rng.IntN(60) - 30), int16(rng.IntN(60) - 30)}
			loud := rng.IntN(70) - 20
			y := make([]float32, 2*l.dim)
			for range l.dim {
				l.std8 = append(l.std8, int16(loud-rng.IntN(1+rng.IntN(60))))
			}
			for i := range y {
				y[i] = float32(rng.NormFloat64() * math.Exp2(float64(l.std8[i%l.dim])/8))
				if rng.IntN(64) == 0 {
					y[i] = odd[rng.IntN(len(odd))]
				}
			}
			var known []*rowScales
			var of [2]*rowScales
			var inv [2]float32
			for r := range of {
				known, of[r] = q.scalesOf(known, l, l.step8[r])
				inv[r] = 1 / step(1, int(l.step8[r]))
			}
			want, got := new(levels), new(levels)
			want.codes, got.codes = make([]uint16, 2*l.dim), make([]uint16, 2*l.dim)
			if !got.quickPair(q, l, y, 0, of[0], of[1], inv) {
				t.Skip("this machine takes rows one by one")
			}
			for r := range of {
				want.row(q, want.codes[r*l.dim:(r+1)*l.dim], y[r*l.dim:(r+1)*l.dim], of[r], inv[r], r)
				slow += len(want.slow[r])
			}
			if !slices.Equal(got.codes, want.codes) {
				t.Fatalf("std8=%v step8=%v y=%v: symbols %v, want %v", l.std8, l.step8, y, got.codes, want.codes)
			}
			for r := range of {
				if !slices.EqualFunc(got.slow[r], want.slow[r], func(a, b slowLevel) bool {
					return a == b || a.v != a.v && b.v != b.v && a.scale == b.scale && a.prior8 == b.prior8
				}) {
					t.Fatalf("std8=%v step8=%v y=%v: row %d left %v, want %v", l.std8, l.step8, y, r, got.slow[r], want.slow[r])
				}
			}
			pairs++
			for _, c := range got.codes {
				if c == codeNone {
					dead++
				}
			}
		}
	}
	if pairs == 0 || slow == 0 || dead == 0 {
		t.Fatalf("%d pairs, %d slow and %d dead components: not all kinds were met", pairs, slow, dead)
	}
}

// TestSide_LikePlainGo holds what the machine does to a model of side symbols to plain Go, from a new model on to
// the most lopsided ones.
func TestSide_LikePlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 4))
	for range 300 {
		fast, slow := newSideModel(), newSideModel()
		few := 1 + rng.IntN(sideSyms)
		for n := range 400 {
			slot := uint16(rng.IntN(sideOne))
			if n%4 == 0 {
				slot = slow.cum[rng.IntN(sideSyms)] // where a symbol starts
			}
			want := slow.findGeneric(slot)
			if got := fast.find(slot); got != want || slow.cum[want] > slot || slow.cum[want+1] <= slot {
				t.Fatalf("slot %d of %v: symbol %d, want %d", slot, slow.cum, got, want)
			}
			s, rate := rng.IntN(few), 2+rng.IntN(5)
			fast.move(s, rate)
			slow.moveGeneric(s, rate)
			if fast != slow {
				t.Fatalf("symbol %d at rate %d: %v, want %v", s, rate, fast.cum, slow.cum)
			}
		}
	}
}
