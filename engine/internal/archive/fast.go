// SPDX-License-Identifier: Apache-2.0

package archive

import "encoding/binary"

// rowScales holds the scale of every component, and the magnitude expected of it, for rows of one
// step.
type rowScales struct {
	step8 int16
	scale []int16
	exp   []uint64
	logs  []int32 // 8*log2 of the sum of exp before each group, the prior included
}

// scalesOf returns the scales of a step, which it makes once. A lane has as many as there are
// classes.
func (c *coder) scalesOf(known []*rowScales, l *lane, step8 int16) ([]*rowScales, *rowScales) {
	for _, s := range known {
		if s.step8 == step8 {
			return known, s
		}
	}
	s := &rowScales{step8: step8, scale: make([]int16, l.dim), exp: make([]uint64, l.dim),
		logs: make([]int32, (l.dim+groupSize-1)/groupSize)}
	expected := uint64(c.Prior)
	for i, d := range l.std8 {
		if i%groupSize == 0 {
			s.logs[i/groupSize] = int32(log8(expected))
		}
		s.scale[i] = d - step8
		if coded(int(s.scale[i])) {
			s.exp[i] = c.expectation(int(s.scale[i]))
			expected += s.exp[i]
		}
	}
	return append(known, s), s
}

// decodeOne is decodeLane for a lane of one stream. It keeps the states in registers. next decodes
// coefficients that are no plain symbol, as in decodeLane.
func (c *coder) decodeOne(l *lane, b []byte, out []float32) bool {
	d := newRansDecoder(b)
	var known []*rowScales
	for t := 0; t < l.rows; t += 2 {
		if t+1 == l.rows { // the last row alone
			c.decodeRows(&d, l, t, 1, out)
			break
		}
		var even, odd *rowScales
		known, even = c.scalesOf(known, l, l.step8[t])
		known, odd = c.scalesOf(known, l, l.step8[t+1])
		c.decodePair(&d, even, odd, out[t*l.dim:(t+1)*l.dim], out[(t+1)*l.dim:(t+2)*l.dim])
		if d.pos > len(b)+8 {
			return false
		}
	}
	return d.done()
}

// decodePair decodes two rows.
func (c *coder) decodePair(d *ransDecoder, even, odd *rowScales, out0, out1 []float32) {
	x0, x1, pos, b := d.x[0], d.x[1], d.pos, d.b
	seen0, seen1 := uint64(c.Prior), uint64(c.Prior)
	n := len(out0)
	out1 = out1[:n]
	scale0, scale1 := even.scale[:n], odd.scale[:n]
	for g := 0; g < n; g += groupSize {
		shift0 := clampShift(log8(seen0) - int(even.logs[g/groupSize]))
		shift1 := clampShift(log8(seen1) - int(odd.logs[g/groupSize]))
		for i := g; i < min(g+groupSize, n); i++ {
			out0[i], out1[i] = 0, 0
			if at := int(scale0[i]); at >= deadScale {
				at += shift0
				e := slot(symEscape << 24)
				k := max(at-classBase, 0) >> 1
				if at <= classTop {
					e = c.slots[k][x0&(probOne-1)]
				}
				var m uint32
				if sym := e >> 24; sym == symEscape {
					d.x[0], d.pos = x0, pos
					out0[i], m = c.next(d, 0, at)
					x0, pos = d.x[0], d.pos
				} else {
					x0 = (uint32(e)>>12&0xfff+1)*(x0>>probBits) + uint32(e)&0xfff
					if x0 < ransLow {
						x0 <<= 16
						if pos+2 <= len(b) {
							x0 |= uint32(binary.LittleEndian.Uint16(b[pos:]))
						}
						pos += 2
					}
					out0[i], m = c.signed[k][sym], magnitudes[sym]
				}
				seen0 += uint64(m) << 12
			}
			if at := int(scale1[i]); at >= deadScale {
				at += shift1
				e := slot(symEscape << 24)
				k := max(at-classBase, 0) >> 1
				if at <= classTop {
					e = c.slots[k][x1&(probOne-1)]
				}
				var m uint32
				if sym := e >> 24; sym == symEscape {
					d.x[1], d.pos = x1, pos
					out1[i], m = c.next(d, 1, at)
					x1, pos = d.x[1], d.pos
				} else {
					x1 = (uint32(e)>>12&0xfff+1)*(x1>>probBits) + uint32(e)&0xfff
					if x1 < ransLow {
						x1 <<= 16
						if pos+2 <= len(b) {
							x1 |= uint32(binary.LittleEndian.Uint16(b[pos:]))
						}
						pos += 2
					}
					out1[i], m = c.signed[k][sym], magnitudes[sym]
				}
				seen1 += uint64(m) << 12
			}
		}
	}
	d.x[0], d.x[1], d.pos = x0, x1, pos
}

// magnitudes are the magnitudes of symbols, repeated to fill the table.
var magnitudes = func() (m [256]uint32) {
	for i := range m {
		m[i] = uint32(max(i-maxLevel, maxLevel-i))
	}
	return m
}()
