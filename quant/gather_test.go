// SPDX-License-Identifier: Apache-2.0

package quant_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// Gathered rows decode as they did, for every coding: exactly, but for 8-bit logarithmic scales of
// sides with another base.
func TestGather_RowsDecodeAsBefore(t *testing.T) {
	for _, c := range quanttest.Codings() {
		dim := 64
		t.Run(c.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var src []quant.Packed
				var want []float32
				var bases []float32
				for i := range rapid.IntRange(0, 4).Draw(t, "sources") {
					n := rapid.IntRange(0, 20).Draw(t, "rows")
					x := quanttest.Rows(quanttest.Gaussian, n, dim, uint64(i))
					for k := range x.Data {
						x.Data[k] *= float32(1 + i%2)
					}
					p := quant.Packed{Data: make([]byte, c.PackedBytes(n, dim)), Rows: n}
					require.NoError(t, quant.Encode(p.Data, c, x, 7))
					if n > 0 && rapid.Bool().Draw(t, "some") {
						p.Take = rapid.SliceOf(rapid.Int32Range(0, int32(n-1))).Draw(t, "take")
					}
					all := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
					require.NoError(t, quant.Decode(all, c, p.Data, 7))
					for k := range p.Len() {
						r := k
						if p.Take != nil {
							r = int(p.Take[k])
						}
						want = append(want, all.Row(r)...)
						if c.Scale == quant.ScaleLog8 {
							bases = append(bases, math.Float32frombits(binary.LittleEndian.Uint32(
								p.Data[len(p.Data)-c.ScaleBytes(n):])))
						}
					}
					src = append(src, p)
				}
				rows := len(want) / dim
				dst := make([]byte, c.PackedBytes(rows, dim))
				require.NoError(t, quant.Gather(dst, c, dim, src))
				got := quant.Rows{Dim: dim, Data: make([]float32, len(want))}
				require.NoError(t, quant.Decode(got, c, dst, 7))
				var top float32
				for _, b := range bases {
					top = max(top, b)
				}
				for r := range rows {
					tol := 0.0
					if len(bases) > 0 && bases[r] != top {
						tol = math.Exp2(1.0/32) - 1 + 1e-6
						if c.Format == quant.U8 {
							tol = math.Exp2(1.0/16) - 1 + 1e-6
						}
					}
					var diff, norm float64
					for d, x := range want[r*dim : (r+1)*dim] {
						e := float64(got.Row(r)[d]) - float64(x)
						diff, norm = diff+e*e, norm+float64(x)*float64(x)
					}
					require.LessOrEqual(t, math.Sqrt(diff), (tol+1e-6*tol)*math.Sqrt(norm)*(1+1e-6)+1e-5*tol, "row %d", r)
				}
			})
		})
	}
}

func TestGather_Refuses(t *testing.T) {
	c := quant.Coding{Format: quant.LM2}
	side := make([]byte, c.PackedBytes(4, 8))
	dst := make([]byte, c.PackedBytes(2, 8))
	for name, p := range map[string]quant.Packed{
		"row beyond":   {Data: side, Rows: 4, Take: []int32{0, 4}},
		"negative":     {Data: side, Rows: 4, Take: []int32{-1, 0}},
		"too many":     {Data: side, Rows: 4},
		"short side":   {Data: side[1:], Rows: 4, Take: []int32{0, 1}},
		"rows below 0": {Data: side, Rows: -4},
	} {
		require.ErrorIs(t, quant.Gather(dst, c, 8, []quant.Packed{p}), quant.ErrShape, name)
	}
	require.ErrorIs(t, quant.Gather(dst, c, 7, nil), quant.ErrUnsupported)
	require.Equal(t, make([]byte, len(dst)), dst)
}
