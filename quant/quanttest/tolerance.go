// SPDX-License-Identifier: Apache-2.0

package quanttest

import (
	"math"

	"github.com/kvist-project/kvist/quant"
)

// NMSE returns sum((a-b)^2) / sum(a^2); 0 for two zeros.
func NMSE(a, b []float32) float64 {
	var num, den float64
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		num += d * d
		den += float64(a[i]) * float64(a[i])
	}
	if num == 0 {
		return 0
	}
	return num / den
}

// Tolerance is the largest NMSE a coding may have on rows of a dim that the rotation makes
// Gaussian, and the smallest: an error that is too low is as wrong as one too high.
//
// Derivation. lm and tqmse: quant's RelativeError is exact for long Gaussian rows. A row of n
// values fits its own scale, which takes about (1-D)/n of the energy off the error plus what
// the fixed peak of a short row takes (measured up to 8 % at n = 64 for 4 bits: the row's own
// standard deviation is used for the thresholds, so large values are rarer); sampling noise over
// 1000 rows is under 2 %; 8-bit scales add 1/12*(ln2/16)^2 = 1.6e-4. u8: step^2/12 with a peak
// between 2.3 and 3.2 root mean squares for 64..256 values, times 1.045^2 for scales rounded up.
// ggml: groups of 32 with E[max^2] = 4.4; q4_0 clips the side opposite to its largest value.
func Tolerance(c quant.Coding, dim int) (low, high float64) {
	e := c.RelativeError()
	s8 := 0.0
	if c.Scale == quant.ScaleLog8 {
		s8 = 1.6e-4
	}
	switch f := c.Format; {
	case f == quant.F32:
		return 0, 0
	case f == quant.F16:
		return 0, math.Pow(2, -22) // half a unit in the last place of 11 bits, squared
	case f == quant.BF16:
		return 0, math.Pow(2, -16)
	case f == quant.U8:
		return 2.0 * 2.0 / 127 / 127 / 12, 3.3 * 3.3 / 127 / 127 / 12 * 1.09
	case f == quant.GGMLQ8_0:
		return 0.7 * 4.4 / 127 / 127 / 12, 1.3 * 4.4 / 127 / 127 / 12
	case f == quant.GGMLQ4_0:
		return 4.4 / 64 / 12, 1.5 * 4.4 / 64 / 12
	}
	return e * (0.98 - 7.0/float64(dim)), (e + s8) * 1.03
}
