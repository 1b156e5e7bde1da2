// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// crossSlope returns the slope for rows that the axes were not fitted to. Rows that they were fitted to give a
// slope that is 0.3 to 0.6 % too large. Rows of odd number, along axes fitted to the others, give one that is
// too small, because half as many rows fit axes less well. In between lies the right one, within 0.1 % from 2
// bits and 0.4 % at 1 bit on the 60,000 vectors of bench/results/vectors.md.
func (f *fitting) crossSlope(p params, axes, even []float64) (float32, error) {
	p.Slope = 1
	fitted, err := f.slope(p, axes, 0, 1)
	if err != nil {
		return 0, err
	}
	other, err := f.slope(p, even, 1, 2)
	return float32(0.6*fitted + 0.4*other), err
}

// slope returns what makes products of queries and codes right on average over the rows from, from+step and so
// on, coded along axes. Queries are taken to be like rows.
func (f *fitting) slope(p params, axes []float64, from, step int) (float64, error) {
	c, err := f.finish(p, axes)
	if err != nil {
		return 0, err
	}
	comps := c.comps()
	rows := quant.Rows{Dim: f.dim}
	var lengths []float64
	for i := from; i < f.rows.Len(); i += step {
		rows.Data = append(rows.Data, f.rows.Row(i)...)
		lengths = append(lengths, f.lengths[i])
	}
	n := rows.Len()
	y := make([]float32, n*comps)
	if err := c.components(y, rows.Data, n); err != nil {
		return 0, err
	}
	along := make([]float64, comps)          // second moments of queries
	rest := float64(n) * f.length * f.length // energy outside the coded components
	for i := range n {
		for k, v := range y[i*comps : (i+1)*comps] {
			along[k] += float64(v) * float64(v) / float64(n)
			rest -= float64(v) * float64(v)
		}
	}
	for k := range along {
		m := dot64(f.mean, c.axis(k))
		along[k] += m * m
	}
	w := &coder{coding: c}
	var want, got float64
	x := make([]float32, 0, trellis.TileRows*f.dim)
	for lo := 0; lo < n; lo += trellis.TileRows {
		hi := min(n, lo+trellis.TileRows)
		x = x[:0]
		for i := lo; i < hi; i++ { // the rows as they were
			for j, v := range rows.Row(i) {
				x = append(x, v*float32(lengths[i]/f.length)+f.mean[j])
			}
		}
		out, err := w.tile(x)
		if err != nil {
			return 0, err
		}
		for r := range hi - lo {
			size, factor := lengths[lo+r]/f.length, float64(c.factor(out.factors, r))
			for k, sd := range c.SD {
				v := float64(w.y[r*comps+k]) * size
				want += along[k] * v * v
				got += along[k] * v * factor * float64(sd) * float64(w.level(r, k))
			}
		}
	}
	// What is not coded: queries have it too, spread over the axes that are left.
	if left := f.dim - min(comps, f.dim); left > 0 && rest > 0 {
		want += rest * rest / float64(n) / float64(left)
	}
	if !(got > 0) {
		return 1, nil
	}
	return min(want/got, 1e3), nil
}
