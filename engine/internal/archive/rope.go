// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Rope takes the position embedding off rows of K and puts it back. It computes sine and cosine
// itself, operation by operation, so that both directions use the same numbers on every machine.
type Rope struct {
	Layout quant.RopeLayout
	Freqs  []float64 // [rotary_dim/2], radians per position
}

// NewRope returns the turns of a geometry's rope.
func NewRope(r quant.Rope) Rope { return Rope{Layout: r.Layout, Freqs: r.Frequencies()} }

// pi/2 is the sum of three parts of 33 bits each, so that n times a part is exact for n below 2^20.
// Beyond that angles lose digits, the same ones in both directions.
const (
	halfPi1 = 0x1.921fb544p+0
	halfPi2 = 0x1.0b4611a6p-34
	halfPi3 = 0x1.3198a2e037073p-69
)

// sincos returns sine and cosine of x, within 2^-46 where |x| is below 2^20.
func sincos(x float64) (sin, cos float64) {
	n := math.Floor(float64(x*(2/math.Pi)) + 0.5)
	r := x - float64(n*halfPi1)
	r -= float64(n * halfPi2)
	r -= float64(n * halfPi3)
	z := float64(r * r)
	// The Taylor series: the first term left out is below 2^-55 for |r| <= pi/4.
	s, c := 0.0, 0.0
	for i := len(sinCoef) - 1; i >= 0; i-- {
		s = float64(s*z) + sinCoef[i]
		c = float64(c*z) + cosCoef[i]
	}
	s = float64(s * r)
	if math.Abs(n) >= 1<<62 {
		n = math.Mod(n, 4)
	}
	switch int64(n) & 3 {
	case 1:
		return c, -s
	case 2:
		return -s, -c
	case 3:
		return -c, s
	}
	return s, c
}

// Coefficients (-1)^k/(2k+1)! and (-1)^k/(2k)!.
var sinCoef, cosCoef = func() (s, c [9]float64) {
	f := 1.0
	for k := range s {
		if k > 0 {
			f /= float64((2*k - 1) * (2 * k))
			f = -f
		}
		c[k] = f
		s[k] = f / float64(2*k+1)
	}
	return s, c
}()

// turn rotates one row by sign times its position: sign -1 undoes the embedding.
func (r *Rope) turn(row []float32, sin, cos []float32, sign float32) {
	half := len(r.Freqs)
	for i := range r.Freqs {
		a, b := i, i+half
		if r.Layout == quant.RopeInterleaved {
			a, b = 2*i, 2*i+1
		}
		x, y := row[a], row[b]
		s := sign * sin[i]
		row[a] = float32(x*cos[i]) - float32(y*s)
		row[b] = float32(y*cos[i]) + float32(x*s)
	}
}

// angles fills sin and cos, [rows, rotary_dim/2], for positions.
func (r *Rope) angles(pos []int64) (sin, cos []float32) {
	n := len(r.Freqs)
	sin, cos = make([]float32, len(pos)*n), make([]float32, len(pos)*n)
	if r.Layout == quant.RopeNone {
		return nil, nil
	}
	for t, p := range pos {
		for i, f := range r.Freqs {
			s, c := sincos(float64(p) * f)
			sin[t*n+i], cos[t*n+i] = float32(s), float32(c)
		}
	}
	return sin, cos
}

// apply turns rows of dim values, [len(pos), dim], in place.
func (r *Rope) apply(rows []float32, dim int, sin, cos []float32, sign float32) {
	n := len(r.Freqs)
	if n == 0 {
		return
	}
	for t := range len(rows) / dim {
		r.turn(rows[t*dim:(t+1)*dim], sin[t*n:(t+1)*n], cos[t*n:(t+1)*n], sign)
	}
}

// Undo takes the embedding off rows of K, [len(pos), dim], in place.
func (r *Rope) Undo(rows []float32, dim int, pos []int64) {
	sin, cos := r.angles(pos)
	r.apply(rows, dim, sin, cos, -1)
}

// Redo puts it back.
func (r *Rope) Redo(rows []float32, dim int, pos []int64) {
	sin, cos := r.angles(pos)
	r.apply(rows, dim, sin, cos, 1)
}
