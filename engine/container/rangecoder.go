// SPDX-License-Identifier: Apache-2.0

package container

import "math/bits"

// The range coder of the record table. It uses integers only, so every machine reads and writes the
// same bytes. Totals are at most maxTotal, which leaves each symbol at least 8 bits of precision.
//
// Source: G. N. N. Martin, Range encoding (1979), in the byte-wise form with carry that LZMA uses.
// This coder differs in two ways: the last symbol of an alphabet gets the remainder of the
// division, and the stream ends after the fewest bytes that identify it, followed by implied zeros.
const (
	maxTotal  = 1 << 16
	rangeTop  = 1 << 24
	rangeInit = 1<<32 - 1
)

type rangeEncoder struct {
	low uint64 // < 2^32 between calls
	rng uint32
	out []byte
}

func newRangeEncoder() rangeEncoder { return rangeEncoder{rng: rangeInit} }

// encode narrows the range to [cum, cum+freq) of total.
func (e *rangeEncoder) encode(cum, freq, total uint32) {
	r := e.rng / total
	e.low += uint64(r) * uint64(cum)
	if cum+freq < total {
		e.rng = r * freq
	} else {
		e.rng -= r * cum
	}
	e.carry()
	for e.rng < rangeTop {
		e.out = append(e.out, byte(e.low>>24))
		e.low = e.low << 8 & (1<<32 - 1)
		e.rng <<= 8
	}
}

// carry adds bit 32 of low to the bytes already written. The first byte cannot overflow: low + rng
// never exceeds 2^32 times the weight of the bytes before it.
func (e *rangeEncoder) carry() {
	if e.low>>32 == 0 {
		return
	}
	e.low &= 1<<32 - 1
	i := len(e.out) - 1
	for ; e.out[i] == 0xff; i-- {
		e.out[i] = 0
	}
	e.out[i]++
}

// uniform codes v of n equally likely values; n = 1 costs nothing.
func (e *rangeEncoder) uniform(v, n int) { e.encode(uint32(v), 1, uint32(n)) }

// bit codes b with the adaptive model m.
func (e *rangeEncoder) bit(b bool, m *bitModel) {
	total := m[0] + m[1]
	if b {
		e.encode(m[0], m[1], total)
	} else {
		e.encode(0, m[0], total)
	}
	m.update(b)
}

// cost returns the bits written so far, to within one.
func (e *rangeEncoder) cost() int { return 8*len(e.out) + 32 - bits.Len32(e.rng) }

// finish ends the stream and returns it without trailing zero bytes.
func (e *rangeEncoder) finish() []byte {
	for k := uint(0); k <= 4; k++ {
		mask := uint64(1)<<(32-8*k) - 1
		v := (e.low + mask) &^ mask
		if v < e.low+uint64(e.rng) {
			e.low = v
			e.carry()
			for i := uint(0); i < k; i++ {
				e.out = append(e.out, byte(e.low>>(24-8*i)))
			}
			break
		}
	}
	for len(e.out) > 0 && e.out[len(e.out)-1] == 0 {
		e.out = e.out[:len(e.out)-1]
	}
	return e.out
}

// rangeDecoder reads the output of a rangeEncoder. From other bytes it returns arbitrary valid
// symbols, so the caller's bounds are the only ones needed.
type rangeDecoder struct {
	in   []byte
	pos  int // bytes consumed, including the implied zeros
	code uint32
	rng  uint32
}

func newRangeDecoder(in []byte) rangeDecoder {
	d := rangeDecoder{in: in, rng: rangeInit}
	for range 4 {
		d.next()
	}
	return d
}

func (d *rangeDecoder) next() {
	d.code <<= 8
	if d.pos < len(d.in) {
		d.code |= uint32(d.in[d.pos])
	}
	d.pos++
}

// target returns a point of [0, total) that lies in the interval of the next symbol.
func (d *rangeDecoder) target(total uint32) uint32 {
	return min(d.code/(d.rng/total), total-1)
}

// take consumes the symbol with the interval [cum, cum+freq) of total.
func (d *rangeDecoder) take(cum, freq, total uint32) {
	r := d.rng / total
	d.code -= r * cum
	if cum+freq < total {
		d.rng = r * freq
	} else {
		d.rng -= r * cum
	}
	for d.rng < rangeTop {
		d.next()
		d.rng <<= 8
	}
}

func (d *rangeDecoder) uniform(n int) int {
	v := d.target(uint32(n))
	d.take(v, 1, uint32(n))
	return int(v)
}

func (d *rangeDecoder) bit(m *bitModel) bool {
	total := m[0] + m[1]
	b := d.target(total) >= m[0]
	if b {
		d.take(m[0], m[1], total)
	} else {
		d.take(0, m[0], total)
	}
	m.update(b)
	return b
}

// canonical reports whether the stream ends where the encoder would end it: it has no byte after
// those consumed and no trailing zero.
func (d *rangeDecoder) canonical() bool {
	n := len(d.in)
	return n <= d.pos && (n == 0 || d.in[n-1] != 0)
}

// bitModel is the adaptive probability of a bit: the counts of zeros and ones seen, plus one.
type bitModel [2]uint32

func newBitModel() bitModel { return bitModel{1, 1} }

func (m *bitModel) update(b bool) {
	if b {
		m[1]++
	} else {
		m[0]++
	}
	if m[0]+m[1] >= maxTotal/2 {
		m[0], m[1] = (m[0]+1)/2, (m[1]+1)/2
	}
}
