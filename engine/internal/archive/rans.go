// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// The entropy coder: range asymmetric numeral systems with 32-bit states and 16-bit words
// (Duda, 2013, arXiv 1311.2540). A state lies in [2^16, 2^32); a symbol of frequency freq of
// 2^probBits takes log2(2^probBits / freq) bits. Two states take turns, so that two rows decode
// side by side. Encoding runs from the last symbol to the first.

const (
	probBits = 12
	probOne  = 1 << probBits
	ransLow  = 1 << 16 // the least value of a state, and the one it starts with
)

// interval is the range of a symbol: start in the upper half, freq in the lower.
type interval uint32

func newInterval(start, freq uint32) interval { return interval(start<<16 | freq) }

// ransEncode appends the words of a sequence of intervals to dst, for a decoder that takes symbol
// i with state lanes[i]. scale is that of the frequencies: probBits or sideBits.
func ransEncode(dst []byte, syms []interval, state []uint8, scale uint) []byte {
	at := len(dst)
	x := [2]uint32{ransLow, ransLow}
	for i := len(syms) - 1; i >= 0; i-- {
		start, freq := uint32(syms[i])>>16, uint32(syms[i])&0xffff
		s := &x[state[i]&1]
		if *s >= freq<<(32-scale) && freq < 1<<scale {
			dst = binary.LittleEndian.AppendUint16(dst, uint16(*s))
			*s >>= 16
		}
		*s = (*s/freq)<<scale + *s%freq + start
	}
	for i := 1; i >= 0; i-- {
		dst = binary.LittleEndian.AppendUint16(dst, uint16(x[i]))
		dst = binary.LittleEndian.AppendUint16(dst, uint16(x[i]>>16))
	}
	// The decoder reads forward: turn the order of the words round.
	words := dst[at:]
	for i, j := 0, len(words)-2; i < j; i, j = i+2, j-2 {
		words[i], words[j] = words[j], words[i]
		words[i+1], words[j+1] = words[j+1], words[i+1]
	}
	return dst
}

// ransDecoder holds the two states and the words to come. Behind the last word it reads zeros;
// done tells whether that happened.
type ransDecoder struct {
	x   [2]uint32
	b   []byte
	pos int
}

func newRansDecoder(b []byte) ransDecoder {
	d := ransDecoder{b: b}
	for i := range d.x {
		hi := uint32(d.word())
		d.x[i] = hi<<16 | uint32(d.word())
	}
	return d
}

func (d *ransDecoder) word() uint16 {
	p := d.pos
	d.pos += 2
	if p+2 > len(d.b) {
		return 0
	}
	return binary.LittleEndian.Uint16(d.b[p:])
}

// done reports whether exactly all words were taken and the states are those that the encoder began
// with. A damaged stream hardly ever passes.
func (d *ransDecoder) done() bool {
	return d.pos == len(d.b) && d.x == [2]uint32{ransLow, ransLow}
}

// take moves state i past a symbol that was found at slot x & mask.
func (d *ransDecoder) take(i int, start, freq uint32, scale uint) {
	x := d.x[i]
	x = freq*(x>>scale) + x&(1<<scale-1) - start
	if x < ransLow {
		x = x<<16 | uint32(d.word())
	}
	d.x[i] = x
}

// Side information is coded with adaptive models of 16 symbols. The cumulative table moves towards
// each symbol by 1/2^rate of the distance, in integers.

const (
	sideBits   = 15
	sideOne    = 1 << sideBits
	sideSyms   = 16
	sideRate   = 6 // of a model that has seen much; new ones move faster
	sideMinGap = 8 // the least frequency a symbol can have
)

// sideModel holds cum[s], the start of symbol s; cum[16] is sideOne.
type sideModel struct {
	cum  [sideSyms + 1]uint16
	seen uint8
}

func newSideModel() (m sideModel) {
	for i := range m.cum {
		m.cum[i] = uint16(i * (sideOne / sideSyms))
	}
	return m
}

// sideTargets[s] is where the starts of symbols move when symbol s is met. They are at least sideMinGap
// apart, and so stay the frequencies.
var sideTargets = func() (t [sideSyms][sideSyms]uint16) {
	for s := range t {
		for i := range t[s] {
			t[s][i] = uint16(i * sideMinGap)
			if i > s {
				t[s][i] = uint16(sideOne - (sideSyms-i)*sideMinGap)
			}
		}
	}
	return t
}()

// update moves the table towards symbol s.
func (m *sideModel) update(s int) {
	rate := min(2+bits.Len8(m.seen>>1), sideRate)
	if m.seen < 255 {
		m.seen++
	}
	m.move(s, rate)
}

func (m *sideModel) moveGeneric(s, rate int) {
	for i, target := range sideTargets[s] {
		m.cum[i] = uint16(int32(m.cum[i]) + (int32(target)-int32(m.cum[i]))>>rate)
	}
}

// findGeneric returns the last symbol that starts at slot or before it.
func (m *sideModel) findGeneric(slot uint16) int {
	s, found := slices.BinarySearch(m.cum[:], slot)
	if !found {
		s--
	}
	return s
}

// sideEncoder collects the intervals of side symbols.
type sideEncoder struct {
	syms  []interval
	state []uint8
}

func (e *sideEncoder) put(m *sideModel, s int) {
	e.syms = append(e.syms, newInterval(uint32(m.cum[s]), uint32(m.cum[s+1]-m.cum[s])))
	m.update(s)
}

// raw codes the low n bits of v, up to 15, as equally likely.
func (e *sideEncoder) raw(v uint32, n uint) {
	w := uint32(1) << (sideBits - n)
	e.syms = append(e.syms, newInterval(v*w, w))
}

func (e *sideEncoder) finish(dst []byte) []byte {
	for i := len(e.state); i < len(e.syms); i++ {
		e.state = append(e.state, uint8(i&1))
	}
	return ransEncode(dst, e.syms, e.state, sideBits)
}

type sideDecoder struct {
	ransDecoder
	n int
}

func (d *sideDecoder) get(m *sideModel) int {
	i := d.n & 1
	d.n++
	s := m.find(uint16(d.x[i] & (sideOne - 1)))
	d.take(i, uint32(m.cum[s]), uint32(m.cum[s+1]-m.cum[s]), sideBits)
	m.update(s)
	return s
}

func (d *sideDecoder) raw(n uint) uint32 {
	i := d.n & 1
	d.n++
	w := uint32(1) << (sideBits - n)
	v := d.x[i] & (sideOne - 1) / w
	d.take(i, v*w, w, sideBits)
	return v
}
