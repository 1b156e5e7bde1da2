// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"cmp"
	"math"
	"slices"
)

// eigen returns the eigenvalues of a symmetric matrix [n, n], descending, and the eigenvectors as rows. It
// destroys a.
//
// Source: Householder's reduction to a tridiagonal matrix, then QL steps with implicit shifts; Golub and Van
// Loan, Matrix Computations, sections 8.3.1 and 8.3.3.
func eigen(a []float64, n int) (values, vectors []float64) {
	d, e := make([]float64, n), make([]float64, n)
	v := tridiagonal(a, n, d, e)
	diagonalize(v, n, d, e)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(d[y], d[x]) })
	values, vectors = make([]float64, n), make([]float64, n*n)
	for i, o := range order {
		values[i] = d[o]
		copy(vectors[i*n:(i+1)*n], v[o*n:(o+1)*n])
	}
	return values, vectors
}

// tridiagonal reduces a to a tridiagonal matrix with diagonal d and lower diagonal e, e[i] beside d[i] and
// d[i+1], and returns the transform whose rows are the new axes.
func tridiagonal(a []float64, n int, d, e []float64) (v []float64) {
	u, p := make([]float64, n), make([]float64, n)
	type reflection struct {
		u []float64
		b float64
	}
	var all []reflection
	for k := range n - 2 {
		// Reflect column k below the diagonal onto its first element.
		x := u[k+1:]
		var norm float64
		for i := range x {
			x[i] = a[k*n+k+1+i]
			norm += x[i] * x[i]
		}
		norm = math.Sqrt(norm)
		if norm == 0 {
			all = append(all, reflection{})
			continue
		}
		if x[0] > 0 {
			norm = -norm
		}
		b := 1 / (norm * (norm - x[0])) // 2 / |x - norm e|^2
		x[0] -= norm
		// p = b A x; A -= x w' + w x' with w = p - (b/2)(p.x) x
		w := p[k+1:]
		var px float64
		for i := range w {
			row := a[(k+1+i)*n+k+1 : (k+2+i)*n]
			var sum float64
			for j, y := range x {
				sum += row[j] * y
			}
			w[i] = b * sum
			px += w[i] * x[i]
		}
		for i := range w {
			w[i] -= b / 2 * px * x[i]
		}
		for i := range w {
			row := a[(k+1+i)*n+k+1 : (k+2+i)*n]
			xi, wi := x[i], w[i]
			for j := range row {
				row[j] -= xi*w[j] + wi*x[j]
			}
		}
		a[k*n+k+1], a[(k+1)*n+k] = norm, norm
		all = append(all, reflection{slices.Clone(x), b})
	}
	for i := range n {
		d[i] = a[i*n+i]
		if i+1 < n {
			e[i] = a[i*n+i+1]
		}
	}
	v = make([]float64, n*n)
	for i := range n {
		v[i*n+i] = 1
	}
	for k := len(all) - 1; k >= 0; k-- { // v = v H_k, from the last on: rows below k only
		r := all[k]
		if r.u == nil {
			continue
		}
		for i := k + 1; i < n; i++ {
			row := v[i*n+k+1 : (i+1)*n]
			var sum float64
			for j, y := range r.u {
				sum += row[j] * y
			}
			sum *= r.b
			for j, y := range r.u {
				row[j] -= sum * y
			}
		}
	}
	return v
}

// diagonalize makes e zero by rotations, which it applies to the rows of v.
func diagonalize(v []float64, n int, d, e []float64) {
	for l := range n {
		for range 100 {
			m := l
			for m+1 < n && math.Abs(e[m]) > 1e-16*(math.Abs(d[m])+math.Abs(d[m+1])) {
				m++
			}
			if m == l {
				break
			}
			g := (d[l+1] - d[l]) / (2 * e[l])
			r := math.Hypot(g, 1)
			g = d[m] - d[l] + e[l]/(g+math.Copysign(r, g))
			s, c, p := 1.0, 1.0, 0.0
			for i := m - 1; i >= l; i-- {
				f, b := s*e[i], c*e[i]
				r = math.Hypot(f, g)
				e[i+1] = r
				if r == 0 {
					d[i+1] -= p
					e[m] = 0
					break
				}
				s, c = f/r, g/r
				g = d[i+1] - p
				r = (d[i]-g)*s + 2*c*b
				p = s * r
				d[i+1] = g + p
				g = c*r - b
				x, y := v[i*n:(i+1)*n], v[(i+1)*n:(i+2)*n]
				for k, xk := range x {
					yk := y[k]
					y[k] = s*xk + c*yk
					x[k] = c*xk - s*yk
				}
			}
			if r != 0 || m == l+1 {
				d[l] -= p
				e[l] = g
				e[m] = 0
			}
		}
	}
}
