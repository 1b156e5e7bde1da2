// SPDX-License-Identifier: Apache-2.0

package quant

import "github.com/kvist-project/kvist/quant/layout"

// Bit planes: plane 0 holds the highest bit of every code, so that a demotion drops the last
// plane. Within a plane, value i of row r is bit i%8 of byte r*dim/8 + i/8: read as a
// little-endian 64-bit word, bit i is value i.

// putCode stores a code of bits bits of value i of row r.
func putCode(planes []byte, planeBytes, bits, dim, r, i int, code uint8) {
	at, mask := r*layout.RowPlaneBytes(dim)+i/8, byte(1)<<(i%8)
	for p := 0; p < bits; p++ {
		if code>>(bits-1-p)&1 != 0 {
			planes[p*planeBytes+at] |= mask
		} else {
			planes[p*planeBytes+at] &^= mask
		}
	}
}

// getCode is the inverse of putCode.
func getCode(planes []byte, planeBytes, bits, dim, r, i int) uint8 {
	at, shift := r*layout.RowPlaneBytes(dim)+i/8, i%8
	var code uint8
	for p := 0; p < bits; p++ {
		code = code<<1 | planes[p*planeBytes+at]>>shift&1
	}
	return code
}
