// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// A faster way to encode a lane of one stream, in two passes. The first finds the levels row by row
// and keeps each as the index of its symbol among those of all classes. The second runs the coder
// from the last symbol to the first, with both states in registers. one encodes what is no plain
// symbol, as in encode.

// Values that are no index of a symbol.
const (
	codeNone = 0xffff // a component that is not coded
	codeSlow = 0xfffe // an escape, or a coefficient above all tables
)

// encodeSymbol holds what the coder needs of a symbol. x becomes x + bias + (x/freq) * more. The
// division is the upper half of a product with reciprocal; for freq = 1 this is one too small, and
// bias makes up for it.
type encodeSymbol struct {
	reciprocal uint64
	bias, more uint32
	most       uint32 // a state from here on writes a word first
}

func newEncodeSymbol(v interval) encodeSymbol {
	start, freq := uint32(v)>>16, uint32(v)&0xffff
	if freq == 0 {
		return encodeSymbol{}
	}
	s := encodeSymbol{bias: start, more: probOne - freq, most: freq << (32 - probBits)}
	if freq == 1 {
		s.reciprocal, s.bias = ^uint64(0), start+probOne-1
	} else {
		s.reciprocal = ^uint64(0)/uint64(freq) + 1
	}
	return s
}

// slowLevel is a coefficient that is no plain symbol.
type slowLevel struct {
	v             float32
	cost          float32 // bits
	scale, prior8 int16
	// If code is not codeSlow, it is a symbol followed by low bits.
	code     uint16
	low      uint16
	lowWidth uint8
}

// levels are the symbols of a lane. It is reused from lane to lane.
type levels struct {
	codes []uint16       // [rows, dim]
	slow  [2][]slowLevel // of even and odd rows, in their order
	words []byte
	sink  laneSink
}

// quantize fills in the symbols of y, [rows, dim].
func (s *levels) quantize(q *rowQuantizer, l *lane, y, steps []float32) {
	s.codes = slices.Grow(s.codes[:0], l.rows*l.dim)[:l.rows*l.dim]
	s.slow[0], s.slow[1] = s.slow[0][:0], s.slow[1][:0]
	var known []*rowScales
	for t := 0; t < l.rows; t++ {
		var of *rowScales
		known, of = q.scalesOf(known, l, l.step8[t])
		if t%2 == 0 && t+1 < l.rows {
			var odd *rowScales
			known, odd = q.scalesOf(known, l, l.step8[t+1])
			if s.quickPair(q, l, y, t, of, odd, [2]float32{1 / steps[t], 1 / steps[t+1]}) {
				t++
				continue
			}
		}
		s.row(q, s.codes[t*l.dim:(t+1)*l.dim], y[t*l.dim:(t+1)*l.dim], of, 1/steps[t], t&1)
	}
}

// row fills in the symbols of one row.
func (s *levels) row(q *rowQuantizer, codes []uint16, y []float32, of *rowScales, inv float32, parity int) {
	seen := uint64(q.Prior)
	codes, scale := codes[:len(y)], of.scale[:len(y)]
	for g := 0; g < len(y); g += groupSize {
		end := min(g+groupSize, len(y))
		shift := clampShift(log8(seen) - int(of.logs[g/groupSize]))
		sum, slow, ok := s.quick(q, codes[g:end], y[g:end], scale[g:end], shift, inv)
		if !ok {
			sum, slow = s.group(q, codes[g:end], y[g:end], scale[g:end], shift, inv)
		}
		seen += uint64(sum) << 12
		for ; slow != 0; slow &= slow - 1 {
			i := g + bits.TrailingZeros32(slow)
			codes[i] = codeSlow
			prior := int(scale[i])
			seen += uint64(s.notPlain(q, y[i]*inv, prior+shift, prior, parity)) << 12
		}
	}
}

// group fills in the symbols of up to groupSize components, whose prior scales all move by shift. It
// returns the sum of their magnitudes, and a bit for each component that is no plain symbol. The
// symbols of these are undefined, and the sum leaves them out.
func (s *levels) group(q *rowQuantizer, codes []uint16, y []float32, scale []int16, shift int,
	inv float32) (sum, slow uint32) {
	codes, scale = codes[:len(y)], scale[:len(y)]
	for i := range y {
		prior := int(scale[i])
		if prior < deadScale {
			codes[i] = codeNone
			continue
		}
		v := y[i] * inv
		at := prior + shift
		// Signs and levels are hard to predict, so this computes and does not branch.
		raw := math.Float32bits(v)
		a := math.Float32frombits(raw &^ (1 << 31))
		if at > classTop || !(a < maxLevel) {
			slow |= 1 << i
			continue
		}
		k := max(at-classBase, 0) >> 1
		down := &q.down[k]
		n := int(uint32(a+0.5)) & maxLevel
		lower := n - 1
		if !(a < down[n]) {
			lower = n
		}
		for n = lower; a < down[n&maxLevel]; {
			n--
		}
		if uint32(n) > q.most[k] {
			slow |= 1 << i
			continue
		}
		sign := int(int32(raw) >> 31) // 0 or -1
		codes[i] = uint16(k*numSymbols + maxLevel + (n ^ sign) - sign)
		sum += uint32(n)
	}
	return sum, slow
}

// notPlain keeps a coefficient for later and returns its magnitude.
func (s *levels) notPlain(q *rowQuantizer, v float32, scale, prior, parity int) (m uint32) {
	x := slowLevel{v: v, scale: int16(scale), prior8: int16(prior), code: codeSlow}
	if k, shift := classOf(scale); shift > 0 && shift <= 8 { // most of them
		if n, hi, u := parts(v, shift); u <= q.most[k] {
			x.code = uint16(k*numSymbols + maxLevel + int(hi))
			x.low, x.lowWidth = uint16(uint32(n)&(1<<shift-1)), uint8(shift)
			x.cost = float32(shift) + q.cost[k][u]
			s.slow[parity] = append(s.slow[parity], x)
			return uint32(max(n, -n))
		}
	}
	m, x.cost = q.one(0, v, scale, prior, nil)
	s.slow[parity] = append(s.slow[parity], x)
	return m
}

// signed returns the levels of the lane as numbers, in the memory of out.
func (s *levels) signed(q *rowQuantizer, out []int32, l *lane) []int32 {
	out = slices.Grow(out[:0], len(s.codes))[:len(s.codes)]
	var at [2]int
	for i, c := range s.codes {
		switch c {
		case codeNone:
			out[i] = 0
		case codeSlow:
			parity := i / l.dim & 1
			out[i] = s.slow[parity][at[parity]].level(q)
			at[parity]++
		default:
			out[i] = int32(c)%numSymbols - maxLevel
		}
	}
	return out
}

// level returns the level of a coefficient that is no plain symbol.
func (x *slowLevel) level(q *rowQuantizer) int32 {
	k, shift := classOf(int(x.scale))
	if shift > 0 {
		n, _, _ := parts(x.v, shift)
		return n
	}
	a := max(x.v, -x.v)
	if !(a <= maxMagnitude) {
		a = maxMagnitude
	}
	if m := int32(q.level(a, k)); x.v >= 0 {
		return m
	} else {
		return -m
	}
}

// values returns what a decoder makes of the lane, in steps, in the memory of out.
func (s *levels) values(q *rowQuantizer, out []float32, l *lane) []float32 {
	out = slices.Grow(out[:0], len(s.codes))[:len(s.codes)]
	var at [2]int
	for i, c := range s.codes {
		switch c {
		case codeNone:
			out[i] = 0
		case codeSlow:
			parity := i / l.dim & 1
			out[i] = s.slow[parity][at[parity]].value(q)
			at[parity]++
		default:
			out[i] = q.signed[c/numSymbols][c%numSymbols]
		}
	}
	return out
}

// value returns what a decoder makes of a coefficient that is no plain symbol.
func (x *slowLevel) value(q *rowQuantizer) float32 {
	k, shift := classOf(int(x.scale))
	n := min(max(x.level(q), -maxMagnitude), maxMagnitude)
	if m := max(n, -n); shift > 0 || m > maxLevel {
		return float32(n)
	} else if n < 0 {
		return -q.recon[k][m]
	} else {
		return q.recon[k][m]
	}
}

// bits returns the bits that the model expects of the lane.
func (s *levels) bits(q *rowQuantizer) float64 {
	var sum float64
	for codes := s.codes; len(codes) > 0; {
		n := min(len(codes), 1<<12)
		var part float32
		for _, c := range codes[:n] {
			if c < codeSlow {
				part += q.bits[c]
			}
		}
		sum += float64(part)
		codes = codes[n:]
	}
	for _, slow := range s.slow {
		for _, x := range slow {
			sum += float64(x.cost)
		}
	}
	return sum
}

// encode appends the stream of the lane to dst.
func (s *levels) encode(dst []byte, q *rowQuantizer, l *lane) []byte {
	// A symbol writes one word at most, an escape a few.
	need := 2*len(s.codes) + 16*(len(s.slow[0])+len(s.slow[1])) + 8
	s.words = slices.Grow(s.words[:0], need)[:need]
	w := &wordsBack{b: s.words, at: need}
	x := [2]uint32{ransLow, ransLow}
	for t := (l.rows - 1) &^ 1; t >= 0; t -= 2 {
		even, odd := s.codes[t*l.dim:(t+1)*l.dim], []uint16(nil)
		if t+1 < l.rows {
			odd = s.codes[(t+1)*l.dim : (t+2)*l.dim]
		}
		s.pair(w, q, even, odd, &x)
	}
	for i := 1; i >= 0; i-- {
		w.put(uint16(x[i]))
		w.put(uint16(x[i] >> 16))
	}
	return append(dst, w.b[w.at:]...)
}

// wordsBack is filled from its end.
type wordsBack struct {
	b  []byte
	at int
}

func (w *wordsBack) put(v uint16) {
	w.at -= 2
	binary.LittleEndian.PutUint16(w.b[w.at:], v)
}

// pair encodes two rows, or the last one where odd is nil, from their last component to the first.
func (s *levels) pair(w *wordsBack, q *rowQuantizer, even, odd []uint16, x *[2]uint32) {
	x0, x1, at, b := x[0], x[1], w.at, w.b
	for i := len(even) - 1; i >= 0; i-- {
		if odd != nil {
			if c := odd[i]; c < codeSlow {
				e := &q.symbols[c]
				if x1 >= e.most {
					at -= 2
					binary.LittleEndian.PutUint16(b[at:], uint16(x1))
					x1 >>= 16
				}
				d, _ := bits.Mul64(uint64(x1), e.reciprocal)
				x1 += e.bias + uint32(d)*e.more
			} else if c == codeSlow {
				w.at = at
				x1 = s.encodeSlow(w, q, 1, x1)
				at = w.at
			}
		}
		if c := even[i]; c < codeSlow {
			e := &q.symbols[c]
			if x0 >= e.most {
				at -= 2
				binary.LittleEndian.PutUint16(b[at:], uint16(x0))
				x0 >>= 16
			}
			d, _ := bits.Mul64(uint64(x0), e.reciprocal)
			x0 += e.bias + uint32(d)*e.more
		} else if c == codeSlow {
			w.at = at
			x0 = s.encodeSlow(w, q, 0, x0)
			at = w.at
		}
	}
	x[0], x[1], w.at = x0, x1, at
}

// encodeSlow encodes the last coefficient of a state that is no plain symbol.
func (s *levels) encodeSlow(w *wordsBack, q *rowQuantizer, state int, x uint32) uint32 {
	slow := &s.slow[state]
	last := (*slow)[len(*slow)-1]
	*slow = (*slow)[:len(*slow)-1]
	if last.code != codeSlow {
		freq := uint32(probOne >> last.lowWidth)
		if x >= freq<<(32-probBits) {
			w.put(uint16(x))
			x >>= 16
		}
		x = x>>(probBits-last.lowWidth)<<probBits + x&(freq-1) + uint32(last.low)*freq
		e := &q.symbols[last.code]
		if x >= e.most {
			w.put(uint16(x))
			x >>= 16
		}
		d, _ := bits.Mul64(uint64(x), e.reciprocal)
		return x + e.bias + uint32(d)*e.more
	}
	s.sink.syms, s.sink.state = s.sink.syms[:0], s.sink.state[:0]
	q.one(state, last.v, int(last.scale), int(last.prior8), &s.sink)
	for i := len(s.sink.syms) - 1; i >= 0; i-- {
		start, freq := uint32(s.sink.syms[i])>>16, uint32(s.sink.syms[i])&0xffff
		if x >= freq<<(32-probBits) && freq < probOne {
			w.put(uint16(x))
			x >>= 16
		}
		x = x/freq<<probBits + x%freq + start
	}
	return x
}
