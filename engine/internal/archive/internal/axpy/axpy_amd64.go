// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package axpy

import "golang.org/x/sys/cpu"

var useAVX2, useAVX512 = cpu.X86.HasAVX2, cpu.X86.HasAVX512F

// accumulatePairAVX512 is AccumulatePair for 64 columns of n rows that are stride bytes apart.
//
//go:noescape
func accumulatePairAVX512(y0, y1, m *float32, stride int, c0, c1 *float32, n int)

// accumulatePair does the first columns and returns how many.
func accumulatePair(y0, y1, m, c0, c1 []float32) (at int) {
	if !useAVX512 || len(c0) == 0 {
		return 0
	}
	for ; at+64 <= len(y0); at += 64 {
		accumulatePairAVX512(&y0[at], &y1[at], &m[at], 4*len(y0), &c0[0], &c1[0], len(c0))
	}
	return at
}

// accumulate64AVX2 is Accumulate for 64 columns of n rows that are stride bytes apart, with factors that are
// step bytes apart.
//
//go:noescape
func accumulate64AVX2(y, m *float32, stride int, c *float32, step, n int)

func accumulate(y, m, c []float32) {
	at := 0
	if useAVX2 && len(c) > 0 {
		for ; at+64 <= len(y); at += 64 {
			accumulate64AVX2(&y[at], &m[at], 4*len(y), &c[0], 4, len(c))
		}
	}
	if at < len(y) {
		accumulateGeneric(y, m, c, at)
	}
}

func products(y, m []float32, i int) {
	d, at := len(y), 0
	if useAVX2 && len(m) > 0 {
		for ; at+64 <= d; at += 64 {
			accumulate64AVX2(&y[at], &m[at], 4*d, &m[i], 4*d, len(m)/d)
		}
	}
	if at < d {
		productsGeneric(y, m, i, at)
	}
}

// subtractAVX2 is Subtract for n values, a multiple of 16.
//
//go:noescape
func subtractAVX2(y, x *float64, a float64, n int)

// subtract does the first values and returns how many.
func subtract(y, x []float64, a float64) int {
	n := len(y) &^ 15
	if !useAVX2 || n == 0 {
		return 0
	}
	subtractAVX2(&y[0], &x[0], a, n)
	return n
}
