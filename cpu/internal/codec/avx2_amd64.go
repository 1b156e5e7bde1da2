// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package codec

import (
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// AVX2 returns the kernels for AVX2 with FMA.
func AVX2() *Kernels {
	return &Kernels{isa: "avx2", forward: forwardAVX2, inverse: inverseAVX2,
		peaks: peakRowsAVX2, scale: scaleSliceAVX2, quantize: quantizeRowsAVX2,
		quantizeU8: quantizeU8RowsAVX2, planes: decodePlanesAVX2, u8: decodeU8RowsAVX2,
		toF16: toF16SliceAVX2, ratios: ratiosGeneric, log8: log8Generic}
}

func forwardAVX2(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	_, _ = x[(rows-1)*stride+length-1], signs[length-1]
	switch length {
	case 8:
		forward8AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 16:
		forward16AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 32:
		forward32AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 64:
		forward64AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	default:
		for r := range rows {
			row := x[r*stride:][:length]
			forward64AVX2(&row[0], &signs[0], length/64, 256, 256, 1)
			longAVX2(row, norm)
		}
	}
}

// longAVX2 runs the butterflies of strides from 64 up and multiplies by norm.
func longAVX2(row []float32, norm float32) {
	for h := 64; h < len(row); h *= 2 {
		f := float32(1)
		if 2*h == len(row) {
			f = norm
		}
		butterfliesAVX2(&row[0], 4*h, len(row)/(2*h), f)
	}
}

func inverseAVX2(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	_, _ = x[(rows-1)*stride+length-1], signs[length-1]
	switch length {
	case 8:
		inverse8AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 16:
		inverse16AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 32:
		inverse32AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	case 64:
		inverse64AVX2(&x[0], &signs[0], rows, 4*stride, 0, norm)
	default:
		for r := range rows {
			row := x[r*stride:][:length]
			inverse64AVX2(&row[0], &noSigns[0], length/64, 256, 0, 1)
			longAVX2(row, norm)
			flip(row, signs)
		}
	}
}

func peakRowsAVX2(peaks []uint32, x []float32, stride, n int) {
	if rows := len(peaks); rows > 0 {
		_ = x[(rows-1)*stride+16*n-1]
		peaksAVX2(&peaks[0], &x[0], rows, 2*n, 4*stride)
	}
}

func scaleSliceAVX2(x, factors []float32, stride, n int) {
	if rows := len(factors); rows > 0 {
		_ = x[(rows-1)*stride+16*n-1]
		scaleRowsAVX2(&x[0], &factors[0], rows, 2*n, 4*stride)
	}
}

func quantizeRowsAVX2(q planesJob, y []float32) {
	if q.rows == 0 {
		return
	}
	rowBytes := q.dim / 8
	_, _ = y[(q.rows-1)*q.stride+q.dim-1], q.tmp[q.dim-1]
	_ = q.dst[(q.bits-1)*q.plane+q.rows*rowBytes-1]
	_, _ = q.sums[2*q.rows-1], q.cc[q.rows-1]
	_, _ = q.thresholds[7], q.centroids[7]
	half := 1
	for half < rowBytes {
		half *= 2
	}
	half /= 2
	f := quantizeLM4AVX2
	switch q.bits {
	case 1:
		f = quantizeLM1AVX2
	case 2:
		f = quantizeLM2AVX2
	case 3:
		f = quantizeLM3AVX2
	}
	f(&q.dst[0], q.plane, rowBytes, &y[0], q.rows, 4*q.stride, rowBytes, half,
		float32(q.dim), &q.thresholds[0], &q.centroids[0], &q.tmp[0], &q.sums[0], &q.cc[0])
}

func quantizeU8RowsAVX2(codes []byte, y, steps []float32, stride, dim int) {
	if rows := len(steps); rows > 0 {
		_, _ = codes[rows*dim-1], y[(rows-1)*stride+dim-1]
		quantizeU8AVX2(&codes[0], &y[0], &steps[0], rows, 4*stride, dim/8)
	}
}

// byteBooks are the integer centroids of lm1..lm4 by code.
var byteBooks = func() (t [4][16]int8) {
	for i := range t {
		copy(t[i][:], layout.Nested(i+1))
	}
	return t
}()

func decodePlanesAVX2(dst []float32, p planeRows, units []float32, stride int) {
	if p.rows == 0 {
		return
	}
	_, _ = dst[p.rows*stride-1], units[p.rows-1]
	_ = p.src[p.end(stride)-1]
	if p.table != &codebooks[quant.LM1+quant.Format(p.bits-1)] {
		planesGeneric(dst, p, units, stride) // the centroids of tqmse are not integers
		return
	}
	f := decodeLM4AVX2
	switch p.bits {
	case 1:
		f = decodeLM1AVX2
	case 2:
		f = decodeLM2AVX2
	case 3:
		f = decodeLM3AVX2
	}
	f(&dst[0], &p.src[0], p.plane, p.rowBytes, &byteBooks[p.bits-1][0], &units[0], p.rows,
		stride/32, 4*stride)
}

func decodeU8RowsAVX2(dst []float32, src []byte, units []float32, stride, dim int) {
	if rows := len(units); rows > 0 {
		_, _ = dst[(rows-1)*stride+dim-1], src[rows*dim-1]
		decodeU8AVX2(&dst[0], &src[0], &units[0], rows, dim/8, 4*stride)
	}
}

func toF16SliceAVX2(dst []byte, src []float32) {
	n := len(src) / 8
	if n > 0 {
		_ = dst[16*n-1]
		toF16AVX2(&dst[0], &src[0], n)
	}
	toF16Generic(dst[16*n:], src[8*n:])
}
