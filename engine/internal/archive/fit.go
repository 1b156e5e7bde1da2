// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// BasisGain returns how many bits fewer a row takes with the basis of FitTransform than without one.
// noise is the squared error of a component, in the metric, at which bits end.
func BasisGain(with, without *Transform, noise float64) float64 {
	var sum float64
	for i := range with.Std8 {
		a, b := math.Exp2(float64(without.Std8[i])/4), math.Exp2(float64(with.Std8[i])/4)
		sum += 0.5 * math.Log2((a+noise)/(b+noise))
	}
	return sum
}

// ExpectedGain is BasisGain of the transforms of rows with these moments, before they are made, which
// is much faster. It returns false for a metric that is not diagonal.
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

// NewQueryMoments returns empty moments for QueryMetric. They have no covariances if all components
// turn.
func NewQueryMoments(dim int, rope Rope) *Moments { return NewMoments(dim, 2*len(rope.Freqs) < dim) }

// QueryMetric returns the metric, [dim, dim], of errors of K before its position embedding, for
// queries with these moments: E[(q . dk)^2] averaged over all turns between query and key. Of a pair
// that turns, only the energy matters. Components that do not turn keep their covariance.
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

// metricFloor is the smallest eigenvalue of a metric relative to its largest. Directions that the
// calibration queries never looked at still count.
const metricFloor = 1e-3

// FitTransform makes the transform of rows with these moments under a metric, [dim, dim], or nil.
// With basis, the components are the principal components of the rows in that metric, and m has
// covariances. Without, they are the values of the row, sorted by deviation.
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
	// Rounding the basis mixes a little of the strong components into the weak ones. Deviations are
	// those of the rounded basis.
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
