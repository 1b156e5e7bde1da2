// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// nested are the codebooks of lm1..lm4 by magnitude.
var nested = func() (t [4]struct {
	thresholds []float32
	centroids  []int32
}) {
	for i := range t {
		f := quant.LM1 + quant.Format(i)
		t[i].thresholds = layout.NestedThresholds(f.Bits())
		book := layout.Nested(f.Bits())
		for _, c := range book[len(book)/2:] {
			t[i].centroids = append(t[i].centroids, int32(c))
		}
	}
	return t
}()

// codebooks are the centroids of the formats in planes by code.
var codebooks = func() (t [quant.TQMSE4 + 1][16]float32) {
	for _, f := range quant.Formats() {
		switch {
		case f.Nested():
			for i, v := range layout.Nested(f.Bits()) {
				t[f][i] = float32(v)
			}
		case f.Rotated() && f != quant.U8:
			copy(t[f][:], layout.LloydMax(f.Bits()))
		}
	}
	return t
}()

// RuleScale returns the row scale by rule, from |x|^2, <x,c> and <c,c> with integer centroids c, as
// package quant defines it.
func RuleScale(rule quant.ScaleRule, xx, xc, cc float32) float32 {
	var s float32
	switch rule {
	case quant.LengthKeeping:
		s = float32(math.Sqrt(float64(float32(xx / cc))))
	case quant.InnerProduct:
		s = float32(xx / xc)
	default:
		s = float32(xc / cc)
	}
	return float32(s / layout.CentroidUnit)
}

// pow2 returns 2^e, for e in [-126, 127].
func pow2(e int) float32 { return math.Float32frombits(uint32(e+127) << 23) }

// putScales stores the row scales in the form of the coding. It reports false, without writing
// anything, if a scale is out of range.
func (k *Kernels) putScales(dst []byte, c quant.Coding, scales []float32) bool {
	if len(scales) == 0 {
		return true
	}
	if c.Scale == quant.ScaleF16 {
		for _, s := range scales {
			if !(s < 65520 && s > -65520) { // values that round to an infinity, and NaN
				return false
			}
		}
		k.toF16(dst, scales)
		return true
	}
	var base float32
	for _, s := range scales {
		if math.Float32bits(s)&0x7f800000 == 0x7f800000 {
			return false
		}
		base = max(base, s)
	}
	binary.LittleEndian.PutUint32(dst, math.Float32bits(base))
	if c.Format != quant.U8 {
		k.log8(dst[4:4+len(scales)], scales, base)
		return true
	}
	for r, s := range scales {
		dst[4+r] = log8Code(base, s, true)
	}
	return true
}

// getScales decodes the row scales.
func getScales(dst []float32, c quant.Coding, tail []byte) { scalesOf(dst, c, tail, 0) }

// log8Mid and log8Frac are the bounds and values of one octave of 8-bit logarithms.
var log8Mid, log8Frac = func() (mid, frac [16]float32) {
	for i := range mid {
		mid[i], frac[i] = layout.Log8Bound(1, uint8(i)), layout.Log8Scale(1, uint8(i))
	}
	return mid, frac
}()

// log8Guess[m] is 16 times the binary logarithm of 1+m/64, rounded.
var log8Guess = func() (t [64]uint8) {
	for m := range t {
		t[m] = uint8(math.Round(16 * math.Log2(1+(float64(m)+0.5)/64)))
	}
	return t
}()

// log8Code returns the same logarithm as package quant. Bounds fall with k, and the code is the
// first k whose bound is at most s. A guess from the bits of base/s is off by at most one.
func log8Code(base, s float32, up bool) uint8 {
	if s == 0 {
		return 255
	}
	ratio := math.Float32bits(base / s)
	e := int(ratio>>23) - 127
	if e < 0 || e > 15 { // beyond the codes, or NaN
		return log8Search(base, s, up, 0, 254)
	}
	k := min(16*e+int(log8Guess[ratio>>17&63]), 254)
	for k > 0 && log8Reaches(base, s, up, k-1) {
		k--
	}
	for k < 254 && !log8Reaches(base, s, up, k) {
		k++
	}
	return uint8(k)
}

// log8Search finds the code in [lo, hi] by bisection.
func log8Search(base, s float32, up bool, lo, hi int) uint8 {
	for lo < hi {
		if k := (lo + hi) / 2; log8Reaches(base, s, up, k) {
			hi = k
		} else {
			lo = k + 1
		}
	}
	return uint8(lo)
}

// log8Reaches reports whether s is at least the bound of k or, with up, more than the scale of k+1.
func log8Reaches(base, s float32, up bool, k int) bool {
	if up {
		return s > float32(base*log8Frac[(k+1)&15])*pow2(-((k+1)>>4))
	}
	return s >= float32(base*log8Mid[k&15])*pow2(-(k>>4))
}

// log8Scale is layout.Log8Scale.
func log8Scale(base float32, k uint8) float32 {
	if k == 255 {
		return 0
	}
	return float32(base*log8Frac[k&15]) * pow2(-int(k>>4))
}
