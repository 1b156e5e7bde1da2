// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"github.com/kvist-project/kvist/quant"
)

// Menu lists the codings that a block may take, one for each side.
type Menu struct {
	K, V []quant.Coding
}

// Curve holds factors on the damage of lm1..lm3, by bits (index 0 is not used). Errors of first
// order grow with the squared error; large ones grow faster in K, where they move the softmax.
type Curve [4]float64

func (c *Curve) at(coding quant.Coding) float64 {
	if b := coding.Format.Bits(); c != nil && coding.Format.Nested() && b < len(c) {
		return c[b]
	}
	return 1
}

// ClassOf prices one side of a block of rows at every coding of a menu: the class of its items, whose
// sensitivity is the damage of a relative squared error of 1 in all its rows. Its
// options are in the order of codings.
//
// Errors: quant.ErrUnsupported for a coding that cannot store the dim.
func ClassOf(codings []quant.Coding, curve *Curve, rows, dim int) (Class, error) {
	var class Class
	for _, coding := range codings {
		if err := coding.CheckDim(dim); err != nil {
			return class, err
		}
		class.Options = append(class.Options, Option{
			Bytes:  int64(coding.PackedBytes(rows, dim)),
			Damage: coding.RelativeError() * curve.at(coding)})
	}
	return class, nil
}
