// SPDX-License-Identifier: Apache-2.0

package quant

import "github.com/kvist-project/kvist/quant/layout"

// ScaleBytes returns the bytes of the scale section that stands at the end of a packed side.
func (c Coding) ScaleBytes(rows int) int {
	switch {
	case rows == 0:
		return 0
	case c.Format >= TQMSE1 && c.Format <= TQMSE4:
		return 2 * rows
	case c.Format != U8 && !c.Format.Nested():
		return 0
	case c.Scale == ScaleLog8:
		return 4 + rows
	}
	return 2 * rows
}

// PackedBytes returns the exact bytes of one packed side of a block: rows rows of dim values,
// codes, scales and padding all counted. The layouts are drawn in the package comment.
// It does not check its arguments; CheckDim does.
func (c Coding) PackedBytes(rows, dim int) int {
	switch f := c.Format; {
	case f.Exact():
		return rows * dim * f.Bits() / 8
	case f == GGMLQ8_0:
		return rows * dim / ggmlGroup * ggmlQ80Bytes
	case f == GGMLQ4_0:
		return rows * dim / ggmlGroup * ggmlQ40Bytes
	case f == U8:
		return layout.Align(rows*dim) + c.ScaleBytes(rows)
	default: // lm1..lm4, tqmse1..tqmse4
		return f.Bits()*layout.PlaneBytes(rows, dim) + c.ScaleBytes(rows)
	}
}

// BitsPerValue returns 8 * bytes / values: all stored bits over the values of the original.
func BitsPerValue(bytes, values int64) float64 {
	if values == 0 {
		return 0
	}
	return 8 * float64(bytes) / float64(values)
}
