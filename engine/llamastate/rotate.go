// SPDX-License-Identifier: Apache-2.0

package llamastate

import "math"

// llama.cpp turns K and V of quantized caches whose head_dim is a multiple of leastTurn by an orthonormal
// Walsh-Hadamard matrix: K by the largest power of two that divides head_dim, V by leastTurn.
const leastTurn = 64

// turnOfK and turnOfV return the size of the matrix, 0 for none.
func turnOfK(t *elem, dim int) int {
	if !t.quantized() || dim%leastTurn != 0 {
		return 0
	}
	n := leastTurn
	for dim%(2*n) == 0 {
		n *= 2
	}
	return n
}

func turnOfV(t *elem, dim int) int {
	if !t.quantized() || dim%leastTurn != 0 {
		return 0
	}
	return leastTurn
}

// turn multiplies pieces of n values of x with the matrix, which is its own inverse. n is a power of two.
func turn(x []float32, n int) {
	if n == 0 {
		return
	}
	f := float32(1 / math.Sqrt(float64(n)))
	for at := 0; at+n <= len(x); at += n {
		p := x[at : at+n]
		for s := 1; s < n; s *= 2 {
			for i := 0; i < n; i += 2 * s {
				for j := i; j < i+s; j++ {
					p[j], p[j+s] = p[j]+p[j+s], p[j]-p[j+s]
				}
			}
		}
		for i := range p {
			p[i] *= f
		}
	}
}

// halves puts the rotary components of a head from pairs of neighbours into halves: 2i to i, 2i+1 to i+n/2.
// tmp has n values.
func halves(x, tmp []float32, n int) {
	for i := range n / 2 {
		tmp[i], tmp[i+n/2] = x[2*i], x[2*i+1]
	}
	copy(x, tmp[:n])
}

// pairs is the inverse of halves.
func pairs(x, tmp []float32, n int) {
	for i := range n / 2 {
		tmp[2*i], tmp[2*i+1] = x[i], x[i+n/2]
	}
	copy(x, tmp[:n])
}
