// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant/layout"
)

// The errors of codings are those of their codebooks on a Gaussian.
func TestGaussDistortion_OfCodebooks(t *testing.T) {
	for f := LM1; f <= TQMSE4; f++ {
		var thresholds, half []float64
		switch {
		case f.Nested():
			for i, v := range layout.NestedThresholds(f.Bits()) {
				thresholds = append(thresholds, float64(v))
				half = append(half, float64(layout.Nested(f.Bits())[1<<(f.Bits()-1)+i]))
			}
		case f >= TQMSE1:
			for i, v := range layout.LloydMaxThresholds(f.Bits()) {
				thresholds = append(thresholds, float64(v))
				half = append(half, float64(layout.LloydMax(f.Bits())[1<<(f.Bits()-1)+i]))
			}
		default:
			continue
		}
		density := func(x float64) float64 { return math.Exp(-x*x/2) / math.Sqrt(2*math.Pi) }
		var xc, cc float64
		for k, a := range thresholds {
			b := math.Inf(1)
			if k+1 < len(thresholds) {
				b = thresholds[k+1]
			}
			xc += 2 * (density(a) - density(b)) * half[k]
			cc += (math.Erfc(a/math.Sqrt2) - math.Erfc(b/math.Sqrt2)) * half[k] * half[k]
		}
		require.InDelta(t, 1-xc*xc/cc, gaussDistortion(f), 1e-6, f)
		if f.Nested() {
			require.InDelta(t, 64*xc/cc, leastSquaresScale(f), 1e-5, f)
		}
	}
}

func TestLog8_Codes(t *testing.T) {
	const base = 3.7
	for k := range 255 {
		s := layout.Log8Scale(base, uint8(k))
		require.Equal(t, uint8(k), log8Code(base, s, false))
		require.Equal(t, uint8(k), log8Code(base, s, true))
		up := s * 1.001
		if k > 0 {
			require.Equal(t, uint8(k), log8Code(base, up, false))
			require.Equal(t, uint8(k-1), log8Code(base, up, true))
		}
	}
	require.Equal(t, uint8(255), log8Code(base, 0, false))
	require.Equal(t, uint8(254), log8Code(base, 1e-30, false), "a scale that is not zero stays so")
}

func TestHalf_EveryBinary16(t *testing.T) {
	for h := range 1 << 16 {
		f := F16ToF32(uint16(h))
		require.Equal(t, uint16(h), F32ToF16(f), "binary16 %#04x", h)
		require.Equal(t, uint16(h), F32ToBF16(BF16ToF32(uint16(h))))
		if h&0x7c00 == 0x7c00 {
			continue
		}
		// Against the definition: sign * man * 2^(exp-25), and halfway points to even.
		exp, man := h>>10&31, h&0x3ff
		v := math.Ldexp(float64(man), -24)
		if exp > 0 {
			v = math.Ldexp(float64(man+1024), exp-25)
		}
		if h&0x8000 != 0 {
			v = -v
		}
		require.Equal(t, v, float64(f))
		if h&0x7fff < 0x7bff {
			mid := float32((float64(f) + float64(F16ToF32(uint16(h+1)))) / 2)
			require.Equal(t, uint16(h+h&1), F32ToF16(mid), "halfway above %#04x", h)
			next := F16ToF32(uint16(h + 1))
			require.Equal(t, uint16(h), F32ToF16(math.Nextafter32(mid, f)))
			require.Equal(t, uint16(h+1), F32ToF16(math.Nextafter32(mid, next)))
		}
	}
	require.Equal(t, uint16(0x7bff), F32ToF16(65519.996))
	require.Equal(t, uint16(0x7c00), F32ToF16(65520))
	require.Equal(t, uint16(0x7e00), F32ToF16(math.Float32frombits(0x7f800001))|0x200,
		"a NaN stays a NaN")
}

func TestTreeSum_Order(t *testing.T) {
	for n := 0; n < 70; n++ {
		x := make([]float32, n)
		var want float64
		for i := range x {
			x[i] = float32(i*i%17) - 3
			want += float64(x[i])
		}
		require.Equal(t, float32(want), treeSum(x), "n=%d", n)
	}
	// (a0+a4)+(a2) and (a1)+(a3): with these values any other order differs.
	require.Equal(t, float32(1<<24+2)+float32(1<<24), treeSum([]float32{1 << 24, 1 << 24, 1, 0, 1}))
}
