// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// Generic returns the kernels in plain Go, which every machine has.
func Generic() *Kernels {
	return &Kernels{
		isa: "generic", pad: 1, tables: true,
		exact: exactGeneric,
		u8: func(dst []float32, src []byte, rows, dim, _ int) {
			unpackU8(dst[:rows*dim], 1, src)
		},
		planes:  planesGeneric,
		dots:    dotsGeneric,
		add:     accumulateGeneric,
		fold:    foldGeneric,
		square:  squareGeneric,
		mix:     mixGeneric,
		softmax: softmaxGeneric,
		probs:   probsGeneric,
		f16:     scalesF16Generic,
		log8:    scalesLog8Generic,
	}
}

func exactGeneric(dst []float32, f quant.Format, src []byte, rows, dim, padDim int) {
	if padDim == dim {
		unpackExact(dst[:rows*dim], f, src)
		return
	}
	rowBytes := dim * f.Bits() / 8
	for r := range rows {
		row := dst[r*padDim : (r+1)*padDim]
		unpackExact(row[:dim], f, src[r*rowBytes:(r+1)*rowBytes])
		clear(row[dim:])
	}
}

func planesGeneric(dst []float32, p *planes, _ bool) {
	dim := 8 * p.rowBytes
	for r := range p.rows {
		at := r * p.rowBytes
		p0, p1, p2, p3 := planeRow(p.src, p.bits, p.plane, at, p.rowBytes)
		row := dst[r*p.padDim : (r+1)*p.padDim]
		expandPairs(row[:dim], p.pairs, p.bits, p0, p1, p2, p3)
		clear(row[dim:])
	}
}

func dotsGeneric(dots, q []float32, heads int, _ Layout, tile []float32, padDim, rows int) {
	for h := range heads {
		dotRows((*[TileRows]float32)(dots[h*TileRows:]), q[h*padDim:(h+1)*padDim], tile, rows)
	}
}

// dotRows writes <q, row r of k> for the first n rows, four rows at a time so that their additions
// are independent. Sums are float32 in ascending order of components.
func dotRows(dst *[TileRows]float32, q, k []float32, n int) {
	dim := len(q)
	r := 0
	for ; r+4 <= n; r += 4 {
		k0 := k[r*dim:][:dim]
		k1 := k[(r+1)*dim:][:dim]
		k2 := k[(r+2)*dim:][:dim]
		k3 := k[(r+3)*dim:][:dim]
		var s0, s1, s2, s3 float32
		for i, x := range q {
			s0 += x * k0[i]
			s1 += x * k1[i]
			s2 += x * k2[i]
			s3 += x * k3[i]
		}
		dst[r], dst[r+1], dst[r+2], dst[r+3] = s0, s1, s2, s3
	}
	for ; r < n; r++ {
		var sum float32
		for i, y := range k[r*dim:][:dim] {
			sum += q[i] * y
		}
		dst[r] = sum
	}
}

func accumulateGeneric(acc, w []float32, heads int, tile []float32, padDim, rows int) {
	for h := range heads {
		sumRows(acc[h*padDim:(h+1)*padDim], tile, w[h*TileRows:][:rows])
	}
}

// AccumulateLive is Accumulate for tiles that may hold infinities and NaNs. It skips rows without
// weight, so that their values cannot reach a sum.
func AccumulateLive(acc, w []float32, heads int, tile []float32, padDim, rows int) {
	for h := range heads {
		for r, x := range w[h*TileRows:][:rows] {
			if x != 0 {
				sumRows(acc[h*padDim:(h+1)*padDim], tile[r*padDim:], []float32{x})
			}
		}
	}
}

// sumRows adds weights[i] * row i of v to dst in float32, eight rows at a time, then four, to load
// and store each sum only once per group.
func sumRows(dst, v []float32, weights []float32) {
	dim := len(dst)
	i := 0
	for ; i+8 <= len(weights); i += 8 {
		v0, v1 := v[i*dim:][:dim], v[(i+1)*dim:][:dim]
		v2, v3 := v[(i+2)*dim:][:dim], v[(i+3)*dim:][:dim]
		v4, v5 := v[(i+4)*dim:][:dim], v[(i+5)*dim:][:dim]
		v6, v7 := v[(i+6)*dim:][:dim], v[(i+7)*dim:][:dim]
		w := (*[8]float32)(weights[i:])
		w0, w1, w2, w3, w4, w5, w6, w7 := w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
		for d := range dst {
			dst[d] += ((w0*v0[d] + w1*v1[d]) + (w2*v2[d] + w3*v3[d])) +
				((w4*v4[d] + w5*v5[d]) + (w6*v6[d] + w7*v7[d]))
		}
	}
	for ; i+4 <= len(weights); i += 4 {
		v0 := v[i*dim:][:dim]
		v1 := v[(i+1)*dim:][:dim]
		v2 := v[(i+2)*dim:][:dim]
		v3 := v[(i+3)*dim:][:dim]
		w0, w1, w2, w3 := weights[i], weights[i+1], weights[i+2], weights[i+3]
		for d := range dst {
			dst[d] += (w0*v0[d] + w1*v1[d]) + (w2*v2[d] + w3*v3[d])
		}
	}
	for ; i < len(weights); i++ {
		w := weights[i]
		for d, x := range v[i*dim:][:dim] {
			dst[d] += w * x
		}
	}
}

func foldGeneric(sum []float64, acc []float32) {
	for i, x := range acc {
		sum[i] += float64(x)
	}
	clear(acc)
}

func squareGeneric(dst, src *[TileRows]float32, factor float32) {
	for i, x := range src {
		dst[i] = factor * (x * x)
	}
}

func mixGeneric(dst *[TileRows]float32, w, rows []float32, power int) {
	*dst = [TileRows]float32{}
	for h, f := range w {
		row := (*[TileRows]float32)(rows[h*TileRows:])
		if power == 2 {
			for r, x := range row {
				dst[r] += f * (x * x)
			}
			continue
		}
		for r, x := range row {
			dst[r] += f * x
		}
	}
}

var negInf = float32(math.Inf(-1))

// minExp is the logarithm of the smallest normal float32. Below it exp counts as 0.
const minExp = -87.33654

func softmaxGeneric(h *Heads, a, b int, t *Terms, scale *[TileRows]float32) {
	var s [TileRows]float32
	for i := a; i < b; i++ {
		mask := h.Masks[i]
		dots, w := h.Dots[i*TileRows:][:TileRows], h.Weights[i*TileRows:][:TileRows]
		most, energy := h.Tops[i], h.Energy[i]
		for m := mask; m != 0; m &= m - 1 {
			r := bits.TrailingZeros32(m) & (TileRows - 1)
			x := dots[r]*t.Mul[r] + t.Add[r] - energy*t.Noise[r]
			s[r] = x
			if x > most {
				most = x
			}
		}
		top := h.Tops[i]
		if most > top+TopSlack {
			top = most
		}
		clear(w)
		live, sum := uint32(0), float32(0)
		for m := mask; m != 0; m &= m - 1 {
			r := bits.TrailingZeros32(m) & (TileRows - 1)
			if s[r] == negInf {
				continue
			}
			if x := s[r] - top; !(x < minExp) {
				p := exp32(x)
				live |= 1 << r
				sum += p
				w[r] = p * scale[r]
			}
		}
		h.Tops[i], h.Sums[i], h.Masks[i] = top, sum, live
	}
}

func probsGeneric(acc *[TileRows]float64, h *Heads, a, b int, t *Terms, lse []float32,
	power int) {
	for i := a; i < b; i++ {
		mask := h.Masks[i]
		dots := h.Dots[i*TileRows:][:TileRows]
		for m := mask; m != 0; m &= m - 1 {
			r := bits.TrailingZeros32(m) & (TileRows - 1)
			s := dots[r]*t.Mul[r] + t.Add[r] - h.Energy[i]*t.Noise[r]
			if s == negInf {
				continue
			}
			x := s - lse[i]
			if x < minExp {
				continue
			}
			p := exp32(x)
			if power == 2 {
				p *= p
			}
			acc[r] += float64(p)
		}
	}
}

// exp32 is exp for x >= minExp, within two units of the last place. NaN gives NaN.
//
// Source: the polynomial is that of expf in Moshier's Cephes library (1989).
func exp32(x float32) float32 {
	if !(x < 88) { // beyond float32, or NaN
		return float32(math.Exp(float64(x)))
	}
	const toInt = 3 << 22 // adding it rounds to an integer
	n := float32(x*1.44269504+toInt) - toInt
	r := x - float32(n*0.693359375)
	r = r + float32(n*2.12194440e-4)
	p := float32(1.9875691500e-4)
	p = p*r + 1.3981999507e-3
	p = p*r + 8.3334519073e-3
	p = p*r + 4.1665795894e-2
	p = p*r + 1.6666665459e-1
	p = p*r + 5.0000001201e-1
	p = p*(r*r) + (r + 1)
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}

func scalesF16Generic(dst *[TileRows]float32, src []byte, factor float32) {
	n := len(src) / 2
	for i := range n {
		dst[i] = f16ToF32(binary.LittleEndian.Uint16(src[2*i:])) * factor
	}
	clear(dst[n:])
}

// log8Frac are the steps within an octave of 8-bit logarithmic scales.
var log8Frac = func() (t [16]float32) {
	for i := range t {
		t[i] = layout.Log8Scale(1, uint8(i))
	}
	return t
}()

func scalesLog8Generic(dst *[TileRows]float32, base float32, src []byte, factor float32) {
	for i, k := range src {
		dst[i] = log8Scale(base, k) * factor
	}
	clear(dst[len(src):])
}

// log8Scale is layout.Log8Scale.
func log8Scale(base float32, k uint8) float32 {
	if k == 255 {
		return 0
	}
	return float32(base*log8Frac[k%16]) * math.Float32frombits(uint32(127-k/16)<<23)
}

// Span16 returns the smallest and the largest of little-endian 16-bit numbers, four at a time.
func Span16(p []byte) (least, most uint16) {
	least = math.MaxUint16
	for ; len(p) >= 8; p = p[8:] {
		w := binary.LittleEndian.Uint64(p)
		a, b, c, d := uint16(w), uint16(w>>16), uint16(w>>32), uint16(w>>48)
		least = min(least, min(min(a, b), min(c, d)))
		most = max(most, max(max(a, b), max(c, d)))
	}
	for ; len(p) >= 2; p = p[2:] {
		v := binary.LittleEndian.Uint16(p)
		least, most = min(least, v), max(most, v)
	}
	return least, most
}

// Bounds16 returns a number that none of some little-endian 16-bit numbers is below, and one that none is
// above: their conjunction and disjunction, a few times faster than Span16. len(p) is even.
func Bounds16(p []byte) (least, most uint16) {
	and, or := ^uint64(0), uint64(0)
	for ; len(p) >= 8; p = p[8:] {
		w := binary.LittleEndian.Uint64(p)
		and, or = and&w, or|w
	}
	and &= and>>32 | and<<32
	or |= or>>32 | or<<32
	least, most = uint16(and)&uint16(and>>16), uint16(or)|uint16(or>>16)
	for ; len(p) >= 2; p = p[2:] {
		v := binary.LittleEndian.Uint16(p)
		least, most = least&v, most|v
	}
	return least, most
}
