// SPDX-License-Identifier: Apache-2.0

package matmul

import "github.com/kvist-project/kvist/quant"

// unpackGeneric writes codes of the given bits as int8, [groups][512].
func unpackGeneric(dst, codes []uint8, bits int, consts *[16]uint8, groups int) {
	list := planes[bits]
	for g := range groups {
		from, to := codes[g*64*bits:][:64*bits], dst[g*panelBytes8:][:panelBytes8]
		for q := range groupSize / 4 {
			for lane := range 64 {
				var c uint8
				for _, p := range list {
					c |= from[64*(p.first+q%p.width)+lane] >> (q / p.width * p.width) & (1<<p.width - 1) << p.base
				}
				if bits <= 4 {
					c = consts[c]
				} else {
					c -= consts[0]
				}
				to[64*q+lane] = c
			}
		}
	}
}

// scalesGeneric writes n vectors of 16 scales: base[i/per] * steps[i], or the bases where steps is nil.
func scalesGeneric(dst []float32, base []uint16, steps []int8, n, per int) {
	for i := range n * panelWidth {
		dst[i] = quant.F16ToF32(base[i/panelWidth/per*panelWidth+i%panelWidth])
		if steps != nil {
			dst[i] *= float32(steps[i])
		}
	}
}

// expandGeneric writes a panel as float32 [32*groups][16].
func expandGeneric(dst []float32, p panel) {
	for i, b := range p.codes[:p.groups*panelBytes8] {
		in, out := i/64*4+i%4, i%64/4
		at := in/p.step*panelWidth + out
		v := float32(p.scales[at] * float32(int8(b)))
		if p.mins != nil {
			v += p.mins[at]
		}
		dst[in*panelWidth+out] = v
	}
}

// halvesGeneric writes what kernels with steps of 16 read of row row of a tile of activations, after
// quantize.
func halvesGeneric(t tile, row int) {
	for g := range t.groups {
		for h := range 2 {
			var sum int32
			for _, c := range t.codes[(g*t.rows+row)*groupSize+16*h:][:16] {
				sum += int32(c)
			}
			at := (2*g+h)*t.rows + row
			t.halfSum[at] = t.scale[g*t.rows+row] * float32(sum)
			t.halfBias[at] = -128 * sum
		}
	}
}

// tileGeneric computes c[t.rows][16] for one panel.
func tileGeneric(c []float32, ldc int, p panel, t tile) {
	per := groupSize / p.step
	sums := t.sum
	if per == 2 {
		sums = t.halfSum
	}
	for r := range t.rows {
		var acc [panelWidth]float32
		for s := range p.steps() {
			at := s/per*t.rows + r
			a := t.codes[at*groupSize+s%per*p.step:][:p.step]
			codes := p.codes[s*p.step*panelWidth:][:p.step*panelWidth]
			scale := p.scales[s*panelWidth:][:panelWidth]
			for o := range acc {
				var sum int32
				for i, x := range a {
					sum += int32(x) * int32(int8(codes[i/4*64+4*o+i%4]))
				}
				acc[o] += float32(float32(sum) * float32(scale[o]*t.scale[at]))
				if p.mins != nil {
					acc[o] += float32(p.mins[s*panelWidth+o] * sums[s*t.rows+r])
				}
			}
		}
		copy(c[r*ldc:r*ldc+panelWidth], acc[:])
	}
}
