// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Digits are the numbers of a backend that computes attention in integers. It rounds queries, in the
// rotated basis, to multiples of a part of their largest value, and the products of weights and units
// of V to multiples of a part of the largest one. What a row adds is then exact.
//
//  1. A value of a query is off by at most Query times the largest one, so that a score is off by at most
//     that times the sum of |k_i|, which is at most sqrt(head_dim) |k|.
//
//  2. With u_r the unit of row r of V, c_r its codes and M the largest p_r u_r, p_r u_r is off by at most
//     Weight M, and by no more than itself. So component d of the sum is off by at most the sum over the
//     rows of min(Weight M, p_r u_r) |c_rd|, in the original basis, which is the sum of all rows' parts
//     of it: no row's part need be known in the other. A backend that takes M from fewer rows is
//     within this.
//
// Both are bounds, not estimates: roundings of different rows are taken to agree.
type Digits struct {
	Query, Weight float64
	// Takes reports whether the backend computes the blocks of two codings so.
	Takes func(k, v quant.Coding, headDim, headDimV int) bool
}

// digits are those of the backend that runs: tests run one after another.
var digits Digits

// take reports whether a block with K of dim values is computed in digits.
func (d *Digits) take(b *known, dim int) bool {
	return d.Takes != nil && !b.keysOnly && d.Takes(b.k, b.v, dim, b.vRows.Dim)
}

// weights adds item 2 to the tolerance of every component.
func (d *Digits) weights(tol []float64, rows []scored, p []float64) {
	most := 0.0
	for j, r := range rows {
		most = max(most, p[j]*r.unit)
	}
	for j, r := range rows {
		for i, c := range r.codes {
			tol[i] += min(d.Weight*most, p[j]*r.unit) * c
		}
	}
}

// peakOf returns the largest magnitude of a rotated query.
func peakOf(q []float64, seed uint64) float64 {
	rotation, err := quant.NewRotation(len(q), seed)
	if err != nil {
		panic(err)
	}
	x := make([]float32, len(q))
	for i, v := range q {
		x[i] = float32(v)
	}
	rotation.Forward(x)
	peak := 0.0
	for _, v := range x {
		peak = max(peak, math.Abs(float64(v)))
	}
	return peak
}
