// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func density(x float64) float64 { return math.Exp(-x*x/2) / math.Sqrt(2*math.Pi) }
func tail(x float64) float64    { return math.Erfc(x/math.Sqrt2) / 2 }

// cell returns probability and conditional mean of a Gaussian in [a, b).
func cell(a, b float64) (p, mean float64) {
	p = tail(a) - tail(b)
	return p, (density(a) - density(b)) / p
}

// lloyd runs Lloyd's iteration on the positive half of a Gaussian with n cells.
func lloyd(n int) (thresholds, centroids []float64) {
	c := make([]float64, n)
	for i := range c {
		c[i] = (float64(i) + 0.5) * 2.5 / float64(n)
	}
	t := make([]float64, n+1)
	for range 20000 {
		for i := 1; i < n; i++ {
			t[i] = (c[i-1] + c[i]) / 2
		}
		t[n] = 40
		for i := range c {
			_, c[i] = cell(t[i], t[i+1])
		}
	}
	return t[:n], c
}

// distortion returns 1 - E[xc]^2/E[c^2] and E[xc]/E[c^2] for cells and their centroids.
func distortion(t, c []float64) (d, scale float64) {
	var xc, cc float64
	for i := range t {
		end := 40.0
		if i+1 < len(t) {
			end = t[i+1]
		}
		p, m := cell(t[i], end)
		xc += 2 * p * m * c[i]
		cc += 2 * p * c[i] * c[i]
	}
	return 1 - xc*xc/cc, xc / cc
}

func TestNestedCodebook_Derivation(t *testing.T) {
	three, _ := lloyd(4)
	want := make([]float64, 8)
	for i := range three {
		a, b := three[i], 40.0
		if i < 3 {
			b = three[i+1]
		}
		s := (a + min(b, a+1)) / 2
		for range 20000 { // the optimal split of a cell lies halfway between the means of its parts
			_, lo := cell(a, s)
			_, hi := cell(s, b)
			s = (lo + hi) / 2
		}
		want[2*i], want[2*i+1] = a, s
	}
	for i := range want {
		require.InDelta(t, want[i], nestedThresholds[i], 2e-6, "threshold %d", i)
	}
	for f := LM1; f <= LM4; f++ {
		ts := NestedThresholds(f)
		cut, ints, means := make([]float64, len(ts)), make(
			[]float64,
			len(ts),
		), make([]float64, len(ts))
		for i := range ts {
			cut[i], ints[i] = float64(ts[i]), float64(nestedCentroids[f.Bits()][i])
			end := 40.0
			if i+1 < len(ts) {
				end = float64(ts[i+1])
			}
			_, means[i] = cell(cut[i], end)
		}
		d, scale := distortion(cut, ints)
		require.InDelta(t, d, gaussDistortion(f), 1e-6, f)
		require.InDelta(t, 64*scale, leastSquaresScale(f), 1e-5, f)
		ideal, _ := distortion(cut, means)
		require.Less(t, d/ideal, 1.002, "integer centroids of %s cost more than 0.2 %%", f)
		best, bestC := lloyd(len(ts))
		opt, _ := distortion(best, bestC)
		require.Less(t, d/opt, 1.013, "nesting of %s costs more than 1.3 %%", f)
		book := NestedCodebook(f)
		for i := range book {
			require.Equal(t, -book[i], book[len(book)-1-i])
		}
	}
}

func TestLloydMaxCodebook_Derivation(t *testing.T) {
	for f := TQMSE1; f <= TQMSE4; f++ {
		wantT, wantC := lloyd(1 << (f.Bits() - 1))
		for i := range wantT {
			require.InDelta(t, wantT[i], lloydThresholds[f.Bits()][i], 2e-6)
			require.InDelta(t, wantC[i], lloydCentroids[f.Bits()][i], 2e-6)
		}
		d, _ := distortion(wantT, wantC)
		require.InDelta(t, d, gaussDistortion(f), 1e-6)
	}
}

func TestLog8_Derivation(t *testing.T) {
	for i := range log8Frac {
		require.Equal(t, float32(math.Exp2(-float64(i)/16)), log8Frac[i])
		require.Equal(t, float32(math.Exp2(-(float64(i)+0.5)/16)), log8Mid[i])
	}
	const base = 3.7
	for k := 0; k < 255; k++ {
		s := Log8Scale(base, uint8(k))
		require.Equal(t, uint8(k), log8Code(base, s, false))
		require.Equal(t, uint8(k), log8Code(base, s, true))
		require.InEpsilon(t, base*math.Exp2(-float64(k)/16), s, 2e-7)
		up := s * 1.001
		if k > 0 {
			require.Equal(t, uint8(k), log8Code(base, up, false))
			require.Equal(t, uint8(k-1), log8Code(base, up, true))
		}
	}
	require.Equal(t, uint8(255), log8Code(base, 0, false))
	require.Equal(t, uint8(254), log8Code(base, 1e-30, false), "a scale that is not zero stays so")
	require.Zero(t, Log8Scale(base, 255))
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
