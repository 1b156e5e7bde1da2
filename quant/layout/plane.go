// SPDX-License-Identifier: Apache-2.0

package layout

// planeAlign is the alignment of every bit plane within a packed side, in bytes: a plane can be read
// in 64-bit words once the side itself starts on such a boundary. Where the rows are a multiple of
// 16, or dim of 128, a plane is a multiple of 16 bytes, so that 16-byte loads of whole groups of
// rows neither cross a plane nor such a boundary.
const planeAlign = 8

// Align returns n rounded up to the alignment of planes.
func Align(n int) int { return (n + planeAlign - 1) / planeAlign * planeAlign }

// RowPlaneBytes returns the bytes that one row takes in one bit plane.
func RowPlaneBytes(dim int) int { return dim / 8 }

// PlaneBytes returns the bytes of one bit plane of rows rows, padding included.
func PlaneBytes(rows, dim int) int { return Align(rows * RowPlaneBytes(dim)) }
