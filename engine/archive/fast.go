// SPDX-License-Identifier: Apache-2.0

package archive

import "encoding/binary"

// rowScales is what the rows of one step share: the scale of every component and the magnitude
// expected of it.
type rowScales struct {
	step8 int16
	scale []int16
	exp   []uint64
}

// scalesOf finds or makes the scales of a step; a lane has as many as there are classes.
func (c *coder) scalesOf(known []*rowScales, l *lane, step8 int16) ([]*rowScales, *rowScales) {
	for _, s := range known {
		if s.step8 == step8 {
			return known, s
		}
	}
	s := &rowScales{step8: step8, scale: make([]int16, l.dim), exp: make([]uint64, l.dim)}
	for i, d := range l.std8 {
		s.scale[i] = d - step8
		if coded(int(s.scale[i])) {
			s.exp[i] = c.expectation(int(s.scale[i]))
		}
	}
	return append(known, s), s
}

// decodeOne is decodeLane for a lane of one stream, with the states in registers. Coefficients that
// are not a plain symbol go through next, as they do there.
func (c *coder) decodeOne(l *lane, b []byte, out []float32) bool {
	d := newRansDecoder(b)
	var known []*rowScales
	for t := 0; t < l.rows; t += 2 {
		if t+1 == l.rows { // the last row alone
			c.decodeRows(&d, l, t, 1, out)
			break
		}
		var a0, a1 *rowScales
		known, a0 = c.scalesOf(known, l, l.step8[t])
		known, a1 = c.scalesOf(known, l, l.step8[t+1])
		o0, o1 := out[t*l.dim:(t+1)*l.dim], out[(t+1)*l.dim:(t+2)*l.dim]
		var r0, r1 rowState
		for g := 0; g < l.dim; g += groupSize {
			s0, s1 := r0.shift8(c.Prior), r1.shift8(c.Prior)
			for i := g; i < min(g+groupSize, l.dim); i++ {
				if sc := int(a0.scale[i]); sc >= deadScale {
					v, m := c.quick(&d, 0, sc+s0)
					o0[i] = v
					r0.seen += uint64(m) << 12
					r0.expected += a0.exp[i]
				} else {
					o0[i] = 0
				}
				if sc := int(a1.scale[i]); sc >= deadScale {
					v, m := c.quick(&d, 1, sc+s1)
					o1[i] = v
					r1.seen += uint64(m) << 12
					r1.expected += a1.exp[i]
				} else {
					o1[i] = 0
				}
			}
		}
		if d.pos > len(b)+8 {
			return false
		}
	}
	return d.done()
}

// quick reads one coefficient.
func (c *coder) quick(d *ransDecoder, r, scale8 int) (float32, uint32) {
	if scale8 > classTop {
		return c.next(d, r, scale8)
	}
	k := max(scale8-classBase, 0) >> 1
	x := d.x[r]
	e := c.slots[k][x&(probOne-1)]
	sym := int(e >> 24)
	if sym == symEscape {
		return c.next(d, r, scale8)
	}
	x = (uint32(e)>>12&0xfff+1)*(x>>probBits) + uint32(e)&0xfff
	if x < ransLow {
		p := d.pos
		d.pos = p + 2
		if p+2 <= len(d.b) {
			x = x<<16 | uint32(binary.LittleEndian.Uint16(d.b[p:]))
		} else {
			x <<= 16
		}
	}
	d.x[r] = x
	m := sym - maxLevel
	if m < 0 {
		m = -m
	}
	return c.signed[k][sym], uint32(m)
}
