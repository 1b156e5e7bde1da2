// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
	"github.com/kvist-project/kvist/quant"
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

// NewMoments returns moments of nothing, with covariances where full is set.
func NewMoments(dim int, full bool) *Moments {
	m := &Moments{Dim: dim, Sum: make([]float64, dim), Second: make([]float64, dim)}
	if full {
		m.Second = make([]float64, dim*dim)
	}
	return m
}

func (m *Moments) full() bool { return len(m.Second) != m.Dim || m.Dim == 1 }

// Add takes rows, [n, dim], but for those whose size is of another kind than that of the others
// (Typical): one row of 10^7 would be all that the moments tell.
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

// momentRows is how many products are added up in float32 before they go to float64. They are of
// rows about a mean, that of the first ones, so that a large one takes no digits.
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

// productRange is how far from 1, in octaves, the largest value may be whose products float32 holds with
// all their digits.
const productRange = 40

// scaleProducts scales rows whose largest value is most, in place, where their products leave float32,
// and returns what sums of products are to be multiplied with. The scale is a power of two.
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

// BasisGain returns how many bits a row takes less with the basis of FitTransform than without one,
// where bits go down to noise, the squared error of a component in the metric.
func BasisGain(with, without *Transform, noise float64) float64 {
	var sum float64
	for i := range with.Std8 {
		a, b := math.Exp2(float64(without.Std8[i])/4), math.Exp2(float64(with.Std8[i])/4)
		sum += 0.5 * math.Log2((a+noise)/(b+noise))
	}
	return sum
}

// ExpectedGain is BasisGain of the transforms of rows with these moments, before they are made: much
// quicker. It says false where it cannot tell, for a metric that is not diagonal.
func ExpectedGain(m *Moments, metric []float64, without *Transform, noise float64) (float64, bool) {
	d := m.Dim
	mean, _ := m.means()
	cov := m.covariance(mean)
	_, scale := without.inRow()
	for i := range d {
		for j := range d {
			if metric != nil && i != j && metric[i*d+j] != 0 {
				return 0, false
			}
			// The scale of a transform is one over the root of the metric.
			cov[i*d+j] /= float64(scale[i]) * float64(scale[j])
		}
		cov[i*d+i] += noise
	}
	var sum float64
	for _, s := range without.Std8 {
		sum += 0.5 * math.Log2(math.Exp2(float64(s)/4)+noise)
	}
	// The determinant, by elimination: twice the logarithm of the bits.
	for c := range d {
		top := cov[c*d : (c+1)*d]
		if !(top[c] > 0) {
			return 0, false
		}
		sum -= 0.5 * math.Log2(top[c])
		for r := c + 1; r < d; r++ {
			row := cov[r*d : (r+1)*d]
			g := row[c] / top[c]
			for j := c + 1; j < d; j++ {
				row[j] -= g * top[j]
			}
		}
	}
	return sum, true
}

// means returns what transforms subtract, which is not quite the mean, and the variances about it.
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

// constantShare is the share of a column's energy below which it does not vary: float32 tells no
// smaller differences apart.
const constantShare = 1. / (1 << 46)

// roundMean returns a mean as float32, rounded to 1/64 of the deviation or less: more digits tell nothing
// and take bytes.
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

// NewQueryMoments returns moments of nothing that hold what QueryMetric looks at: where all components turn,
// no covariances.
func NewQueryMoments(dim int, rope Rope) *Moments { return NewMoments(dim, 2*len(rope.Freqs) < dim) }

// QueryMetric returns the metric that errors of K before its embedding have for queries with these
// moments, [dim, dim]: E[(q . dk)^2] averaged over all turns between query and key. Within a pair
// that turns, only the energy is left; components that do not turn keep their covariance.
func QueryMetric(q *Moments, rope Rope) []float64 {
	d := q.Dim
	s := q.second()
	turns := make([]int, d) // pair of a component, from 1
	half := len(rope.Freqs)
	for i := range half {
		a, b := i, i+half
		if rope.Layout == quant.RopeInterleaved {
			a, b = 2*i, 2*i+1
		}
		e := (s[a*d+a] + s[b*d+b]) / 2
		s[a*d+a], s[b*d+b] = e, e
		turns[a], turns[b] = i+1, i+1
	}
	for i := range d {
		for j := range d {
			if i != j && (turns[i] != 0 || turns[j] != 0) {
				s[i*d+j] = 0
			}
		}
	}
	return s
}

// metricFloor is the least eigenvalue of a metric relative to its largest: directions that the
// calibration queries never looked at still count.
const metricFloor = 1e-3

// FitTransform makes the basis for rows with these moments under a metric, [dim, dim], or nil: the
// principal components of the rows in that metric; m is full then. basis false keeps the values of
// the row, sorted by their deviations.
func FitTransform(m *Moments, metric []float64, basis bool) *Transform {
	d := m.Dim
	mean, variance := m.means()
	t := &Transform{Dim: d, Mean: make([]float32, d), Std8: make([]int16, d)}
	for i, v := range mean {
		t.Mean[i] = float32(v)
	}
	var gain float64
	if metric != nil {
		for i := range d {
			gain += metric[i*d+i] / float64(d)
		}
		if gain > 0 {
			t.Gain = float32(min(gain, math.MaxFloat32))
		} else {
			metric = nil
		}
	}
	if !basis {
		t.Scale = make([]float32, d)
		for i := range d {
			weight := 1.0
			if metric != nil {
				weight = max(metric[i*d+i]/gain, metricFloor)
			}
			t.Scale[i] = float32(1 / math.Sqrt(weight))
			t.Std8[i] = deviation8(variance[i] * weight)
		}
		t.sort()
		return t
	}
	cov := m.covariance(mean)
	root, unroot := identity(d), identity(d)
	if metric != nil {
		scaled := slices.Clone(metric)
		for i := range scaled {
			scaled[i] /= gain
		}
		root, unroot = roots(scaled, d)
	}
	_, vec := eigen(multiply(multiply(root, cov, d), root, d), d)
	// Component i in the space of rows is vec_i * unroot.
	inv := multiply(transpose(vec, d), unroot, d)
	t.Basis, t.Scale = make([]int8, d*d), make([]float32, d)
	for i := range d {
		var most float64
		for _, v := range inv[i*d : (i+1)*d] {
			most = max(most, math.Abs(v))
		}
		t.Scale[i] = float32(most / 127)
		for j, v := range inv[i*d : (i+1)*d] {
			t.Basis[i*d+j] = int8(math.Round(v / (most / 127)))
		}
	}
	// Rounding the basis mixes a little of the strong components into the weak ones: deviations are
	// those of the basis as it is stored.
	if err := t.prepare(true); err != nil {
		return FitTransform(m, metric, false)
	}
	f := make([]float64, d*d)
	for i, v := range t.forward {
		f[i] = float64(v)
	}
	cf := multiply(cov, f, d)
	for i := range d {
		var v float64
		for j := range d {
			v += f[j*d+i] * cf[j*d+i]
		}
		t.Std8[i] = deviation8(v)
	}
	return t
}

func deviation8(variance float64) int16 {
	if !(variance > 0) {
		return minStd8
	}
	return int16(min(max(math.Round(4*math.Log2(variance)), minStd8), maxStd8))
}

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
