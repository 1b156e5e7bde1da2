// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"math"

	"github.com/kvist-project/kvist/quant/layout"
)

// gaussDistortion[f] is the expected squared error of a Gaussian of unit variance under the
// format's cells with the least-squares centroids: 1 - E[x c]^2 / E[c^2].
func gaussDistortion(f Format) float64 {
	switch f {
	case LM1, TQMSE1:
		return 0.3633802
	case LM2:
		return 0.1184491
	case LM3:
		return 0.0345489
	case LM4:
		return 0.0096093
	case TQMSE2:
		return 0.1174818
	case TQMSE3:
		return 0.0345478
	case TQMSE4:
		return 0.0095010
	}
	return 0
}

// leastSquaresScale is the row scale over the root mean square of a long Gaussian row.
func leastSquaresScale(f Format) float64 {
	switch f {
	case LM1:
		return 0.7978846
	case LM2:
		return 64 * 0.0129366536
	case LM3:
		return 64 * 0.0244347838
	case LM4:
		return 64 * 0.0244316237
	}
	return 0
}

// RelativeError returns the expected squared error of a coded row over the row's energy, for a
// long row that the rotation has made Gaussian. u8 assumes a peak of 2.6 root mean squares (the
// expectation for 64 values). The exact formats and ggml's, whose error depends on the data,
// give 0 and an estimate for groups of 32 Gaussians.
func (c Coding) RelativeError() float64 {
	switch f := c.Format; {
	case f.Nested():
		d := gaussDistortion(f)
		switch c.Rule {
		case LengthKeeping:
			return 2 - 2*math.Sqrt(1-d)
		case InnerProduct:
			return d / (1 - d)
		}
		return d
	case f == U8:
		step := 2.6 / 127
		return step * step / 12
	case f >= TQMSE1 && f <= TQMSE4:
		return gaussDistortion(f)
	case f == GGMLQ8_0:
		step := 2.1 / 127 // E max|x| of 32 Gaussians is 2.1 (2.07) root mean squares
		return step * step / 12
	case f == GGMLQ4_0:
		step := 2.1 / 8
		return step * step / 12
	}
	return 0
}

// NoisePerScale2 returns the expected squared error of one value of a coded row in units of the
// squared row scale (RowScales): what a backend needs to know of a coding for the row bias. It
// is 0 for codings without a row scale, whose rows then have no bias.
func (c Coding) NoisePerScale2() float64 {
	switch f := c.Format; {
	case f.Nested():
		d, s := gaussDistortion(f), leastSquaresScale(f)
		switch c.Rule {
		case LengthKeeping:
			return (2 - 2*math.Sqrt(1-d)) / (s * s / (1 - d))
		case InnerProduct:
			return d / (1 - d) / (s * s / ((1 - d) * (1 - d)))
		}
		return d / (s * s)
	case f == U8:
		return layout.CentroidUnit * layout.CentroidUnit / 12
	case f >= TQMSE1 && f <= TQMSE4:
		return gaussDistortion(f)
	}
	return 0
}
