// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/layout"
)

// Generic returns the kernels in plain Go, which every machine has.
func Generic() *Kernels {
	return &Kernels{isa: "generic", forward: forwardGeneric, inverse: inverseGeneric,
		peaks: peaksGeneric, scale: scaleGeneric, quantize: quantizeGeneric,
		quantizeU8: quantizeU8Generic, planes: planesGeneric, u8: u8Generic,
		toF16: toF16Generic, ratios: ratiosGeneric, log8: log8Generic}
}

func forwardGeneric(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	for r := range rows {
		row := x[r*stride:][:length]
		flip(row, signs)
		butterflies(row)
		for i := range row {
			row[i] *= norm
		}
	}
}

func inverseGeneric(x []float32, signs []uint32, rows, stride, length int, norm float32) {
	for r := range rows {
		row := x[r*stride:][:length]
		butterflies(row)
		for i, s := range signs[:length] {
			row[i] = math.Float32frombits(math.Float32bits(row[i]*norm) ^ s)
		}
	}
}

// butterflies is the unnormalised Walsh-Hadamard transform of a power of two, at least 8: strides
// 1, 2 and 4 in registers, then two strides per pass. The order of operations gives the bits of the
// formats.
func butterflies(x []float32) {
	for p := x; len(p) >= 8; p = p[8:] {
		a, b, c, d := p[0]+p[1], p[0]-p[1], p[2]+p[3], p[2]-p[3]
		e, f, g, h := p[4]+p[5], p[4]-p[5], p[6]+p[7], p[6]-p[7]
		a, c, b, d = a+c, a-c, b+d, b-d
		e, g, f, h = e+g, e-g, f+h, f-h
		p[0], p[4], p[1], p[5] = a+e, a-e, b+f, b-f
		p[2], p[6], p[3], p[7] = c+g, c-g, d+h, d-h
	}
	h := 8
	for ; 4*h <= len(x); h *= 4 {
		for i := 0; i < len(x); i += 4 * h {
			p, q := x[i:i+h], x[i+h:i+2*h]
			u, v := x[i+2*h:i+3*h], x[i+3*h:i+4*h]
			q, u, v = q[:len(p)], u[:len(p)], v[:len(p)]
			for j, a := range p {
				b, c, d := q[j], u[j], v[j]
				a, b, c, d = a+b, a-b, c+d, c-d
				p[j], q[j], u[j], v[j] = a+c, b+d, a-c, b-d
			}
		}
	}
	for ; h < len(x); h *= 2 {
		for i := 0; i < len(x); i += 2 * h {
			p, q := x[i:i+h], x[i+h:i+2*h]
			q = q[:len(p)]
			for j, a := range p {
				b := q[j]
				p[j], q[j] = a+b, a-b
			}
		}
	}
}

func peaksGeneric(peaks []uint32, x []float32, stride, n int) {
	for r := range peaks {
		var m uint32
		for _, v := range x[r*stride:][:16*n] {
			m = max(m, math.Float32bits(v)&0x7fffffff)
		}
		peaks[r] = m
	}
}

func scaleGeneric(x, factors []float32, stride, n int) {
	for r, f := range factors {
		row := x[r*stride:][:16*n]
		for i := range row {
			row[i] *= f
		}
	}
}

// treeSum adds x in the order of the formats. It overwrites x.
func treeSum(x []float32) float32 {
	h := 1
	for h < len(x) {
		h *= 2
	}
	for h /= 2; h > 0; h /= 2 {
		if len(x) > h {
			for i, v := range x[h:] {
				x[i] += v
			}
			x = x[:h]
		}
	}
	return x[0]
}

func quantizeGeneric(q planesJob, y []float32) {
	rowBytes, levels := q.dim/8, 1<<(q.bits-1)
	for r := range q.rows {
		row := y[r*q.stride:][:q.dim]
		tmp := q.tmp[:q.dim]
		for i, v := range row {
			tmp[i] = float32(v * v)
		}
		xx := treeSum(tmp)
		sigma := float32(math.Sqrt(float64(float32(xx / float32(q.dim)))))
		var t [8]float32
		for k := 1; k < levels; k++ {
			t[k] = float32(q.thresholds[k] * sigma)
		}
		if sigma == 0 {
			for k := range t {
				t[k] = float32(math.Inf(1))
			}
		}
		var cc int32
		at := r * rowBytes
		for i := 0; i < len(row); i += 8 {
			var planes [4]uint8
			for j, v := range row[i : i+8] {
				bits := math.Float32bits(v)
				mag := math.Float32frombits(bits &^ (1 << 31))
				m := level(mag, &t, levels)
				c := q.centroids[m]
				cc += c * c
				tmp[i+j] = float32(mag * float32(c))
				code := uint32(levels + m)
				if v < 0 {
					code = uint32(levels - 1 - m)
				}
				for p := range q.bits {
					planes[p] |= uint8(code>>(q.bits-1-p)&1) << j
				}
			}
			for p, b := range planes[:q.bits] {
				q.dst[p*q.plane+at+i/8] = b
			}
		}
		q.sums[2*r], q.sums[2*r+1], q.cc[r] = xx, treeSum(tmp), cc
	}
}

// level counts the ascending thresholds that mag reaches.
func level(mag float32, t *[8]float32, levels int) int {
	m := 0
	for s := levels / 2; s > 0; s /= 2 {
		if mag >= t[(m+s)&7] {
			m += s
		}
	}
	return m
}

func quantizeU8Generic(codes []byte, y, steps []float32, stride, dim int) {
	for r, step := range steps {
		row, out := y[r*stride:][:dim], codes[r*dim:][:dim]
		for i, v := range row {
			q := 0.0
			if step > 0 {
				q = math.RoundToEven(float64(float32(v / step)))
			}
			out[i] = uint8(128 + int(min(max(q, -127), 127)))
		}
	}
}

// spread[b] has bit i of b in byte i: it turns eight bits of a plane into eight codes.
var spread = func() (t [256]uint64) {
	for b := range t {
		for i := range 8 {
			t[b] |= uint64(b>>i&1) << (8 * i)
		}
	}
	return t
}()

func planesGeneric(dst []float32, p planeRows, units []float32, stride int) {
	var table [16]float32
	for r, unit := range units {
		for j := range 1 << p.bits {
			table[j] = float32(unit * p.table[j])
		}
		out := dst[r*stride:]
		for j := range p.rowBytes {
			var codes uint64
			for b := range p.bits {
				codes = codes<<1 | spread[p.src[b*p.plane+r*p.rowBytes+j]]
			}
			o := out[8*j:][:8]
			for i := range o {
				o[i] = table[codes>>(8*i)&15]
			}
		}
	}
}

func u8Generic(dst []float32, src []byte, units []float32, stride, dim int) {
	for r, unit := range units {
		row := src[r*dim:][:dim]
		out := dst[r*stride:][:dim]
		for i, b := range row {
			out[i] = float32(unit * float32(int32(b)-128))
		}
	}
}

// word reads up to 8 bytes as a little-endian word, padded with zeros.
func word(p []byte) uint64 {
	if len(p) >= 8 {
		return binary.LittleEndian.Uint64(p)
	}
	var w uint64
	for i, b := range p {
		w |= uint64(b) << (8 * i)
	}
	return w
}

func flip(x []float32, signs []uint32) {
	for i, s := range signs[:len(x)] {
		x[i] = math.Float32frombits(math.Float32bits(x[i]) ^ s)
	}
}

func toF16Generic(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(v))
	}
}

func log8Generic(dst []byte, scales []float32, base float32) {
	for r, s := range scales {
		dst[r] = log8Code(base, s, false)
	}
}

func ratiosGeneric(scales []float32, s *rowSums, rule quant.ScaleRule) {
	for r, scale := range scales {
		if scale != 0 {
			ratio := RuleScale(rule, float32(s.xx[r]), float32(s.xc[r]), float32(s.cc[r])) *
				layout.CentroidUnit
			scales[r] = float32(scale * ratio)
		}
	}
}
