// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package codec

import "github.com/kvist-project/kvist/quant"

// The wrappers below convert slices to pointers and distances to bytes. Each first accesses the
// last element that the assembly accesses, so that a wrong call panics instead of reading or
// writing outside.

// AVX512 returns the kernels for AVX-512 with F, BW, VL, DQ, VBMI, GFNI and VPOPCNTDQ.
func AVX512() *Kernels {
	return &Kernels{isa: "avx512", forward: forwardAVX512, inverse: inverseAVX512,
		peaks: peakRowsAVX512, scale: scaleSliceAVX512, quantize: quantizeAVX512,
		quantizeU8: quantizeU8RowsAVX512, planes: decodePlanesAVX512, u8: decodeU8RowsAVX512,
		toF16: toF16SliceAVX2, count: countAVX512, ratios: ratiosTileAVX512, log8: log8SliceAVX512}
}

func forwardAVX512(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	_, _ = x[(rows-1)*stride+length-1], signs[length-1]
	switch length {
	case 8:
		forward8AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 16:
		forward16AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 32:
		forward32AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 64:
		forward64AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 128:
		forward128AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 256:
		forward256AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	default:
		for r := range rows {
			row := x[r*stride:][:length]
			forward256AVX512(&row[0], &signs[0], length/256, 1024, 1024, 1)
			longAVX512(row, norm)
		}
	}
}

// longAVX512 runs the butterflies of strides from 256 up and multiplies by norm.
func longAVX512(row []float32, norm float32) {
	for h := 256; h < len(row); h *= 2 {
		f := float32(1)
		if 2*h == len(row) {
			f = norm
		}
		butterfliesAVX512(&row[0], 4*h, len(row)/(2*h), f)
	}
}

// noSigns is a sign table that flips no signs, for windows of up to 256 values.
var noSigns [256]uint32

func inverseAVX512(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	_, _ = x[(rows-1)*stride+length-1], signs[length-1]
	switch length {
	case 8:
		inverse8AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 16:
		inverse16AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 32:
		inverse32AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 64:
		inverse64AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 128:
		inverse128AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 256:
		inverse256AVX512(&x[0], &signs[0], rows, 4*stride, 0, norm)
	default:
		for r := range rows {
			row := x[r*stride:][:length]
			inverse256AVX512(&row[0], &noSigns[0], length/256, 1024, 0, 1)
			longAVX512(row, norm)
			flip(row, signs)
		}
	}
}

func peakRowsAVX512(peaks []uint32, x []float32, stride, n int) {
	if rows := len(peaks); rows > 0 {
		_ = x[(rows-1)*stride+16*n-1]
		peaksAVX512(&peaks[0], &x[0], rows, n, 4*stride)
	}
}

func scaleSliceAVX512(x, factors []float32, stride, n int) {
	if rows := len(factors); rows > 0 {
		_ = x[(rows-1)*stride+16*n-1]
		scaleRowsAVX512(&x[0], &factors[0], rows, n, 4*stride)
	}
}

func quantizeAVX512(q planesJob, y []float32) {
	if q.rows == 0 {
		return
	}
	rowBytes := q.dim / 8
	_, _ = y[(q.rows-1)*q.stride+16*q.n-1], q.tmp[16*q.n-1]
	_ = q.dst[(q.bits-1)*q.plane+q.rows*rowBytes-1]
	_, _ = q.sums[2*q.rows-1], q.cc[q.rows-1]
	_, _ = q.thresholds[7], q.centroids[7]
	half := 1
	for half < q.n {
		half *= 2
	}
	half /= 2
	f := quantizeLM4AVX512
	switch q.bits {
	case 1:
		f = quantizeLM1AVX512
	case 2:
		f = quantizeLM2AVX512
	case 3:
		f = quantizeLM3AVX512
	}
	f(&q.dst[0], q.plane, rowBytes, &y[0], q.rows, 4*q.stride, q.n, half, q.oddEnd,
		float32(q.dim), &q.thresholds[0], &q.centroids[0], &q.tmp[0], &q.sums[0], &q.cc[0])
}

func quantizeU8RowsAVX512(codes []byte, y, steps []float32, stride, dim int) {
	rows, n := len(steps), (dim+15)/16
	if rows == 0 {
		return
	}
	_, _ = codes[rows*dim-1], y[(rows-1)*stride+16*n-1]
	quantizeU8AVX512(&codes[0], &y[0], &steps[0], rows, 4*stride, n, dim/8%2)
}

func decodePlanesAVX512(dst []float32, p planeRows, units []float32, stride int) {
	if p.rows == 0 {
		return
	}
	_, _ = dst[p.rows*stride-1], units[p.rows-1]
	_ = p.src[p.end(stride)-1]
	f := decodeLM4AVX512
	switch p.bits {
	case 1:
		f = decodeLM1AVX512
	case 2:
		f = decodeLM2AVX512
	case 3:
		f = decodeLM3AVX512
	}
	f(&dst[0], &p.src[0], p.plane, p.rowBytes, &p.table[0], &units[0], p.rows, stride/64, 4*stride)
}

func decodeU8RowsAVX512(dst []float32, src []byte, units []float32, stride, dim int) {
	rows, n := len(units), (dim+15)/16
	if rows == 0 {
		return
	}
	_, _ = dst[(rows-1)*stride+16*n-1], src[rows*dim-1]
	decodeU8AVX512(&dst[0], &src[0], &units[0], rows, n, dim/8%2, 4*stride)
}

// countAVX512 processes complete groups of 8 words, of rows of up to 512 values.
func countAVX512(s *rowSums, src []byte, plane, rows, dim int, d *demotion, bits int) int {
	words := dim / 64 // of a row
	groups := rows * words / 8
	if words > 8 || groups == 0 {
		return 0
	}
	_ = src[(bits-1)*plane+64*groups-1]
	xx, xc, cc := &s.words[0], &s.words[1], &s.words[2]
	if words == 1 {
		count(&s.xx[0], &s.xc[0], &s.cc[0], &src[0], plane, &d.words[0][0], groups, bits)
		return 8 * groups
	}
	count(&xx[0], &xc[0], &cc[0], &src[0], plane, &d.words[0][0], groups, bits)
	done := 8 * groups / words
	for r := range done {
		s.xx[r], s.xc[r], s.cc[r] = 0, 0, 0
		for i := r * words; i < (r+1)*words; i++ {
			s.xx[r], s.xc[r], s.cc[r] = s.xx[r]+xx[i], s.xc[r]+xc[i], s.cc[r]+cc[i]
		}
	}
	return done
}

func count(xx, xc, cc *int32, src *byte, plane int, weights *uint32, groups, bits int) {
	switch bits {
	case 2:
		countLM2AVX512(xx, xc, cc, src, plane, weights, groups)
	case 3:
		countLM3AVX512(xx, xc, cc, src, plane, weights, groups)
	default:
		countLM4AVX512(xx, xc, cc, src, plane, weights, groups)
	}
}

// ratiosTileAVX512 processes complete vectors if scales has room for them.
func ratiosTileAVX512(scales []float32, s *rowSums, rule quant.ScaleRule) {
	n := len(scales)
	whole := (n + 15) &^ 15
	if n == 0 || cap(scales) < whole {
		ratiosGeneric(scales, s, rule)
		return
	}
	scales = scales[:whole]
	clear(scales[n:])
	ratiosAVX512(&scales[0], &s.xx[0], &s.xc[0], &s.cc[0], int(rule), whole/16)
}

// log8SliceAVX512 reads whole vectors of scales.
func log8SliceAVX512(dst []byte, scales []float32, base float32) {
	n := len(scales)
	whole := (n + 15) &^ 15
	if n == 0 || cap(scales) < whole {
		log8Generic(dst, scales, base)
		return
	}
	_, _ = dst[n-1], scales[:whole]
	log8CodesAVX512(&dst[0], &scales[0], base, n, &log8Mid[0], &log8Guess[0])
}
