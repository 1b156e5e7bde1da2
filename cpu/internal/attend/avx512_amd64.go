// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package attend

import (
	"github.com/kvist-project/kvist/quant"
)

// The wrappers below convert slices to pointers and distances to bytes. Each first accesses the
// last element that the assembly accesses, so that a wrong call panics instead of reading or
// writing outside.

// AVX512 returns the kernels for AVX-512 with F, BW, VL, DQ, VBMI, VNNI, GFNI and VPOPCNTDQ.
func AVX512() *Kernels {
	return &Kernels{
		isa: "avx512", pad: 64, lane: true, wide: true,
		exact: exactAVX512, u8: u8AVX512, planes: planesAVX512, dots: dotsAVX512,
		add: addAVX512, fold: foldSlicesAVX512, square: squareTileAVX512, mix: mixRowsAVX512,
		softmax: softmaxHeadsAVX512, probs: probsHeadsAVX512,
		f16: f16AVX512, log8: log8AVX512, prefetch: prefetchSlice,
		prefetchPlanes: prefetchRows,
		bytes: &byteKernels{planes: bytePlanesAVX512, u8: byteU8AVX512, dots: dotBytesAVX512,
			largest: largestSliceAVX512, cut: cutSliceAVX512,
			softmax: softmaxCutHeadsAVX512, add: addBytesAVX512,
			dotPlanes: dotPlanesAVX512, addPlanes: addPlanesAVX512,
			dotTile: &dotPlanes, softmaxTile: &softmaxTiles, addTile: &addPlanes},
	}
}

func exactAVX512(dst []float32, f quant.Format, src []byte, rows, dim, padDim int) {
	if padDim%16 != 0 { // the assembly writes whole vectors
		exactGeneric(dst, f, src, rows, dim, padDim)
		return
	}
	_, _ = dst[rows*padDim-1], src[rows*dim*f.Bits()/8-1]
	full, tail := dim/16, uint32(1)<<(dim%16)-1
	zeros := padDim/16 - (dim+15)/16
	switch f {
	case quant.F16:
		unpackF16AVX512(&dst[0], &src[0], rows, full, tail, zeros)
	case quant.BF16:
		unpackBF16AVX512(&dst[0], &src[0], rows, full, tail, zeros)
	default:
		unpackF32AVX512(&dst[0], &src[0], rows, full, tail, zeros)
	}
}

func u8AVX512(dst []float32, src []byte, rows, dim, padDim int) {
	_, _ = dst[rows*padDim-1], src[rows*dim-1]
	unpackU8AVX512(&dst[0], &src[0], rows, dim/64, uint64(1)<<(dim%64)-1)
}

func planesAVX512(dst []float32, p *planes, quads bool) {
	blocks, groups := p.padDim/64, p.rows/4
	_ = dst[p.rows*p.padDim-1]
	_ = p.src[(p.bits-1)*p.plane+(p.rows-1)*p.rowBytes+8*blocks-1]
	d, s, t := &dst[0], &p.src[0], &p.table[0]
	contiguous := blocks == 1 && p.rowBytes == 8
	switch {
	case quads && contiguous:
		[]func(*float32, *byte, int, *float32, int){unpackLM1Quads64AVX512,
			unpackLM2Quads64AVX512, unpackLM3Quads64AVX512,
			unpackLM4Quads64AVX512}[p.bits-1](d, s, p.plane, t, groups)
	case quads:
		[]func(*float32, *byte, int, *float32, int, int, int){unpackLM1QuadsAVX512,
			unpackLM2QuadsAVX512, unpackLM3QuadsAVX512,
			unpackLM4QuadsAVX512}[p.bits-1](d, s, p.plane, t, groups, p.rowBytes, blocks)
	case contiguous:
		[]func(*float32, *byte, int, *float32, int){unpackLM1Rows64AVX512, unpackLM2Rows64AVX512,
			unpackLM3Rows64AVX512, unpackLM4Rows64AVX512}[p.bits-1](d, s, p.plane, t, groups)
	default:
		[]func(*float32, *byte, int, *float32, int, int, int, int){unpackLM1RowsAVX512,
			unpackLM2RowsAVX512, unpackLM3RowsAVX512, unpackLM4RowsAVX512}[p.bits-1](d, s, p.plane,
			t, groups, p.rowBytes, blocks, 4*p.padDim)
	}
}

// dotKernel multiplies up to four queries with groups of rows.
type dotKernel struct {
	f    func(dots, q, tile *float32, stride, blocks, groups int)
	rows int // in a group
}

func dotsAVX512(dots, q []float32, heads int, l Layout, tile []float32, padDim, rows int) {
	_, _, _ = dots[heads*TileRows-1], q[heads*padDim-1], tile[TileRows*padDim-1]
	for heads > 0 {
		n := min(heads, 4)
		var k dotKernel
		if l == Quads {
			switch n {
			case 1:
				k = dotKernel{dotQuads1AVX512, 32}
			case 2:
				k = dotKernel{dotQuads2AVX512, 32}
			case 3:
				k = dotKernel{dotQuads3AVX512, 16}
			default:
				k = dotKernel{dotQuads4AVX512, 16}
			}
		} else {
			switch n {
			case 1:
				k = dotKernel{dotRows1AVX512, 8}
			case 2:
				k = dotKernel{dotRows2AVX512, 8}
			case 3:
				k = dotKernel{dotRows3AVX512, 4}
			default:
				k = dotKernel{dotRows4AVX512, 4}
			}
		}
		k.f(&dots[0], &q[0], &tile[0], 4*padDim, padDim/64, (rows+k.rows-1)/k.rows)
		heads -= n
		dots, q = dots[n*TileRows:], q[n*padDim:]
	}
}

func addAVX512(acc, w []float32, heads int, tile []float32, padDim, rows int) {
	_, _, _ = acc[heads*padDim-1], w[heads*TileRows-1], tile[rows*padDim-1]
	for heads > 0 {
		n := min(heads, 3)
		if heads == 4 {
			n = 2
		}
		switch n {
		case 1:
			accumulate1AVX512(&acc[0], &w[0], &tile[0], 4*padDim, padDim/64, rows)
		case 2:
			accumulate2AVX512(&acc[0], &w[0], &tile[0], 4*padDim, padDim/64, rows)
		default:
			accumulate3AVX512(&acc[0], &w[0], &tile[0], 4*padDim, padDim/64, rows)
		}
		heads -= n
		acc, w = acc[n*padDim:], w[n*TileRows:]
	}
}

func foldSlicesAVX512(sum []float64, acc []float32) {
	if n := len(acc) / 16; n > 0 {
		_ = sum[16*n-1]
		foldAVX512(&sum[0], &acc[0], n)
	}
	foldGeneric(sum[len(acc)&^15:], acc[len(acc)&^15:])
}

func squareTileAVX512(dst, src *[TileRows]float32, factor float32) {
	squareAVX512(&dst[0], &src[0], factor)
}

func softmaxHeadsAVX512(h *Heads, a, b int, t *Terms, scale *[TileRows]float32) {
	for ; a < b; a += 3 {
		f := softmax3AVX512
		switch b - a {
		case 1:
			f = softmax1AVX512
		case 2:
			f = softmax2AVX512
		}
		f(&h.Weights[a*TileRows], &h.Sums[a], &h.Tops[a], &h.Dots[a*TileRows], &t.Mul[0], &t.Add[0],
			&t.Noise[0], &scale[0], &h.Energy[a], &h.Masks[a])
	}
}

func probsHeadsAVX512(acc *[TileRows]float64, h *Heads, a, b int, t *Terms, lse []float32,
	power int) {
	probsAVX512(&acc[0], &h.Dots[a*TileRows], &t.Mul[0], &t.Add[0], &t.Noise[0], &h.Energy[a], &lse[a],
		&h.Masks[a], b-a, power)
}

func f16AVX512(dst *[TileRows]float32, src []byte, factor float32) {
	if n := len(src) / 2; n > 0 {
		scalesF16AVX512(&dst[0], &src[0], min(n, TileRows), factor)
	}
}

func log8AVX512(dst *[TileRows]float32, base float32, src []byte, factor float32) {
	if n := len(src); n > 0 {
		scalesLog8AVX512(&dst[0], base, &src[0], min(n, TileRows), &log8Frac[0], factor)
	}
}

func prefetchSlice(p []byte) {
	if n := len(p); n > 0 {
		prefetchLines(&p[0], (n+255)/256)
	}
}

func prefetchRows(p []byte, bits, plane, bytes, scale int) {
	prefetchRuns(&p[0], bits, plane, (bytes+255)/256, &p[scale])
}

// bytePlanesAVX512 unpacks complete groups of eight rows.
func bytePlanesAVX512(dst []byte, p *planes, table *byteTable, values bool) {
	blocks, groups := p.padDim/byteBlock, p.rows/byteRows
	_ = dst[p.rows*p.padDim-1]
	_ = p.src[(p.bits-1)*p.plane+p.rows*p.rowBytes-1]
	d, s, t := &dst[0], &p.src[0], &table[0][0]
	if blocks > 2 {
		f := unpackBytesApart[index(values)][p.bits-1]
		f(d, s, p.plane, t, groups, blocks)
		return
	}
	unpackBytes[blocks-1][index(values)][p.bits-1](d, s, p.plane, t, groups)
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Indexed by blocks of 64 values in a row, keys or values, and bits.
var unpackBytes = [2][2][4]func(dst, src *byte, plane int, table *byte, groups int){
	{{unpackLM1Keys64AVX512, unpackLM2Keys64AVX512, unpackLM3Keys64AVX512, unpackLM4Keys64AVX512},
		{unpackLM1Values64AVX512, unpackLM2Values64AVX512, unpackLM3Values64AVX512,
			unpackLM4Values64AVX512}},
	{{unpackLM1Keys128AVX512, unpackLM2Keys128AVX512, unpackLM3Keys128AVX512,
		unpackLM4Keys128AVX512},
		{unpackLM1Values128AVX512, unpackLM2Values128AVX512, unpackLM3Values128AVX512,
			unpackLM4Values128AVX512}},
}

var unpackBytesApart = [2][4]func(dst, src *byte, plane int, table *byte, groups, blocks int){
	{unpackLM1KeysAVX512, unpackLM2KeysAVX512, unpackLM3KeysAVX512, unpackLM4KeysAVX512},
	{unpackLM1ValuesAVX512, unpackLM2ValuesAVX512, unpackLM3ValuesAVX512, unpackLM4ValuesAVX512},
}

func byteU8AVX512(dst, src []byte, rows, dim int, values bool) {
	_, _ = dst[rows*dim-1], src[rows*dim-1]
	if values {
		unpackU8ValuesAVX512(&dst[0], &src[0], dim/byteBlock, rows/4)
	} else {
		unpackU8KeysAVX512(&dst[0], &src[0], dim/byteBlock, rows/byteRows)
	}
}

func dotBytesAVX512(dots []float32, q []byte, heads int, tile []byte, dim, rows int) {
	record, blocks := QueryBytes(dim), dim/byteBlock
	_, _, _ = dots[heads*TileRows-1], q[heads*record-1], tile[TileRows*dim-1]
	for ; heads > 0; heads -= 4 {
		d, p, t := &dots[0], &q[0], &tile[0]
		switch heads {
		case 1:
			dotBytes1AVX512(d, p, t, blocks, 1)
		case 2:
			dotBytes2AVX512(d, p, t, blocks, 1)
		case 3:
			dotBytes3AVX512(d, p, t, blocks, (rows+15)/16)
		default:
			dotBytes4AVX512(d, p, t, blocks, (rows+15)/16)
		}
		if heads > 4 {
			dots, q = dots[4*TileRows:], q[4*record:]
		}
	}
}

func softmaxCutHeadsAVX512(w *Weights, h *Heads, a, b int, t *Terms,
	scale *[TileRows]float32) (bad uint32) {
	for first := a; a < b; a += 3 {
		f := softmaxCut3AVX512
		switch b - a {
		case 1:
			f = softmaxCut1AVX512
		case 2:
			f = softmaxCut2AVX512
		}
		bad = f(&h.Weights[a*TileRows], &h.Sums[a], &h.Tops[a], &h.Dots[a*TileRows], &t.Mul[0],
			&t.Add[0], &t.Noise[0], &scale[0], &h.Energy[a], &h.Masks[a],
			&w.Digits[(a-first)*DigitBytes], &w.Units[a-first])
	}
	return bad
}

func addBytesAVX512(acc []float32, weights []byte, units []float32, heads int, tile []byte, dim,
	rows int) {
	_, _, _ = acc[heads*dim-1], weights[heads*DigitBytes-1], units[heads-1]
	_ = tile[TileRows*dim-1]
	blocks, quads := dim/byteBlock, (rows+3)/4
	for ; heads > 0; heads -= 4 {
		a, w, u, t := &acc[0], &weights[0], &units[0], &tile[0]
		switch heads {
		case 1:
			addBytes1AVX512(a, w, u, t, blocks, quads)
		case 2:
			addBytes2AVX512(a, w, u, t, blocks, quads)
		case 3:
			addBytes3AVX512(a, w, u, t, blocks, quads)
		default:
			addBytes4AVX512(a, w, u, t, blocks, quads)
		}
		if heads > 4 {
			acc, weights, units = acc[4*dim:], weights[4*DigitBytes:], units[4:]
		}
	}
}

// Indexed by bits and heads.
var dotPlanes = [4][3]func(dots *float32, q, src *byte, plane int, table *byte){
	{dotLM1Heads1AVX512, dotLM1Heads2AVX512, dotLM1Heads3AVX512},
	{dotLM2Heads1AVX512, dotLM2Heads2AVX512, dotLM2Heads3AVX512},
	{dotLM3Heads1AVX512, dotLM3Heads2AVX512, dotLM3Heads3AVX512},
	{dotLM4Heads1AVX512, dotLM4Heads2AVX512, dotLM4Heads3AVX512},
}

var addPlanes = [4][3]func(acc *float32, weights *byte, units *float32, src *byte, plane int,
	table *byte){
	{addLM1Heads1AVX512, addLM1Heads2AVX512, addLM1Heads3AVX512},
	{addLM2Heads1AVX512, addLM2Heads2AVX512, addLM2Heads3AVX512},
	{addLM3Heads1AVX512, addLM3Heads2AVX512, addLM3Heads3AVX512},
	{addLM4Heads1AVX512, addLM4Heads2AVX512, addLM4Heads3AVX512},
}

// Indexed by heads.
var softmaxTiles = [3]func(memory, t, next *byte, dots *float32) (flags uint32){
	softmaxTile1AVX512, softmaxTile2AVX512, softmaxTile3AVX512,
}

func dotPlanesAVX512(dots []float32, q []byte, heads int, src []byte, bits, plane int, table *byteTable) {
	_, _ = dots[heads*TileRows-1], q[heads*QueryBytes(byteBlock)-1]
	_ = src[(bits-1)*plane+TileRows*byteBlock/8-1]
	dotPlanes[bits-1][heads-1](&dots[0], &q[0], &src[0], plane, &table[0][0])
}

func addPlanesAVX512(acc []float32, w *Weights, heads int, src []byte, bits, plane int,
	table *byteTable) {
	_, _, _ = acc[heads*byteBlock-1], w.Digits[heads*DigitBytes-1], w.Units[heads-1]
	_ = src[(bits-1)*plane+TileRows*byteBlock/8-1]
	addPlanes[bits-1][heads-1](&acc[0], &w.Digits[0], &w.Units[0], &src[0], plane, &table[0][0])
}

func mixRowsAVX512(dst *[TileRows]float32, w, rows []float32, power int) {
	_ = rows[len(w)*TileRows-1]
	if power == 2 {
		mixSquaresAVX512(&dst[0], &w[0], &rows[0], len(w))
		return
	}
	mixAVX512(&dst[0], &w[0], &rows[0], len(w))
}

func largestSliceAVX512(q []float32) uint32 { return largestAVX512(&q[0], len(q)/16) }

func cutSliceAVX512(dst []byte, q []float32, factor float64) (sums [Digits]int32) {
	_ = dst[Digits*len(q)-1]
	cutQueryAVX512(&dst[0], &sums[0], &q[0], len(q)/16, factor)
	return sums
}
