// SPDX-License-Identifier: Apache-2.0

// Package axpy adds multiples of rows of a matrix to a row, product by product, each rounded to
// float32 before it is added: the same bits on every machine and in every implementation.
package axpy

// Accumulate adds c[i] times row i of m to y, for i ascending; terms with c[i] = 0 are left out.
//
//	for i, a := range c {
//		if a != 0 {
//			for j := range y {
//				y[j] += float32(a * m[i*len(y)+j])
//			}
//		}
//	}
//
// m: [len(c), len(y)], row-major; y must not overlap m or c.
func Accumulate(y, m, c []float32) {
	m = m[:len(c)*len(y)]
	accumulate(y, m, c)
}

// AccumulatePair is Accumulate of two rows with factors of their own. No value of y0 and y1 is -0, and those of m are
// finite: so terms with a factor of 0 change nothing, whether they are added or not.
//
// m: [len(c0), len(y0)], row-major; c1 is as long as c0, y1 as y0; no y overlaps another array.
func AccumulatePair(y0, y1, m, c0, c1 []float32) {
	m, c1, y1 = m[:len(c0)*len(y0)], c1[:len(c0)], y1[:len(y0)]
	at := accumulatePair(y0, y1, m, c0, c1)
	if at == 0 {
		accumulate(y0, m, c0)
		accumulate(y1, m, c1)
	} else if at < len(y0) {
		accumulateGeneric(y0, m, c0, at)
		accumulateGeneric(y1, m, c1, at)
	}
}

// accumulateGeneric is Accumulate in plain Go, from column from on.
func accumulateGeneric(y, m, c []float32, from int) {
	d := len(y)
	for i, a := range c {
		if a == 0 {
			continue
		}
		row, out := m[i*d+from:(i+1)*d], y[from:]
		for len(out) >= 4 {
			x4, y4 := (*[4]float32)(row), (*[4]float32)(out)
			y4[0] += float32(a * x4[0])
			y4[1] += float32(a * x4[1])
			y4[2] += float32(a * x4[2])
			y4[3] += float32(a * x4[3])
			row, out = row[4:], out[4:]
		}
		for j := range out {
			out[j] += float32(a * row[j])
		}
	}
}

// Products adds row i of the products of the columns of m: Accumulate with column i of m as the factors.
//
//	for r := range len(m) / len(y) {
//		if a := m[r*len(y)+i]; a != 0 {
//			for j := range y {
//				y[j] += float32(a * m[r*len(y)+j])
//			}
//		}
//	}
//
// m: [rows, len(y)], row-major; y must not overlap it.
func Products(y, m []float32, i int) {
	_ = y[i]
	products(y, m[:len(m)/len(y)*len(y)], i)
}

// productsGeneric is Products in plain Go, from column from on.
func productsGeneric(y, m []float32, i, from int) {
	d := len(y)
	for len(m) > 0 {
		if a := m[i]; a != 0 {
			row, out := m[from:d], y[from:]
			for j := range out {
				out[j] += float32(a * row[j])
			}
		}
		m = m[d:]
	}
}

// Subtract takes a times x from y, each product rounded before it is subtracted.
//
//	for j := range y {
//		y[j] -= float64(a * x[j])
//	}
//
// x: at least len(y) values; y must not overlap it.
func Subtract(y, x []float64, a float64) {
	x = x[:len(y)]
	n := subtract(y, x, a)
	subtractGeneric(y[n:], x[n:], a)
}

func subtractGeneric(y, x []float64, a float64) {
	x = x[:len(y)]
	for j := range y {
		y[j] -= float64(a * x[j])
	}
}
