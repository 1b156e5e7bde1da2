// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package half

import "golang.org/x/sys/cpu"

// F16C has no flag of its own in package cpu; every processor with AVX2 has it.
var useAVX2 = cpu.X86.HasAVX2

// widenAVX2 converts n values, a multiple of 8, and returns how many it did: it stops before eight of
// which one is Inf or NaN.
//
//go:noescape
func widenAVX2(dst *float32, src *byte, n int) int

// narrowAVX2 converts n values, a multiple of 8, and returns how many it did: it stops before eight of
// which one is beyond 65504 or NaN.
//
//go:noescape
func narrowAVX2(dst *byte, src *float32, n int) int

func widen(dst []float32, src []byte) int {
	if n := len(dst) &^ 7; useAVX2 && n > 0 {
		return widenAVX2(&dst[0], &src[0], n)
	}
	return 0
}

func narrow(dst []byte, src []float32) int {
	if n := len(src) &^ 7; useAVX2 && n > 0 {
		return narrowAVX2(&dst[0], &src[0], n)
	}
	return 0
}

// finiteAVX2 reports whether none of n values, a multiple of 32, is Inf or NaN.
//
//go:noescape
func finiteAVX2(x *float32, n int) bool

// finite looks at the first values and returns how many those are.
func finite(x []float32) (n int, ok bool) {
	if n = len(x) &^ 31; useAVX2 && n > 0 {
		return n, finiteAVX2(&x[0], n)
	}
	return 0, true
}
