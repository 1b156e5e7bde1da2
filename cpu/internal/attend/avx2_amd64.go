// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package attend

import (
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// AVX2 returns the kernels for AVX2 with FMA and F16C.
func AVX2() *Kernels {
	return &Kernels{
		isa: "avx2", pad: 32, wide: true,
		exact: exactAVX2, u8: u8AVX2, planes: planesAVX2, dots: dotsAVX2, add: addAVX2,
		fold: foldSlicesAVX2, square: squareTileAVX2, mix: mixRowsAVX2, softmax: softmaxHeadsAVX2,
		probs: probsHeadsAVX2, f16: f16AVX2, log8: log8AVX2,
		prefetch: prefetchSlice, prefetchPlanes: prefetchRows,
	}
}

// byRows converts rows with a kernel of 8 values, and the remaining values one by one.
func byRows(dst []float32, src []byte, rows, dim, padDim, size int,
	convert func(dst *float32, src *byte, n int), rest func(dst []float32, src []byte)) {
	if dim == padDim && dim%8 == 0 {
		dim, padDim, rows = rows*dim, rows*dim, 1
	}
	for r := range rows {
		to, from := dst[r*padDim:(r+1)*padDim], src[r*dim*size:(r+1)*dim*size]
		whole := dim &^ 7
		if whole > 0 {
			convert(&to[0], &from[0], whole/8)
		}
		if whole < dim {
			rest(to[whole:dim], from[whole*size:])
		}
		clear(to[dim:])
	}
}

func exactAVX2(dst []float32, f quant.Format, src []byte, rows, dim, padDim int) {
	_, _ = dst[rows*padDim-1], src[rows*dim*f.Bits()/8-1]
	rest := func(dst []float32, src []byte) { unpackExact(dst, f, src) }
	switch f {
	case quant.F16:
		byRows(dst, src, rows, dim, padDim, 2, unpackF16AVX2, rest)
	case quant.BF16:
		byRows(dst, src, rows, dim, padDim, 2, unpackBF16AVX2, rest)
	default:
		exactGeneric(dst, f, src, rows, dim, padDim)
	}
}

func u8AVX2(dst []float32, src []byte, rows, dim, padDim int) {
	_, _ = dst[rows*padDim-1], src[rows*dim-1]
	byRows(dst, src, rows, dim, padDim, 1, unpackU8AVX2, nil)
}

// byteBook are the integer centroids of lm4.
var byteBook = [16]int8(layout.Nested(4))

func planesAVX2(dst []float32, p *planes, _ bool) {
	blocks := p.padDim / 32
	_ = dst[p.rows*p.padDim-1]
	_ = p.src[(p.bits-1)*p.plane+(p.rows-1)*p.rowBytes+4*blocks-1]
	d, b, t := &dst[0], &p.src[0], &p.table[0]
	switch {
	case p.bits == 1:
		unpackLM1AVX2(d, b, p.plane, t, p.rows, p.rowBytes, blocks)
	case p.bits == 2:
		unpackLM2AVX2(d, b, p.plane, t, p.rows, p.rowBytes, blocks)
	case p.bits == 3:
		unpackLM3AVX2(d, b, p.plane, t, p.rows, p.rowBytes, blocks)
	case p.table == &codebooks[quant.LM4]:
		unpackLM4AVX2(d, b, p.plane, &byteBook[0], p.rows, p.rowBytes, blocks)
	default:
		planesGeneric(dst, p, false) // the centroids of tqmse4 are not integers
	}
}

// headsAVX2 returns how many of some heads the next kernel takes: up to three, but two of four.
func headsAVX2(heads int) int {
	if heads == 4 {
		return 2
	}
	return min(heads, 3)
}

func dotsAVX2(dots, q []float32, heads int, _ Layout, tile []float32, padDim, rows int) {
	_, _, _ = dots[heads*TileRows-1], q[heads*padDim-1], tile[TileRows*padDim-1]
	for heads > 0 {
		n := headsAVX2(heads)
		switch n {
		case 1:
			dotRows1AVX2(&dots[0], &q[0], &tile[0], 4*padDim, padDim/32, (rows+7)/8)
		case 2:
			dotRows2AVX2(&dots[0], &q[0], &tile[0], 4*padDim, padDim/32, (rows+3)/4)
		default:
			dotRows3AVX2(&dots[0], &q[0], &tile[0], 4*padDim, padDim/32, (rows+3)/4)
		}
		heads -= n
		dots, q = dots[n*TileRows:], q[n*padDim:]
	}
}

func addAVX2(acc, w []float32, heads int, tile []float32, padDim, rows int) {
	_, _, _ = acc[heads*padDim-1], w[heads*TileRows-1], tile[rows*padDim-1]
	for heads > 0 {
		n := headsAVX2(heads)
		switch n {
		case 1:
			accumulate1AVX2(&acc[0], &w[0], &tile[0], 4*padDim, padDim/32, rows)
		case 2:
			accumulate2AVX2(&acc[0], &w[0], &tile[0], 4*padDim, padDim/32, rows)
		default:
			accumulate3AVX2(&acc[0], &w[0], &tile[0], 4*padDim, padDim/32, rows)
		}
		heads -= n
		acc, w = acc[n*padDim:], w[n*TileRows:]
	}
}

func foldSlicesAVX2(sum []float64, acc []float32) {
	if n := len(acc) / 8; n > 0 {
		_ = sum[8*n-1]
		foldAVX2(&sum[0], &acc[0], n)
	}
	foldGeneric(sum[len(acc)&^7:], acc[len(acc)&^7:])
}

func squareTileAVX2(dst, src *[TileRows]float32, factor float32) {
	squareAVX2(&dst[0], &src[0], factor)
}

func softmaxHeadsAVX2(h *Heads, a, b int, t *Terms, scale *[TileRows]float32) {
	var tmp [64]float32
	softmaxAVX2(&h.Weights[a*TileRows], &h.Sums[a], &h.Tops[a], &h.Dots[a*TileRows], &t.Mul[0], &t.Add[0],
		&t.Noise[0], &scale[0], &h.Energy[a], &h.Masks[a], b-a, &tmp[0])
}

func probsHeadsAVX2(acc *[TileRows]float64, h *Heads, a, b int, t *Terms, lse []float32,
	power int) {
	probsAVX2(&acc[0], &h.Dots[a*TileRows], &t.Mul[0], &t.Add[0], &t.Noise[0], &h.Energy[a], &lse[a],
		&h.Masks[a], b-a, power)
}

func f16AVX2(dst *[TileRows]float32, src []byte, factor float32) {
	var buf [2 * TileRows]byte
	copy(buf[:], src)
	scalesF16AVX2(&dst[0], &buf[0], factor)
}

func log8AVX2(dst *[TileRows]float32, base float32, src []byte, factor float32) {
	if len(src) < TileRows {
		var buf [TileRows]byte
		for i := copy(buf[:], src); i < TileRows; i++ {
			buf[i] = 255 // a scale of 0
		}
		src = buf[:]
	}
	scalesLog8AVX2(&dst[0], base, &src[0], &log8Frac[0], factor)
}

func mixRowsAVX2(dst *[TileRows]float32, w, rows []float32, power int) {
	_ = rows[len(w)*TileRows-1]
	if power == 2 {
		mixSquaresAVX2(&dst[0], &w[0], &rows[0], len(w))
		return
	}
	mixAVX2(&dst[0], &w[0], &rows[0], len(w))
}
