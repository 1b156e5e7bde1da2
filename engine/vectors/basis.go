// SPDX-License-Identifier: Apache-2.0

package vectors

import "math"

// packBasis rounds axes, rows of dim values, to int8 with one scale each.
func packBasis(basis []float64, dim int) (codes []int8, scales []float32) {
	codes = make([]int8, len(basis))
	for lo := 0; lo < len(basis); lo += dim {
		row := basis[lo : lo+dim]
		var top float64
		for _, v := range row {
			top = max(top, math.Abs(v))
		}
		step := float32(top / 127)
		scales = append(scales, step)
		for i, v := range row {
			if step > 0 {
				codes[lo+i] = int8(math.RoundToEven(v / float64(step)))
			}
		}
	}
	return codes, scales
}

// unpackBasis returns the axes that packBasis rounded, made orthonormal again one after the other, and axes
// of zeros up to comps. An axis that depends on those before it becomes zero. Products are rounded before
// they are added, so that the axes are the same on every machine.
func unpackBasis(codes []int8, scales []float32, dim, comps int) []float32 {
	out := make([]float32, comps*dim)
	done := make([][]float64, 0, len(scales))
	for k, s := range scales {
		u := make([]float64, dim)
		var before float64
		for i, c := range codes[k*dim : (k+1)*dim] {
			u[i] = float64(s) * float64(c)
			before += float64(u[i] * u[i])
		}
		for _, v := range done {
			dot := dotRounded(u, v)
			for i := range u {
				u[i] -= float64(dot * v[i])
			}
		}
		norm := math.Sqrt(dotRounded(u, u))
		if !(norm > 1e-6*math.Sqrt(before)) {
			continue // the axis stays zero
		}
		for i := range u {
			u[i] /= norm
			out[k*dim+i] = float32(u[i])
		}
		done = append(done, u)
	}
	return out
}

// panels lays axes, rows of dim values, side by side in panels of 16.
func panels(axes []float32, dim int) []float32 {
	out := make([]float32, len(axes))
	for k := range len(axes) / dim {
		for j, v := range axes[k*dim : (k+1)*dim] {
			out[(k/16*dim+j)*16+k%16] = v
		}
	}
	return out
}

func dotRounded(a, b []float64) float64 {
	b = b[:len(a)]
	var s [4]float64
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s[0] += float64(a[i] * b[i])
		s[1] += float64(a[i+1] * b[i+1])
		s[2] += float64(a[i+2] * b[i+2])
		s[3] += float64(a[i+3] * b[i+3])
	}
	for ; i < len(a); i++ {
		s[0] += float64(a[i] * b[i])
	}
	return s[0] + s[1] + (s[2] + s[3])
}
