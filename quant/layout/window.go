// SPDX-License-Identifier: Apache-2.0

package layout

import "math"

// Window is one power-of-two stretch of a rotation.
type Window struct {
	Start, Len int
	Norm       float32  // 1/sqrt(Len)
	Signs      []uint64 // bit i of word i/64: component Start+i changes its sign
}

// Windows returns the windows of rows of dim values, a multiple of 8: the powers of two of dim's
// binary expansion, largest first.
func Windows(dim int, seed uint64) []Window {
	var windows []Window
	word := uint64(0)
	for start := 0; start < dim; {
		w := Window{Start: start, Len: 8}
		for w.Len*2 <= dim-start {
			w.Len *= 2
		}
		w.Norm = float32(1 / math.Sqrt(float64(w.Len)))
		for range (w.Len + 63) / 64 {
			w.Signs = append(w.Signs, splitMix64(seed, word))
			word++
		}
		windows = append(windows, w)
		start += w.Len
	}
	return windows
}

// splitMix64 is output n of the generator SplitMix64 started at seed (Steele, Lea, Flood 2014).
func splitMix64(seed, n uint64) uint64 {
	z := seed + (n+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
