// SPDX-License-Identifier: Apache-2.0

package packed

import (
	"encoding/binary"
	"math"
	"math/bits"
)

const (
	scaleBits   = 12
	scale       = 1 << scaleBits
	leastState  = 1 << 16
	ways        = 4 // states that are independent of each other, so that the processor works on all
	mostNumbers = 1 << 31
)

// strides are the distances that are tried: products of heads and head_dim of models.
var strides = []int{64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 5120, 8192}

// sampleNumbers is how many numbers a stride is tried on.
const sampleNumbers = 1 << 16

// counts are how often an upper byte came behind another one.
type counts [256][256]uint32

// split parts numbers into upper and lower bytes.
func split(src []byte) (hi, lo []byte) {
	n := len(src) / 2
	hi, lo = make([]byte, n), make([]byte, n)
	for i := range n {
		v := bits.RotateLeft16(binary.LittleEndian.Uint16(src[2*i:]), 1)
		hi[i], lo[i] = byte(v>>8), byte(v)
	}
	return hi, lo
}

// count counts upper bytes behind those a stride before; a stride of 0 and the first ones count behind 0.
func (c *counts) count(hi []byte, stride int) {
	*c = counts{}
	if stride == 0 {
		stride = len(hi)
	}
	for _, h := range hi[:min(stride, len(hi))] {
		c[0][h]++
	}
	for i := stride; i < len(hi); i++ {
		c[hi[i-stride]][hi[i]]++
	}
}

// bits returns about how many bits the symbols of counts take if there are times as many, with their tables.
func (c *counts) bits(times float64) (sum float64) {
	for i := range c {
		total, pairs := 0.0, 0
		for _, n := range c[i] {
			if n > 0 {
				total += float64(n)
				pairs++
				sum -= times * float64(n) * math.Log2(float64(n))
			}
		}
		if total > 0 {
			sum += times*total*math.Log2(total) + float64(16+24*pairs)
		}
	}
	return sum
}

// bestStride tries strides on numbers from the middle.
func bestStride(hi []byte) int {
	from := max(0, len(hi)/2-sampleNumbers/2)
	sample := hi[from:min(len(hi), from+sampleNumbers)]
	times := float64(len(hi)) / float64(len(sample))
	var c counts
	c.count(sample, 0)
	best, least := 0, c.bits(times)
	for _, s := range strides {
		if s > len(sample)/4 {
			break
		}
		c.count(sample, s)
		if b := c.bits(times); b < least {
			best, least = s, b
		}
	}
	return best
}

// table is the frequencies behind an upper byte.
type table struct {
	freq, start [256]uint32
}

// normalise makes frequencies of counts that add up to scale. ok is false if there are none.
func normalise(c *[256]uint32) (t table, ok bool) {
	total, most := uint64(0), 0
	for s, n := range c {
		total += uint64(n)
		if n > c[most] {
			most = s
		}
	}
	if total == 0 {
		return t, false
	}
	left := int64(scale)
	for s, n := range c {
		if n > 0 {
			t.freq[s] = uint32(max(1, uint64(n)*scale/total))
			left -= int64(t.freq[s])
		}
	}
	for left < 0 { // many rare ones were raised to 1: the frequent ones give
		most = largest(&t.freq)
		give := min(-left, int64(t.freq[most]+1)/2)
		t.freq[most] -= uint32(give)
		left += give
	}
	t.freq[most] += uint32(left)
	t.sum()
	return t, true
}

func largest(f *[256]uint32) (at int) {
	for s := range f {
		if f[s] > f[at] {
			at = s
		}
	}
	return at
}

func (t *table) sum() {
	at := uint32(0)
	for s, f := range t.freq {
		t.start[s] = at
		at += f
	}
}

// packNumbers packs bytes as numbers.
func packNumbers(src []byte) []byte {
	hi, lo := split(src)
	stride := bestStride(hi)
	var c counts
	c.count(hi, stride)
	p := header(src, methodNumbers, stride, len(src)+len(src)/8+1024)
	var tables [256]table
	at, used := len(p), 0
	p = append(p, 0, 0)
	for i := range c {
		t, ok := normalise(&c[i])
		if !ok {
			continue
		}
		tables[i] = t
		used++
		p = appendTable(p, byte(i), &t)
	}
	binary.LittleEndian.PutUint16(p[at:], uint16(used))
	p = append(p, lo...)
	p = appendSymbols(p, hi, stride, &tables)
	return append(p, src[2*len(hi):]...)
}

func appendTable(p []byte, behind byte, t *table) []byte {
	at := len(p) + 1
	p = append(p, behind, 0)
	n := 0
	for s, f := range t.freq {
		if f > 0 {
			p = binary.LittleEndian.AppendUint16(append(p, byte(s)), uint16(f))
			n++
		}
	}
	p[at] = byte(n - 1)
	return p
}

// appendSymbols codes upper bytes, from the last one to the first: they are decoded the other way.
func appendSymbols(p, hi []byte, stride int, tables *[256]table) []byte {
	words := make([]uint16, 0, len(hi)/2)
	var states [ways]uint64
	for i := range states {
		states[i] = leastState
	}
	for i := len(hi) - 1; i >= 0; i-- {
		behind := byte(0)
		if stride > 0 && i >= stride {
			behind = hi[i-stride]
		}
		t := &tables[behind]
		f := uint64(t.freq[hi[i]])
		x := states[i%ways]
		if x >= f<<(32-scaleBits) {
			words = append(words, uint16(x))
			x >>= 16
		}
		states[i%ways] = x/f<<scaleBits + x%f + uint64(t.start[hi[i]])
	}
	p = binary.LittleEndian.AppendUint32(p, uint32(len(words)))
	for _, x := range states {
		p = binary.LittleEndian.AppendUint32(p, uint32(x))
	}
	for i := len(words) - 1; i >= 0; i-- {
		p = binary.LittleEndian.AppendUint16(p, words[i])
	}
	return p
}

// slot is what a state decodes to: its low bits are the number of the slot.
type slot struct {
	symbol byte
	freq   uint16
	offset uint16 // the number less the start of the symbol
}

// readTables reads the tables, and returns what follows them.
func readTables(p []byte) (tables [256][]slot, rest []byte, err error) {
	if len(p) < 2 {
		return tables, nil, corrupt("it ends before the tables")
	}
	n := int(binary.LittleEndian.Uint16(p))
	p = p[2:]
	for range n {
		if len(p) < 2 || len(p) < 2+3*(int(p[1])+1) || tables[p[0]] != nil {
			return tables, nil, corrupt("a table that is cut or there twice")
		}
		t, symbols := make([]slot, 0, scale), int(p[1])+1
		for i := range symbols {
			f := binary.LittleEndian.Uint16(p[3+3*i:])
			if f == 0 || len(t)+int(f) > scale {
				return tables, nil, corrupt("frequencies that do not add up")
			}
			for o := range f {
				t = append(t, slot{p[2+3*i], f, o})
			}
		}
		if len(t) != scale {
			return tables, nil, corrupt("frequencies that do not add up")
		}
		tables[p[0]] = t
		p = p[2+3*symbols:]
	}
	return tables, p, nil
}

// unpackNumbers is the inverse of packNumbers, up to the checksum.
func unpackNumbers(p []byte, n int) ([]byte, error) {
	stride := int(binary.LittleEndian.Uint32(p[20:]))
	tables, p, err := readTables(p[headerBytes:])
	if err != nil {
		return nil, err
	}
	count := n / 2
	if len(p) < count+4+4*ways+n%2 {
		return nil, corrupt("%d bytes of %d numbers", len(p), count)
	}
	lo, tail := p[:count], p[len(p)-n%2:]
	words := p[count+4+4*ways : len(p)-n%2]
	if int64(binary.LittleEndian.Uint32(p[count:]))*2 != int64(len(words)) {
		return nil, corrupt("%d bytes of words", len(words))
	}
	var states [ways]uint32
	for i := range states {
		states[i] = binary.LittleEndian.Uint32(p[count+4+4*i:])
	}
	out := make([]byte, n)
	if err := decode(out, lo, words, stride, states, &tables); err != nil {
		return nil, err
	}
	copy(out[2*count:], tail)
	return out, nil
}

func decode(out, lo, words []byte, stride int, states [ways]uint32, tables *[256][]slot) error {
	hi := make([]byte, len(lo))
	for i := range hi {
		behind := byte(0)
		if stride > 0 && i >= stride {
			behind = hi[i-stride]
		}
		t := tables[behind]
		if t == nil {
			return corrupt("a symbol behind one without a table")
		}
		x := states[i%ways]
		s := t[x%scale]
		x = uint32(s.freq)*(x>>scaleBits) + uint32(s.offset)
		if x < leastState {
			if len(words) < 2 {
				return corrupt("it ends early")
			}
			x = x<<16 | uint32(binary.LittleEndian.Uint16(words))
			words = words[2:]
		}
		states[i%ways] = x
		hi[i] = s.symbol
		v := bits.RotateLeft16(uint16(s.symbol)<<8|uint16(lo[i]), -1)
		binary.LittleEndian.PutUint16(out[2*i:], v)
	}
	if len(words) > 0 || states != [ways]uint32{leastState, leastState, leastState, leastState} {
		return corrupt("it goes on behind the last number")
	}
	return nil
}
