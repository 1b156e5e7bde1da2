// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
)

// Moments are the first and second moments of rows.
type Moments struct {
	Dim    int
	N      float64
	Sum    []float64 // [dim]
	Second []float64 // [dim, dim], the lower triangle; [dim] without covariances

	centre      []float32 // [dim] mean of the first rows, for addFull
	about, sums []float32 // its scratch
	left        []float64
}

// NewMoments returns empty moments, with covariances if full is set.
func NewMoments(dim int, full bool) *Moments {
	m := &Moments{Dim: dim, Sum: make([]float64, dim), Second: make([]float64, dim)}
	if full {
		m.Second = make([]float64, dim*dim)
	}
	return m
}

func (m *Moments) full() bool { return len(m.Second) != m.Dim || m.Dim == 1 }

// Add adds rows, [n, dim], without outliers (Typical): one row of 10^7 would hide all others.
func (m *Moments) Add(rows []float32) {
	d := m.Dim
	rows = Typical(rows, d)
	if m.full() {
		for len(rows) >= d {
			n := min(len(rows)/d, momentRows)
			m.addFull(rows[:n*d])
			rows = rows[n*d:]
		}
		return
	}
	sum, second := m.Sum[:d], m.Second[:d]
	for r := 0; r+d <= len(rows); r += d {
		m.N++
		row := rows[r : r+d]
		for i := range sum {
			x := float64(row[i])
			sum[i] += x
			second[i] += float64(x * x)
		}
	}
}

// momentRows is the number of products that are summed in float32 before they are added in float64.
// The products are of rows less the mean of the first rows, so that a large mean costs no digits.
const momentRows = 256

func (m *Moments) addFull(rows []float32) {
	d := m.Dim
	n := len(rows) / d
	if m.centre == nil {
		m.centre, m.about, m.left = make([]float32, d), make([]float32, momentRows*d), make([]float64, d)
		m.sums = make([]float32, d)
		for r := range n {
			for i, v := range rows[r*d : (r+1)*d] {
				m.left[i] += float64(v)
			}
		}
		for i, s := range m.left {
			m.centre[i] = float32(s / float64(n))
		}
	}
	about, left := m.about[:n*d], m.left // and what sums about the centre are
	clear(left)
	var most float32
	for r := range n {
		row, to := rows[r*d:(r+1)*d], about[r*d:(r+1)*d]
		for i, c := range m.centre {
			x := row[i] - c
			to[i] = x
			left[i] += float64(x)
			most = max(most, x, -x)
		}
	}
	square := scaleProducts(about, most)
	m.N += float64(n)
	for i := range d {
		clear(m.sums)
		axpy.Products(m.sums, about, i)
		ci := float64(m.centre[i])
		m.Sum[i] += left[i] + float64(n)*ci
		second := m.Second[i*d : i*d+i+1]
		for j := range second {
			cj := float64(m.centre[j])
			second[j] += float64(m.sums[j])*square + ci*left[j] + left[i]*cj + float64(n)*ci*cj
		}
	}
}

// productRange bounds the octaves between 1 and the largest value. Within it, float32 holds products
// with all their digits.
const productRange = 40

// scaleProducts scales rows in place by a power of two if their products would leave the range of
// float32. most is their largest value. It returns the factor for sums of products.
func scaleProducts(rows []float32, most float32) float64 {
	_, e := math.Frexp(float64(most))
	if most == 0 || max(e, -e) <= productRange {
		return 1
	}
	f := float32(math.Ldexp(1, -min(e, 126)))
	for i := range rows {
		rows[i] *= f
	}
	return math.Ldexp(1, 2*min(e, 126))
}

// means returns the means that transforms subtract, which are rounded, and the variances about them.
func (m *Moments) means() (mean, variance []float64) {
	d, n := m.Dim, max(m.N, 1)
	mean, variance = make([]float64, d), make([]float64, d)
	for i := range d {
		at := i
		if m.full() {
			at = i*d + i
		}
		exact, second := m.Sum[i]/n, m.Second[at]/n
		mean[i] = roundMean(exact, second-exact*exact)
		variance[i] = second - 2*mean[i]*exact + mean[i]*mean[i]
		if variance[i] < second*constantShare {
			variance[i] = 0
		}
	}
	return mean, variance
}

// constantShare is the share of the energy of a column below which its variance counts as 0: float32
// does not tell smaller differences apart.
const constantShare = 1. / (1 << 46)

// roundMean returns a mean as float32, rounded to 1/64 of the deviation or less. More digits would
// take bytes and help nothing.
func roundMean(mean, variance float64) float64 {
	if variance > mean*mean*constantShare {
		_, e := math.Frexp(variance) // the deviation is at least 2^((e-1)/2)
		unit := math.Ldexp(1, (e-1)>>1-6)
		mean = math.RoundToEven(mean/unit) * unit
	}
	return float64(float32(mean))
}

// covariance returns the full covariance about mean.
func (m *Moments) covariance(mean []float64) []float64 {
	d, n := m.Dim, max(m.N, 1)
	cov := make([]float64, d*d)
	for i := range d {
		for j := range i + 1 {
			c := m.Second[i*d+j]/n - mean[i]*m.Sum[j]/n - mean[j]*m.Sum[i]/n + mean[i]*mean[j]
			cov[i*d+j], cov[j*d+i] = c, c
		}
	}
	return cov
}

// second returns the full second moments about zero.
func (m *Moments) second() []float64 {
	d, n := m.Dim, max(m.N, 1)
	s := make([]float64, d*d)
	if !m.full() {
		for i, v := range m.Second {
			s[i*d+i] = v / n
		}
		return s
	}
	for i := range d {
		for j := range i + 1 {
			v := m.Second[i*d+j] / n
			s[i*d+j], s[j*d+i] = v, v
		}
	}
	return s
}
