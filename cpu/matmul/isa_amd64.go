// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package matmul

import "golang.org/x/sys/cpu"

// native returns the assembly kernels that this processor supports, best first.
func native() []*kernels {
	var list []*kernels
	x := &cpu.X86
	avx2 := x.HasAVX2 && x.HasFMA && cpuidECX()>>29&1 != 0
	if avx2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ &&
		x.HasAVX512VNNI {
		list = append(list, avx512Kernels())
	}
	if avx2 {
		list = append(list, avx2Kernels())
	}
	return list
}

func avx512Kernels() *kernels {
	return &kernels{
		isa:      "avx512",
		tiles:    []int{12, 4, 3, 2, 1},
		cols:     2,
		f32:      f32AVX512,
		pack:     packAVX2,
		expand8:  expand8AVX512,
		expand4:  expand4AVX512,
		row8:     row8AVX512,
		row4:     row4AVX512,
		itiles:   []int{16, 4, 1},
		quantize: quantizeTileAVX512,
		q8:       q8AVX512,
		q4:       q4AVX512,
		unpack:   unpackAVX512,
		scales:   scalesOf512,
		expand:   expandOf512,
		multiply: multiplyAVX512,
		row:      rowAVX512,
		halves:   halvesOf256,
		dot:      dotSliceAVX512,
		axpy:     axpySliceAVX512,
		f32One:   f32AVX2, // whose sums are the same
		oneTiles: avx2Tiles,
		expSum:   expSumOf512,
		largest:  largestOf512,
	}
}

// avx2Tiles are the row counts of f32AVX2.
var avx2Tiles = []int{6, 4, 3, 2, 1}

func avx2Kernels() *kernels {
	return &kernels{
		isa:      "avx2",
		tiles:    avx2Tiles,
		cols:     1,
		f32:      f32AVX2,
		pack:     packAVX2,
		expand8:  expand8AVX2,
		expand4:  expand4AVX2,
		itiles:   []int{4, 1},
		quantize: quantizeTileAVX2,
		q8:       q8AVX2,
		q4:       q4AVX2,
		unpack:   unpackAVX2,
		scales:   scalesOf256,
		expand:   expandOf256,
		multiply: multiplyAVX2,
		row:      rowAVX2,
		halves:   halvesOf256,
		dot:      dotSliceAVX2,
		axpy:     axpySliceAVX2,
		f32One:   f32AVX2,
		oneTiles: avx2Tiles,
		expSum:   expSumOf256,
		largest:  largestOf256,
	}
}

// The wrappers below convert slices to pointers and distances to bytes. Each first accesses the
// last element that the assembly accesses, so that a wrong call panics instead of reading or
// writing outside.

// guardFloat makes that access for a float tile.
func guardFloat(rows, cols int, c []float32, ldc int, a []float32, lda int, b []float32, k int) {
	_ = c[(rows-1)*ldc+cols-1]
	_ = a[(rows-1)*lda+k-1]
	_ = b[cols*k-1]
}

func f32AVX512(rows int, c []float32, ldc int, a []float32, lda int, b []float32, k int,
	add bool) {
	guardFloat(rows, 2*panelWidth, c, ldc, a, lda, b, k)
	acc := 0
	if add {
		acc = 1
	}
	switch rows {
	case 12:
		f32Tile12x32AVX512(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 4:
		f32Tile4x32AVX512(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 3:
		f32Tile3x32AVX512(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 2:
		f32Tile2x32AVX512(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	default:
		f32Tile1x32AVX512(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	}
}

func f32AVX2(rows int, c []float32, ldc int, a []float32, lda int, b []float32, k int,
	add bool) {
	guardFloat(rows, panelWidth, c, ldc, a, lda, b, k)
	acc := 0
	if add {
		acc = 1
	}
	switch rows {
	case 6:
		f32Tile6x16AVX2(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 4:
		f32Tile4x16AVX2(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 3:
		f32Tile3x16AVX2(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	case 2:
		f32Tile2x16AVX2(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	default:
		f32Tile1x16AVX2(&c[0], 4*ldc, &a[0], 4*lda, &b[0], k, acc)
	}
}

// packAVX2 serves avx512 too, because shuffles and memory bound it.
func packAVX2(dst, src []float32, ld, rows, k int) {
	blocks := k / 8
	if rows < panelWidth || blocks == 0 {
		packRows(dst, src, ld, rows, 0, k)
		return
	}
	_ = dst[k*panelWidth-1]
	_ = src[15*ld+k-1]
	pack8AVX2(&dst[0], &src[0], 4*ld, blocks)
	pack8AVX2(&dst[8], &src[8*ld], 4*ld, blocks)
	packRows(dst, src, ld, rows, 8*blocks, k)
}

func guardExpand(bytes int, dst []float32, codes []uint8, scales []float32, groups int) {
	_ = dst[groups*groupSize*panelWidth-1]
	_ = codes[groups*bytes-1]
	_ = scales[groups*panelWidth-1]
}

func expand8AVX512(dst []float32, codes []uint8, scales []float32, groups int) {
	guardExpand(panelBytes8, dst, codes, scales, groups)
	expandQ8AVX512(&dst[0], &codes[0], &scales[0], groups)
}

func expand8AVX2(dst []float32, codes []uint8, scales []float32, groups int) {
	guardExpand(panelBytes8, dst, codes, scales, groups)
	expandQ8AVX2(&dst[0], &codes[0], &scales[0], groups)
}

func expand4AVX512(dst []float32, codes []uint8, scales, mins []float32, groups int) {
	guardExpand(panelBytes4, dst, codes, scales, groups)
	_ = mins[groups*panelWidth-1]
	expandQ4AVX512(&dst[0], &codes[0], &scales[0], &mins[0], groups)
}

func expand4AVX2(dst []float32, codes []uint8, scales, mins []float32, groups int) {
	guardExpand(panelBytes4, dst, codes, scales, groups)
	_ = mins[groups*panelWidth-1]
	expandQ4AVX2(&dst[0], &codes[0], &scales[0], &mins[0], groups)
}

func row8AVX512(c []float32, codes []uint8, scales, a []float32, groups int) {
	guardRow(panelBytes8, c, codes, scales, a, groups)
	rowQ8AVX512(&c[0], &codes[0], &scales[0], groups*panelBytes8, groups*panelWidth*4, &a[0],
		groups)
}

func row4AVX512(c []float32, codes []uint8, scales, mins, a []float32, groups int) {
	guardRow(panelBytes4, c, codes, scales, a, groups)
	_ = mins[rowPanels*groups*panelWidth-1]
	rowQ4AVX512(&c[0], &codes[0], &scales[0], &mins[0], groups*panelBytes4,
		groups*panelWidth*4, &a[0], groups)
}

func guardRow(bytes int, c []float32, codes []uint8, scales, a []float32, groups int) {
	_ = c[rowPanels*panelWidth-1]
	_ = codes[rowPanels*groups*bytes-1]
	_ = scales[rowPanels*groups*panelWidth-1]
	_ = a[groups*groupSize-1]
}

// guardTile checks a tile of quantized activations.
func guardTile(t tile) {
	n := t.rows * t.groups
	_ = t.codes[n*groupSize-1]
	_ = t.scale[n-1]
	_ = t.sum[n-1]
	_ = t.bias[n-1]
}

func quantizeTileAVX512(t tile, row int, src []float32) {
	guardTile(t)
	_ = src[t.groups*groupSize-1]
	quantizeAVX512(&t.codes[row*groupSize], &t.scale[row], &t.sum[row], &t.bias[row],
		&src[0], t.rows, t.groups)
}

func quantizeTileAVX2(t tile, row int, src []float32) {
	guardTile(t)
	_ = src[t.groups*groupSize-1]
	quantizeAVX2(&t.codes[row*groupSize], &t.scale[row], &t.sum[row], &t.bias[row],
		&src[0], t.rows, t.groups)
}

// guardInteger checks the other operands of an integer tile.
func guardInteger(bytes int, c []float32, ldc int, codes []uint8, scales []float32, t tile) {
	guardTile(t)
	_ = c[(t.rows-1)*ldc+panelWidth-1]
	_ = codes[t.groups*bytes-1]
	_ = scales[t.groups*panelWidth-1]
}

func q8AVX512(c []float32, ldc int, codes []uint8, scales []float32, t tile) {
	guardInteger(panelBytes8, c, ldc, codes, scales, t)
	switch t.rows {
	case 16:
		q8Tile16AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &t.codes[0], &t.scale[0],
			&t.bias[0], t.groups)
	case 4:
		q8Tile4AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &t.codes[0], &t.scale[0],
			&t.bias[0], t.groups)
	default:
		q8Tile1AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &t.codes[0], &t.scale[0],
			&t.bias[0], t.groups)
	}
}

func q4AVX512(c []float32, ldc int, codes []uint8, scales, mins []float32, t tile) {
	guardInteger(panelBytes4, c, ldc, codes, scales, t)
	_ = mins[t.groups*panelWidth-1]
	switch t.rows {
	case 16:
		q4Tile16AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &mins[0], &t.codes[0],
			&t.scale[0], &t.sum[0], t.groups)
	case 4:
		q4Tile4AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &mins[0], &t.codes[0],
			&t.scale[0], &t.sum[0], t.groups)
	default:
		q4Tile1AVX512(&c[0], 4*ldc, &codes[0], &scales[0], &mins[0], &t.codes[0],
			&t.scale[0], &t.sum[0], t.groups)
	}
}

// The AVX2 tiles cover half a panel: 32 of each 64 bytes, 8 of 16 scales.

func q8AVX2(c []float32, ldc int, codes []uint8, scales []float32, t tile) {
	guardInteger(panelBytes8, c, ldc, codes, scales, t)
	for h := 0; h < panelWidth; h += panelWidth / 2 {
		if t.rows == 4 {
			q8Tile4AVX2(&c[h], 4*ldc, &codes[4*h], &scales[h], &t.codes[0], &t.scale[0],
				&t.bias[0], t.groups)
		} else {
			q8Tile1AVX2(&c[h], 4*ldc, &codes[4*h], &scales[h], &t.codes[0], &t.scale[0],
				&t.bias[0], t.groups)
		}
	}
}

func q4AVX2(c []float32, ldc int, codes []uint8, scales, mins []float32, t tile) {
	guardInteger(panelBytes4, c, ldc, codes, scales, t)
	_ = mins[t.groups*panelWidth-1]
	for h := 0; h < panelWidth; h += panelWidth / 2 {
		if t.rows == 4 {
			q4Tile4AVX2(&c[h], 4*ldc, &codes[4*h], &scales[h], &mins[h], &t.codes[0],
				&t.scale[0], &t.sum[0], t.groups)
		} else {
			q4Tile1AVX2(&c[h], 4*ldc, &codes[4*h], &scales[h], &mins[h], &t.codes[0],
				&t.scale[0], &t.sum[0], t.groups)
		}
	}
}

func dotSliceAVX512(a, b []float32) float32 {
	if len(a) == 0 {
		return 0
	}
	return dotAVX512(&a[0], &b[0], len(a))
}

func dotSliceAVX2(a, b []float32) float32 {
	if len(a) == 0 {
		return 0
	}
	return dotAVX2(&a[0], &b[0], len(a))
}

func axpySliceAVX512(dst []float32, x float32, src []float32) {
	if len(dst) > 0 {
		axpyAVX512(&dst[0], x, &src[0], len(dst))
	}
}

func axpySliceAVX2(dst []float32, x float32, src []float32) {
	if len(dst) > 0 {
		axpyAVX2(&dst[0], x, &src[0], len(dst))
	}
}

func expSumOf512(dst, x []float32, top float32) float32 {
	if len(x) == 0 {
		return 0
	}
	_ = dst[len(x)-1]
	return expSumAVX512(&dst[0], &x[0], top, len(x))
}

func expSumOf256(dst, x []float32, top float32) float32 {
	if len(x) == 0 {
		return 0
	}
	_ = dst[len(x)-1]
	return expSumAVX2(&dst[0], &x[0], top, len(x))
}

func largestOf512(x []float32, top float32) float32 {
	if len(x) == 0 {
		return top
	}
	return largestAVX512(&x[0], top, len(x))
}

func largestOf256(x []float32, top float32) float32 {
	if len(x) == 0 {
		return top
	}
	return largestAVX2(&x[0], top, len(x))
}
