// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// deviation measures how far each row of V of one KV head lies from the mean of the rows before
// it: attention to a row that says what all rows say moves the output little, however much of it
// there is. The first row is measured from zero.
//
// State: 8 bytes a value of a row. Rows are taken one by one: results do not depend on how they
// were split into calls. Not safe for concurrent use.
//
// Source: value norms after VATP (2024, arXiv 2406.12335); taking the mean off, as the damage
// a_t^2 |v_t - out|^2 of an error in K asks for, is the project's own.
type deviation struct {
	mean []float64
	n    int
}

// newDeviation returns the deviation from no rows of dim values.
//
// Errors: quant.ErrShape.
func newDeviation(dim int) (*deviation, error) {
	if dim < 1 || dim > quant.MaxDim {
		return nil, shapeErr("deviation: rows of %d values, want 1 to %d", dim, quant.MaxDim)
	}
	return &deviation{mean: make([]float64, dim)}, nil
}

// StateBytes returns the bytes of the state.
func (d *deviation) StateBytes() int64 { return int64(8*len(d.mean)) + 32 }

// Clone returns an independent copy.
func (d *deviation) Clone() *deviation { return &deviation{slices.Clone(d.mean), d.n} }

// Add writes |row - mean of the rows before| of each row.
//
// dst: [rows]; v: [rows, dim].
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for NaN and infinities. Nothing is
// taken then.
func (d *deviation) Add(dst []float64, v quant.Rows) error {
	if err := checkRows("v", v, len(d.mean)); err != nil {
		return err
	}
	if len(dst) != v.Len() {
		return shapeErr("deviation: room for %d rows, want %d", len(dst), v.Len())
	}
	for r := range dst {
		d.n++
		var e float64
		for i, x := range v.Row(r) {
			dev := float64(x) - d.mean[i]
			e += dev * dev
			d.mean[i] += dev / float64(d.n)
		}
		dst[r] = math.Sqrt(e)
	}
	return nil
}
