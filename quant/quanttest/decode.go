// SPDX-License-Identifier: Apache-2.0

package quanttest

import (
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// DecodeRotated unpacks rows in the basis that they are stored in, which attention over packed rows
// sees: quant.Decode without the inverse rotation at its end. For codings that are not rotated it
// equals quant.Decode.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func DecodeRotated(dst quant.Rows, c quant.Coding, src []byte) error {
	f := c.Format
	if !f.Rotated() {
		return quant.Decode(dst, c, src, 0)
	}
	if err := dst.Validate(); err != nil {
		return err
	}
	rows, dim := dst.Len(), dst.Dim
	scales := make([]float32, rows)
	if err := quant.RowScales(scales, c, src, rows, dim); err != nil {
		return err
	}
	ints, floats := layout.Nested(f.Bits()), layout.LloydMax(f.Bits())
	for r := range rows {
		unit := float32(scales[r] * layout.CentroidUnit)
		for i := range dim {
			var v float32
			switch {
			case f == quant.U8:
				v = float32(unit * float32(int(src[r*dim+i])-128))
			case f.Nested():
				v = float32(unit * float32(ints[code(src, f.Bits(), rows, dim, r, i)]))
			default:
				v = float32(scales[r] * floats[code(src, f.Bits(), rows, dim, r, i)])
			}
			dst.Row(r)[i] = v
		}
	}
	return nil
}

// code reads the code of value i of row r from bit planes, the highest bits first.
func code(src []byte, bits, rows, dim, r, i int) (code uint8) {
	for p := range bits {
		plane := src[p*layout.PlaneBytes(rows, dim):]
		code = code<<1 | plane[r*layout.RowPlaneBytes(dim)+i/8]>>(i%8)&1
	}
	return code
}
