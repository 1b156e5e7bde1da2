// SPDX-License-Identifier: Apache-2.0

package matmul

import "math"

// genericKernels returns the kernels in plain Go. They define the meaning of every kernel, and run
// where there is no assembly.
func genericKernels() *kernels {
	return &kernels{
		isa:      "generic",
		tiles:    []int{4, 1},
		cols:     1,
		f32:      f32Generic,
		pack:     packGeneric,
		expand8:  expand8Generic,
		expand4:  expand4Generic,
		itiles:   []int{1},
		quantize: quantizeGeneric,
		q8:       q8Generic,
		q4:       q4Generic,
		unpack:   unpackGeneric,
		scales:   scalesGeneric,
		expand:   expandGeneric,
		multiply: tileGeneric,
		halves:   halvesGeneric,
		dot:      dotGeneric,
		axpy:     axpyGeneric,
		f32One:   f32Generic,
		oneTiles: []int{4, 1},
		expSum:   expSumGeneric,
		largest:  largestGeneric,
	}
}

// f32Generic keeps 4 sums of one output, or 4 outputs of one row, in registers.
func f32Generic(rows int, c []float32, ldc int, a []float32, lda int, b []float32, k int,
	add bool) {
	if !add {
		for r := range rows {
			clear(c[r*ldc : r*ldc+panelWidth])
		}
	}
	if rows == 4 {
		a0, a1 := a[:k], a[lda:][:k]
		a2, a3 := a[2*lda:][:k], a[3*lda:][:k]
		for o := range panelWidth {
			s0, s1, s2, s3 := c[o], c[ldc+o], c[2*ldc+o], c[3*ldc+o]
			col := b[o:]
			for i, x := range a0 {
				w := col[i*panelWidth]
				s0 += float32(x * w)
				s1 += float32(a1[i] * w)
				s2 += float32(a2[i] * w)
				s3 += float32(a3[i] * w)
			}
			c[o], c[ldc+o], c[2*ldc+o], c[3*ldc+o] = s0, s1, s2, s3
		}
		return
	}
	for o := 0; o < panelWidth; o += 4 {
		s0, s1, s2, s3 := c[o], c[o+1], c[o+2], c[o+3]
		for i, x := range a[:k] {
			w := b[i*panelWidth+o:][:4]
			s0 += float32(x * w[0])
			s1 += float32(x * w[1])
			s2 += float32(x * w[2])
			s3 += float32(x * w[3])
		}
		c[o], c[o+1], c[o+2], c[o+3] = s0, s1, s2, s3
	}
}

func packGeneric(dst, src []float32, ld, rows, k int) {
	packRows(dst, src, ld, rows, 0, k)
}

// packRows packs the inputs [from, k) of rows rows, and zeros for the rest of the panel.
func packRows(dst, src []float32, ld, rows, from, k int) {
	for r := range rows {
		for i, v := range src[r*ld+from : r*ld+k] {
			dst[(from+i)*panelWidth+r] = v
		}
	}
	for i := from; rows < panelWidth && i < k; i++ {
		clear(dst[i*panelWidth+rows : (i+1)*panelWidth])
	}
}

func expand8Generic(dst []float32, codes []uint8, scales []float32, groups int) {
	for g := range groups {
		scale := scales[g*panelWidth:][:panelWidth]
		from := codes[g*panelBytes8:][:panelBytes8]
		to := dst[g*groupSize*panelWidth:][:groupSize*panelWidth]
		for at, b := range from {
			in, out := at/64*4+at%4, at%64/4
			to[in*panelWidth+out] = scale[out] * float32(int8(b))
		}
	}
}

func expand4Generic(dst []float32, codes []uint8, scales, mins []float32, groups int) {
	for g := range groups {
		scale := scales[g*panelWidth:][:panelWidth]
		least := mins[g*panelWidth:][:panelWidth]
		from := codes[g*panelBytes4:][:panelBytes4]
		to := dst[g*groupSize*panelWidth:][:groupSize*panelWidth]
		for at, b := range from {
			in, out := at/64*4+at%4, at%64/4
			to[in*panelWidth+out] = float32(scale[out]*float32(b&15)) + least[out]
			to[(in+16)*panelWidth+out] = float32(scale[out]*float32(b>>4)) + least[out]
		}
	}
}

func quantizeGeneric(t tile, row int, src []float32) {
	for g := range t.groups {
		x := src[g*groupSize:][:groupSize]
		at := g*t.rows + row
		codes := t.codes[at*groupSize:][:groupSize]
		// Magnitudes compare as integers, with NaN above infinity, so the maximum does not depend
		// on the order.
		var largest uint32
		for _, v := range x {
			largest = max(largest, math.Float32bits(v)&0x7fffffff)
		}
		if largest < tinyBits || largest >= infBits {
			clear(codes)
			t.scale[at], t.sum[at], t.bias[at] = 0, 0, 0
			if largest >= infBits {
				t.scale[at] = float32(math.NaN())
				t.sum[at] = t.scale[at]
			}
			continue
		}
		l := math.Float32frombits(largest)
		inv := 127 / l
		var sum int32
		for i, v := range x {
			c := int32(math.RoundToEven(float64(v * inv)))
			codes[i] = int8(c)
			sum += c
		}
		t.scale[at] = l / 127
		t.sum[at] = t.scale[at] * float32(sum)
		t.bias[at] = -128 * sum
	}
}

func q8Generic(c []float32, ldc int, codes []uint8, scales []float32, t tile) {
	for r := range t.rows {
		var acc [panelWidth]float32
		for g := range t.groups {
			at := g*t.rows + r
			a := t.codes[at*groupSize:][:groupSize]
			var sums [panelWidth]int32
			for q := range groupSize / 4 {
				v := codes[g*panelBytes8+q*64:][:64]
				a0, a1 := int32(a[4*q]), int32(a[4*q+1])
				a2, a3 := int32(a[4*q+2]), int32(a[4*q+3])
				for o := range sums {
					sums[o] += a0*int32(int8(v[4*o])) + a1*int32(int8(v[4*o+1])) +
						a2*int32(int8(v[4*o+2])) + a3*int32(int8(v[4*o+3]))
				}
			}
			scale := scales[g*panelWidth:][:panelWidth]
			for o, s := range sums {
				acc[o] += float32(float32(s) * float32(scale[o]*t.scale[at]))
			}
		}
		copy(c[r*ldc:r*ldc+panelWidth], acc[:])
	}
}

func q4Generic(c []float32, ldc int, codes []uint8, scales, mins []float32, t tile) {
	for r := range t.rows {
		var acc [panelWidth]float32
		for g := range t.groups {
			at := g*t.rows + r
			a := t.codes[at*groupSize:][:groupSize]
			var sums [panelWidth]int32
			for q := range groupSize / 8 {
				v := codes[g*panelBytes4+q*64:][:64]
				for b := range 4 {
					lo, hi := int32(a[4*q+b]), int32(a[4*q+b+16])
					for o := range sums {
						w := v[4*o+b]
						sums[o] += lo*int32(w&15) + hi*int32(w>>4)
					}
				}
			}
			scale := scales[g*panelWidth:][:panelWidth]
			least := mins[g*panelWidth:][:panelWidth]
			for o, s := range sums {
				acc[o] += float32(float32(s) * float32(scale[o]*t.scale[at]))
				acc[o] += float32(least[o] * t.sum[at])
			}
		}
		copy(c[r*ldc:r*ldc+panelWidth], acc[:])
	}
}

// dotGeneric keeps the 32 sums of the vector kernels and adds them in the same tree.
func dotGeneric(a, b []float32) float32 {
	var s [32]float32
	for len(a) >= 32 && len(b) >= 32 {
		x, y := a[:32], b[:32]
		for i := range s {
			s[i] += float32(x[i] * y[i])
		}
		a, b = a[32:], b[32:]
	}
	for i, v := range a {
		s[i] += float32(v * b[i])
	}
	for h := 16; h > 0; h /= 2 {
		for i := range h {
			s[i] += s[i+h]
		}
	}
	return s[0]
}

func axpyGeneric(dst []float32, x float32, src []float32) {
	src = src[:len(dst)]
	for i, v := range src {
		dst[i] += float32(x * v)
	}
}
