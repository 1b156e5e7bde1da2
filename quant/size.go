// SPDX-License-Identifier: Apache-2.0

package quant

// PlaneAlign is the alignment of every bit plane within a packed side: a plane may be read in
// 64-bit words once the side itself starts on such a boundary.
const PlaneAlign = 8

// RowPlaneBytes returns the bytes that one row takes in one bit plane.
func RowPlaneBytes(dim int) int { return dim / 8 }

// PlaneBytes returns the bytes of one bit plane of rows rows, padding included.
func PlaneBytes(rows, dim int) int {
	return (rows*RowPlaneBytes(dim) + PlaneAlign - 1) / PlaneAlign * PlaneAlign
}

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
		return (rows*dim+PlaneAlign-1)/PlaneAlign*PlaneAlign + c.ScaleBytes(rows)
	default: // lm1..lm4, tqmse1..tqmse4
		return f.Bits()*PlaneBytes(rows, dim) + c.ScaleBytes(rows)
	}
}

// BitsPerValue returns 8 * bytes / values: all stored bits over the values of the original.
func BitsPerValue(bytes, values int64) float64 {
	if values == 0 {
		return 0
	}
	return 8 * float64(bytes) / float64(values)
}
