// SPDX-License-Identifier: Apache-2.0

package half

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/quant"
)

// TestWiden_AllValues holds every binary16 to package quant.
func TestWiden_AllValues(t *testing.T) {
	src := make([]byte, 2<<16)
	for h := range 1 << 16 {
		binary.LittleEndian.PutUint16(src[2*h:], uint16(h))
	}
	dst := make([]float32, 1<<16)
	Widen(dst, src)
	for h, v := range dst {
		if want := quant.F16ToF32(uint16(h)); math.Float32bits(v) != math.Float32bits(want) {
			t.Fatalf("%#04x: %#08x, want %#08x", h, math.Float32bits(v), math.Float32bits(want))
		}
	}
}

// narrowed is what Narrow should give.
func narrowed(v float32) uint16 {
	if !math.IsInf(float64(v), 0) && v == v {
		v = min(max(v, -65504), 65504)
	}
	return quant.F32ToF16(v)
}

// TestNarrow_LikeQuant goes over every exponent with mantissas about all ties.
func TestNarrow_LikeQuant(t *testing.T) {
	var src []float32
	rng := rand.New(rand.NewPCG(1, 1))
	for e := range uint32(512) {
		for _, m := range []uint32{0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fe000, 0x7fefff, 0x7ff000,
			0x7fffff, rng.Uint32N(1 << 23), rng.Uint32N(1 << 23)} {
			src = append(src, math.Float32frombits(e<<23|m))
		}
	}
	dst := make([]byte, 2*len(src))
	Narrow(dst, src)
	for i, v := range src {
		if got := binary.LittleEndian.Uint16(dst[2*i:]); got != narrowed(v) {
			t.Fatalf("%v (%#08x): %#04x, want %#04x", v, math.Float32bits(v), got, narrowed(v))
		}
	}
}

// TestLengths also holds that nothing behind the run is written, wherever a value stops the fast way.
func TestLengths(t *testing.T) {
	for n := range 150 {
		for _, odd := range []int{-1, 0, 7, 8, 70, 149} {
			wide, packed := make([]float32, n+16), make([]byte, 2*n+32)
			for i := range wide {
				wide[i] = float32(i) / 3
				if i == odd {
					wide[i] = float32(math.Inf(-1))
				}
			}
			for i := range packed {
				packed[i] = 0xa5
			}
			Narrow(packed, wide[:n])
			for i := range n {
				if got := binary.LittleEndian.Uint16(packed[2*i:]); got != narrowed(wide[i]) {
					t.Fatalf("n=%d odd=%d: value %d narrows to %#04x", n, odd, i, got)
				}
			}
			back := make([]float32, n+16)
			Widen(back[:n:n], packed)
			for i, v := range back {
				want := float32(0)
				if i < n {
					want = quant.F16ToF32(binary.LittleEndian.Uint16(packed[2*i:]))
				}
				if v != want {
					t.Fatalf("n=%d odd=%d: value %d widens to %v, want %v", n, odd, i, v, want)
				}
			}
			for i, b := range packed[2*n:] {
				if b != 0xa5 {
					t.Fatalf("n=%d odd=%d: byte %d behind the run was written", n, odd, i)
				}
			}
		}
	}
}

// A value that is not finite is found at every place of every length, and nothing else is taken for one.
func TestFinite(t *testing.T) {
	for n := range 140 {
		x := make([]float32, n)
		for i := range x {
			x[i] = math.MaxFloat32
			if i%2 == 0 {
				x[i] = -math.MaxFloat32
			}
		}
		if !Finite(x) || !finiteGeneric(x) {
			t.Fatalf("%d finite values: not finite", n)
		}
		for at := range x {
			was := x[at]
			for _, v := range []float64{math.Inf(1), math.Inf(-1), math.NaN(), math.Copysign(math.NaN(), -1)} {
				x[at] = float32(v)
				if Finite(x) || finiteGeneric(x) {
					t.Fatalf("%v at %d of %d: finite", v, at, n)
				}
			}
			x[at] = was
		}
	}
}
