// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// AddWhy puts what Explain found of the file beside the bits of its tokens.
//
// Errors: quant.ErrShape where why is of another file.
func (r *Report) AddWhy(why *Why) error {
	perLayer := 1
	if len(r.Layers) > 0 {
		perLayer = len(r.Map.Rows) / len(r.Layers)
	}
	counts := make([][]float32, len(r.Map.Rows))
	for i := range r.Map.Rows {
		row := &r.Map.Rows[i]
		n := len(row.Kind)
		counts[i] = make([]float32, n)
		row.Weight, row.Damage = make([]float32, n), make([]float32, n)
		row.Coarser, row.Finer = make([]float32, n), make([]float32, n)
	}
	r.Slope = why.Slope
	for i := range why.Blocks {
		b := &why.Blocks[i]
		at := b.Layer*perLayer + min(b.Head, perLayer-1)
		if b.Layer < 0 || b.Layer >= len(r.Layers) || b.Head < 0 || at >= len(r.Map.Rows) {
			return fmt.Errorf("kvist/report: report: block of layer index %d head %d, the map has %d "+
				"rows: %w", b.Layer, b.Head, len(r.Map.Rows), quant.ErrShape)
		}
		row := &r.Map.Rows[at]
		damage, coarser, finer := b.prices()
		for _, t := range b.Tokens {
			c := (int64(b.Segment)*int64(r.SegmentTokens) + int64(t)) / r.Map.TokensPerColumn
			if c >= int64(len(row.Kind)) {
				return fmt.Errorf("kvist/report: report: token %d of segment %d is beyond the map: %w",
					t, b.Segment, quant.ErrShape)
			}
			counts[at][c]++
			row.Weight[c] += float32(b.Weight)
			row.Damage[c] += float32(damage / float64(len(b.Tokens)))
			row.Coarser[c] += float32(coarser)
			row.Finer[c] += float32(finer)
		}
	}
	for i := range r.Map.Rows {
		row := &r.Map.Rows[i]
		for c, n := range counts[i] {
			for _, x := range [][]float32{row.Weight, row.Damage, row.Coarser, row.Finer} {
				x[c] /= max(1, n)
			}
		}
	}
	return nil
}
