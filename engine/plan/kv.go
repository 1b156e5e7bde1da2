// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// Block is what the damage model knows of a block of one (layer, kv_head), before it is coded.
type Block struct {
	Rows int
	// KDamage and VDamage are the damage of a relative squared error of 1 in all rows of K and V:
	// the sum over rows of sensitivity * energy. A coding of relative error e costs e times that.
	KDamage, VDamage float64
	// KCurve and VCurve bend that line where damage was measured at low widths; nil: straight.
	KCurve, VCurve *Curve
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

// Menu lists the codings that a block may take; every pair of one for K and one for V is an option.
type Menu struct {
	K, V []quant.Coding
}

// Pair returns option i of the menu.
func (m Menu) Pair(i int) (k, v quant.Coding) {
	if len(m.V) == 0 {
		return m.K[i], quant.Coding{}
	}
	return m.K[i/len(m.V)], m.V[i%len(m.V)]
}

// Len returns the number of options.
func (m Menu) Len() int { return len(m.K) * max(1, len(m.V)) }

// Item prices a block at every option of the menu; an option's ID is what Pair takes. dimV is 0,
// and the menu without V codings, for rows that have one side only. Bytes are the packed sides; what a container adds is the
// caller's.
//
// Errors: quant.ErrUnsupported for a coding that cannot store the dim.
func (m Menu) Item(b Block, dimK, dimV int) (Item, error) {
	if len(m.K) == 0 || (dimV > 0) != (len(m.V) > 0) {
		return Item{}, fmt.Errorf(
			"kvist/plan: menu of %d codings for K, %d for V, head_dim_v %d: %w", len(m.K),
			len(m.V), dimV, quant.ErrShape)
	}
	it := Item{Options: make([]Option, 0, m.Len())}
	for i := range m.Len() {
		k, v := m.Pair(i)
		if err := k.CheckDim(dimK); err != nil {
			return Item{}, err
		}
		o := Option{
			Bytes:  int64(k.PackedBytes(b.Rows, dimK)),
			Damage: b.KDamage * k.RelativeError() * b.KCurve.at(k),
			ID:     i,
		}
		if dimV > 0 {
			if err := v.CheckDim(dimV); err != nil {
				return Item{}, err
			}
			o.Bytes += int64(v.PackedBytes(b.Rows, dimV))
			o.Damage += b.VDamage * v.RelativeError() * b.VCurve.at(v)
		}
		it.Options = append(it.Options, o)
	}
	return it, nil
}

// ClassOf prices one side of a block of rows at every coding of a menu: the class of its items, whose
// sensitivity is the damage of a relative squared error of 1 in all its rows. ID is the index of
// the coding.
//
// Errors: quant.ErrUnsupported for a coding that cannot store the dim.
func ClassOf(codings []quant.Coding, curve *Curve, rows, dim int) (Class, error) {
	var class Class
	for i, coding := range codings {
		if err := coding.CheckDim(dim); err != nil {
			return class, err
		}
		class.Options = append(class.Options, Option{ID: i,
			Bytes:  int64(coding.PackedBytes(rows, dim)),
			Damage: coding.RelativeError() * curve.at(coding)})
	}
	return class, nil
}
