// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
)

func identity(d int) []float64 {
	m := make([]float64, d*d)
	for i := range d {
		m[i*d+i] = 1
	}
	return m
}

func transpose(a []float64, d int) []float64 {
	t := make([]float64, d*d)
	for i := range d {
		for j := range d {
			t[j*d+i] = a[i*d+j]
		}
	}
	return t
}

func multiply(a, b []float64, d int) []float64 {
	c := make([]float64, d*d)
	for i := range d {
		out := c[i*d : (i+1)*d]
		for k, v := range a[i*d : (i+1)*d] {
			if v == 0 {
				continue
			}
			for j, w := range b[k*d : (k+1)*d] {
				out[j] += v * w
			}
		}
	}
	return c
}

// roots returns the symmetric square root of a metric and its inverse.
func roots(m []float64, d int) (root, unroot []float64) {
	w, v := eigen(m, d)
	floor := w[0] * metricFloor
	a, b := make([]float64, d*d), make([]float64, d*d)
	for i := range d {
		for k := range d {
			s := math.Sqrt(max(w[k], floor))
			a[i*d+k], b[i*d+k] = v[i*d+k]*s, v[i*d+k]/s
		}
	}
	vt := transpose(v, d)
	return multiply(a, vt, d), multiply(b, vt, d)
}

// eigen returns the eigenvalues of a symmetric matrix, descending, and its eigenvectors as columns,
// by Jacobi's rotations.
func eigen(m []float64, d int) (w, v []float64) {
	a := slices.Clone(m)
	vt := identity(d) // rows are eigenvectors
	for range 30 {
		var off, diag float64
		for i := range d {
			diag += a[i*d+i] * a[i*d+i]
			for j := range i {
				off += a[i*d+j] * a[i*d+j]
			}
		}
		if off <= 1e-22*diag {
			break
		}
		for p := range d {
			for q := p + 1; q < d; q++ {
				rotate(a, vt, d, p, q)
			}
		}
	}
	order := make([]int, d)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int {
		switch {
		case a[x*d+x] > a[y*d+y]:
			return -1
		case a[x*d+x] < a[y*d+y]:
			return 1
		}
		return 0
	})
	w, v = make([]float64, d), make([]float64, d*d)
	for k, o := range order {
		w[k] = a[o*d+o]
		for i := range d {
			v[i*d+k] = vt[o*d+i]
		}
	}
	return w, v
}

// rotate makes a[p][q] zero.
func rotate(a, vt []float64, d, p, q int) {
	apq := a[p*d+q]
	if apq == 0 {
		return
	}
	theta := (a[q*d+q] - a[p*d+p]) / (2 * apq)
	t := 1 / (math.Abs(theta) + math.Sqrt(theta*theta+1))
	if theta < 0 {
		t = -t
	}
	c := 1 / math.Sqrt(t*t+1)
	s := t * c
	rp, rq := a[p*d:(p+1)*d], a[q*d:(q+1)*d]
	for k := range rp {
		x, y := rp[k], rq[k]
		rp[k], rq[k] = c*x-s*y, s*x+c*y
	}
	for k := range d {
		x, y := a[k*d+p], a[k*d+q]
		a[k*d+p], a[k*d+q] = c*x-s*y, s*x+c*y
	}
	vp, vq := vt[p*d:(p+1)*d], vt[q*d:(q+1)*d]
	for k := range vp {
		x, y := vp[k], vq[k]
		vp[k], vq[k] = c*x-s*y, s*x+c*y
	}
}

// invert returns the inverse of an n by n matrix by elimination in place, with row pivots.
func invert(m []float64, n int) ([]float64, bool) {
	a := slices.Clone(m)
	swapped := make([]int, n)
	for c := range n {
		p := c
		for r := c; r < n; r++ {
			if math.Abs(a[r*n+c]) > math.Abs(a[p*n+c]) {
				p = r
			}
		}
		if !(math.Abs(a[p*n+c]) > 1e-12) {
			return nil, false
		}
		swapped[c] = p
		top := a[c*n : (c+1)*n]
		if p != c {
			for j, v := range a[p*n : (p+1)*n] {
				top[j], a[p*n+j] = v, top[j]
			}
		}
		// Column c becomes that of the inverse as the others are eliminated.
		f := 1 / top[c]
		top[c] = 1
		for j := range top {
			top[j] *= f
		}
		for r := range n {
			row := a[r*n : (r+1)*n]
			g := row[c]
			if r == c || g == 0 {
				continue
			}
			row[c] = 0
			axpy.Subtract(row, top, g)
		}
	}
	// Rows that were swapped are columns of the inverse.
	for c := n - 1; c >= 0; c-- {
		if p := swapped[c]; p != c {
			for r := range n {
				a[r*n+c], a[r*n+p] = a[r*n+p], a[r*n+c]
			}
		}
	}
	return a, true
}
