// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// MergeAttention folds the attention of the same queries over further rows (out2, lse2) into out
// and lse. The result is the attention over both sets of rows:
//
//	w = exp(lse - max), w2 = exp(lse2 - max)
//	out = (w*out + w2*out2) / (w + w2), lse = max + log(w + w2)
//
// lse, lse2: [n]; out, out2: [n, dimV]. A side with lse = -Inf saw no row; its out is ignored and
// the result is the other side, bit by bit. If neither side saw a row, out is zero and lse is -Inf.
// out2 and lse2 are not written and must not partly overlap out and lse.
//
// Errors: quant.ErrShape; nothing is written then.
func MergeAttention(out, lse, out2, lse2 []float32, dimV int) error {
	n := len(lse)
	if dimV < 1 || dimV > quant.MaxDim || len(lse2) != n || len(out) != n*dimV ||
		len(out2) != n*dimV {
		return fmt.Errorf("kvist/backend: merge attention: out %d and %d values, lse %d and %d,"+
			" head_dim_v %d: %w", len(out), len(out2), n, len(lse2), dimV, quant.ErrShape)
	}
	for i := range n {
		a, b := out[i*dimV:(i+1)*dimV], out2[i*dimV:(i+1)*dimV]
		lse[i] = mergeOne(a, lse[i], b, lse2[i])
	}
	return nil
}

func mergeOne(a []float32, la float32, b []float32, lb float32) float32 {
	none := float32(math.Inf(-1))
	switch {
	case lb == none:
		if la == none {
			clear(a)
		}
		return la
	case la == none:
		copy(a, b)
		return lb
	}
	// In float64, so that folding many parts does not accumulate rounding errors of the weights.
	m := max(float64(la), float64(lb))
	wa, wb := math.Exp(float64(la)-m), math.Exp(float64(lb)-m)
	if math.IsInf(m, 1) {
		// A score overflowed: the rows with infinite scores get all of the weight.
		wa, wb = atInf(la), atInf(lb)
	}
	sum := wa + wb
	wa, wb = wa/sum, wb/sum
	for d := range a {
		a[d] = float32(wa*float64(a[d]) + wb*float64(b[d]))
	}
	return float32(m + math.Log(sum))
}

func atInf(l float32) float64 {
	if math.IsInf(float64(l), 1) {
		return 1
	}
	return 0
}
