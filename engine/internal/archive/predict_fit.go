// SPDX-License-Identifier: Apache-2.0

package archive

import "math"

// Pairing collects what the lanes of a layer tell of each other: the second moments of the components of rows, as
// they are decoded and as they are.
type Pairing struct {
	ts    []*Transform
	order []int
	width int
	m     *Moments
}

// NewPairing returns an empty pairing of the lanes of a layer.
func NewPairing(ts []*Transform, sides int) *Pairing {
	p := &Pairing{ts: ts, order: Lanes(len(ts)/sides, sides)}
	for _, t := range ts {
		p.width += t.Dim
	}
	p.m = NewMoments(2*p.width, true)
	return p
}

// Add adds the rows of a segment from row first on, decoded at a step: what the closed loop of an encoder decodes is
// not known before there are predictors, and differs little.
func (p *Pairing) Add(c *Codec, seg *Prepared, step8 int, e Effort, first int) {
	q := c.c.quantizer(e.Lambda)
	quick := c.quick.Get().(*levels)
	defer c.quick.Put(quick)
	n := seg.Rows()
	rows := make([]float32, n*2*p.width)
	at := 0
	for _, i := range p.order {
		l, steps := c.lane(seg.seg, i, &seg.told, seg.step(i, step8))
		quick.quantize(q, l, seg.y[i], steps)
		back := quick.values(q, nil, l)
		follow(back, steps, nil)
		for r := range n {
			copy(rows[r*2*p.width+at:], back[r*l.dim:(r+1)*l.dim])
			copy(rows[r*2*p.width+p.width+at:], seg.y[i][r*l.dim:(r+1)*l.dim])
		}
		at += l.dim
	}
	p.m.Add(rows[min(first, n)*2*p.width:])
}

// Merge adds what another pairing of the same lanes has collected.
func (p *Pairing) Merge(o *Pairing) {
	p.m.N += o.m.N
	for i, v := range o.m.Second {
		p.m.Second[i] += v
	}
}

// second returns the mean product of two of the 2*width values.
func (p *Pairing) second(i, j int) float64 {
	if i < j {
		i, j = j, i
	}
	return p.m.Second[i*p.m.Dim+j] / max(p.m.N, 1)
}

// Predictors fits a predictor for each lane, nil for the first. ridge is relative to the mean square of the
// components of a lane: what weak components seem to tell on few texts does not hold on others.
func (p *Pairing) Predictors(ridge float64) []*Predictor {
	n := p.width
	// The contexts of later lanes begin with those of earlier ones, so one factor serves all.
	factor := make([]float64, n*n)
	for i := range n {
		for j := range i + 1 {
			factor[i*n+j] = p.second(i, j)
		}
	}
	at := 0
	for _, i := range p.order {
		d := p.ts[i].Dim
		var mean float64
		for k := at; k < at+d; k++ {
			mean += factor[k*n+k] / float64(d)
		}
		for k := at; k < at+d; k++ {
			factor[k*n+k] += ridge*mean + math.SmallestNonzeroFloat32
		}
		at += d
	}
	cholesky(factor, n)
	all := make([]*Predictor, len(p.ts))
	at = 0
	for _, i := range p.order {
		d := p.ts[i].Dim
		if at > 0 {
			w := make([]float64, at*d)
			for k := range at {
				for j := range d {
					w[k*d+j] = p.second(k, n+at+j)
				}
			}
			solveCholesky(factor, n, w, at, d)
			all[i] = p.rounded(w, at, d)
		}
		at += d
	}
	return all
}

// rounded returns the predictor of weights [context, dim] of the lane that starts there, nil for weights that a
// profile cannot hold.
func (p *Pairing) rounded(w []float64, context, d int) *Predictor {
	x := &Predictor{Dim: d, Context: context, Std8: make([]int16, d), Scale: make([]float32, context),
		Weights: make([]int8, context*d)}
	for i := range context {
		var most float64
		for _, v := range w[i*d : (i+1)*d] {
			most = max(most, math.Abs(v))
		}
		if !(most/127 <= mostScale) { // the units of the lanes are worlds apart
			return nil
		}
		x.Scale[i] = float32(most / 127)
		for j, v := range w[i*d : (i+1)*d] {
			if most > 0 {
				x.Weights[i*d+j] = int8(math.Round(v / (most / 127)))
			}
		}
	}
	for j, v := range p.left(x) {
		x.Std8[j] = deviation8(v)
	}
	return x
}

// left returns the mean squares of the components of a lane that its predictor leaves.
func (p *Pairing) left(x *Predictor) []float64 {
	n, d := x.Context, x.Dim
	w := make([]float64, n*d)
	for i, s := range x.Scale {
		for j := range d {
			w[i*d+j] = float64(s) * float64(x.Weights[i*d+j])
		}
	}
	out := make([]float64, d)
	for j := range out {
		out[j] = p.second(p.width+n+j, p.width+n+j)
	}
	sum := make([]float64, d)
	for i := range n {
		clear(sum)
		for k := range n {
			s := p.second(i, k)
			for j, v := range w[k*d : (k+1)*d] {
				sum[j] += s * v
			}
		}
		for j, v := range w[i*d : (i+1)*d] {
			out[j] += v * (sum[j] - 2*p.second(i, p.width+n+j))
		}
	}
	for j, v := range out {
		out[j] = max(v, 0)
	}
	return out
}

// Saved returns about how many bits a predictor saves in each row of lane i of these rows, of steps 2^(step8/8).
func (p *Pairing) Saved(x *Predictor, i, step8 int) float64 {
	n, d := x.Context, x.Dim
	a, b := make([]int16, d), make([]int16, d)
	for j, v := range p.left(x) {
		a[j], b[j] = deviation8(p.second(p.width+n+j, p.width+n+j)), deviation8(v)
	}
	return savedBits(a, b, step8)
}

// cholesky replaces the lower triangle of a positive matrix by its factor.
func cholesky(a []float64, n int) {
	for i := range n {
		for j := range i + 1 {
			s := a[i*n+j]
			ri, rj := a[i*n:i*n+j], a[j*n:j*n+j]
			for k, v := range rj {
				s -= ri[k] * v
			}
			if i == j {
				a[i*n+i] = math.Sqrt(max(s, 1e-300))
			} else {
				a[i*n+j] = s / a[j*n+j]
			}
		}
	}
}

// solveCholesky solves for the leading m rows and columns of a factor of stride n: b, [m, columns], is replaced.
func solveCholesky(a []float64, n int, b []float64, m, columns int) {
	row := func(i int) []float64 { return b[i*columns : (i+1)*columns] }
	take := func(y, x []float64, f float64) {
		for c, v := range x {
			y[c] -= f * v
		}
	}
	for i := range m {
		for k := range i {
			take(row(i), row(k), a[i*n+k])
		}
		for c := range row(i) {
			row(i)[c] /= a[i*n+i]
		}
	}
	for i := m - 1; i >= 0; i-- {
		for k := i + 1; k < m; k++ {
			take(row(i), row(k), a[k*n+i])
		}
		for c := range row(i) {
			row(i)[c] /= a[i*n+i]
		}
	}
}
