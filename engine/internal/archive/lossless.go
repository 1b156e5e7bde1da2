// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Lossless mode. A row that equals an earlier one bit by bit is coded by its number; V of the first
// layer does so for equal tokens. Of other rows the two upper bytes of every element are coded in
// nibbles. The context of the first nibble is its channel, that of the second is channel and first
// nibble, that of the third is the second nibble. The rest is close to random and is stored as it is.
// Models adapt from nothing, so no profile is needed.
//
// Payload: u8 1, u8 bytes of an element, u32 length of each lane, the lanes. A lane is u32 length
// of the coded stream, u32 elements that are not copied, the stream, the fourth nibbles in pairs
// (the first one in the upper half), and the two lower bytes of elements of 4. The stream holds for
// every row one of 16 symbols, 1 meaning that it is a row before, then that row's number in four
// hexadecimal digits, or the nibbles of its elements.

// LosslessLane is one side of one head: [rows, dim] elements, little-endian.
type LosslessLane struct {
	Dim  int
	Data []byte
}

// IsLossless reports whether a payload keeps its rows bit by bit.
func IsLossless(payload []byte) bool { return len(payload) > 0 && payload[0] == modeLossless }

// EncodeLossless appends a payload of lanes whose elements take size bytes, 2 or 4.
func EncodeLossless(dst []byte, lanes []LosslessLane, size int) []byte {
	le := binary.LittleEndian
	dst = append(dst, modeLossless, byte(size))
	head := len(dst)
	room := 4 * len(lanes)
	for _, l := range lanes {
		room += len(l.Data)*7/8 + 64
	}
	dst = slices.Grow(dst, room)
	dst = append(dst, make([]byte, 4*len(lanes))...)
	var s losslessScratch
	for i, l := range lanes {
		at := len(dst)
		dst = s.encode(dst, l, size)
		le.PutUint32(dst[head+4*i:], uint32(len(dst)-at))
	}
	return dst
}

// nibbleModels are the models of a lane.
type nibbleModels struct {
	first  []sideModel     // [dim]
	second [][16]sideModel // [dim][first]
	third  [16]sideModel   // [second]
	copied sideModel
	digit  [4]sideModel
}

func newNibbleModels(dim int) *nibbleModels {
	m := &nibbleModels{first: make([]sideModel, dim), second: make([][16]sideModel, dim)}
	for i := range m.first {
		m.first[i] = newSideModel()
		for j := range m.second[i] {
			m.second[i][j] = newSideModel()
		}
	}
	for j := range m.third {
		m.third[j] = newSideModel()
	}
	m.copied = newSideModel()
	for j := range m.digit {
		m.digit[j] = newSideModel()
	}
	return m
}

// losslessScratch is memory that encoding uses for one lane after the other.
type losslessScratch struct {
	e      sideEncoder
	halves nibbles
	low    []byte
	known  map[uint64]int // rows that came before, by their hash
}

// hashOf gives the same hash on every machine, because the payload depends on the rows it finds.
func hashOf(row []byte) uint64 {
	h := uint64(len(row))
	for ; len(row) >= 8; row = row[8:] {
		h = (h ^ binary.LittleEndian.Uint64(row)) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	for _, x := range row {
		h = (h ^ uint64(x)) * 0x9e3779b97f4a7c15
		h ^= h >> 29
	}
	return h
}

func (s *losslessScratch) encode(dst []byte, l LosslessLane, size int) []byte {
	m := newNibbleModels(l.Dim)
	width := l.Dim * size
	if s.known == nil {
		s.known = map[uint64]int{}
	}
	clear(s.known)
	elements := len(l.Data) / size
	e, halves, low := &s.e, &s.halves, s.low[:0]
	e.syms = slices.Grow(e.syms[:0], 3*elements+elements/l.Dim)
	halves.b, halves.n = slices.Grow(halves.b[:0], elements/2+1), 0
	for r := 0; (r+1)*width <= len(l.Data); r++ {
		row := l.Data[r*width : (r+1)*width]
		hash := hashOf(row)
		at, ok := s.known[hash]
		if ok && bytes.Equal(l.Data[at*width:(at+1)*width], row) {
			e.put(&m.copied, 1)
			for k := range m.digit {
				e.put(&m.digit[k], at>>(12-4*k)&15)
			}
			continue
		}
		if !ok && r < 1<<16 {
			s.known[hash] = r
		}
		e.put(&m.copied, 0)
		for ch := range l.Dim {
			x := row[ch*size : (ch+1)*size]
			hi, lo := x[size-1], x[size-2]
			e.put(&m.first[ch], int(hi>>4))
			e.put(&m.second[ch][hi>>4], int(hi&15))
			e.put(&m.third[hi&15], int(lo>>4))
			halves.put(lo & 15)
			if size == 4 {
				low = append(low, x[0], x[1])
			}
		}
	}
	at := len(dst)
	dst = append(dst, make([]byte, 8)...)
	dst = e.finish(dst)
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-8))
	binary.LittleEndian.PutUint32(dst[at+4:], uint32(halves.n))
	s.low = low
	return append(append(dst, halves.b...), low...)
}

// nibbles are half bytes, two to a byte.
type nibbles struct {
	b []byte
	n int
}

func (h *nibbles) put(v byte) {
	if h.n%2 == 0 {
		h.b = append(h.b, v<<4)
	} else {
		h.b[h.n/2] |= v
	}
	h.n++
}

// next returns the next half byte. The caller knows that there is one.
func (h *nibbles) next() byte {
	v := h.b[h.n/2] >> (4 * (1 - h.n%2)) & 15
	h.n++
	return v
}

// parseLossless splits a payload into its lanes.
func parseLossless(b []byte, lanes int) ([][]byte, error) {
	if len(b) < 2+4*lanes || b[0] != modeLossless || b[1] != 2 && b[1] != 4 {
		return nil, corrupt("payload", -1, -1, 0, "%d bytes are no lossless payload", len(b))
	}
	at := int64(2 + 4*lanes)
	out := make([][]byte, lanes)
	for i := range out {
		n := int64(binary.LittleEndian.Uint32(b[2+4*i:]))
		if n > int64(len(b))-at {
			return nil, corrupt("lane", i, -1, 2+4*i, "longer than the payload")
		}
		out[i] = b[at : at+n]
		at += n
	}
	if at != int64(len(b)) {
		return nil, corrupt("payload", -1, -1, int(at), "%d bytes behind the last lane", int64(len(b))-at)
	}
	return out, nil
}

// DecodeLossless fills the Data of lanes, whose lengths say how many elements there are.
//
// Errors: *CorruptError.
func DecodeLossless(lanes []LosslessLane, payload []byte, size int) error {
	parts, err := parseLossless(payload, len(lanes))
	if err != nil {
		return err
	}
	if int(payload[1]) != size {
		return corrupt("payload", -1, -1, 1, "elements of %d bytes, want %d", payload[1], size)
	}
	for i, l := range lanes {
		if !decodeLosslessLane(l, parts[i], size) {
			return corrupt("lane", i, -1, 0, "the stream does not end where it should")
		}
	}
	return nil
}

func decodeLosslessLane(l LosslessLane, b []byte, size int) bool {
	if len(b) < 8 {
		return false
	}
	coded, plain := int64(binary.LittleEndian.Uint32(b)), int64(binary.LittleEndian.Uint32(b[4:]))
	if plain > int64(len(l.Data)/size) || int64(len(b)) != 8+coded+(plain+1)/2+plain*int64(size-2) {
		return false
	}
	d := sideDecoder{ransDecoder: newRansDecoder(b[8 : 8+coded])}
	halves := nibbles{b: b[8+coded:]}
	low := b[8+coded+(plain+1)/2:]
	m := newNibbleModels(l.Dim)
	width := l.Dim * size
	for r := 0; (r+1)*width <= len(l.Data); r++ {
		row := l.Data[r*width : (r+1)*width]
		if d.pos > len(d.b)+8 {
			return false
		}
		if d.get(&m.copied) != 0 {
			at := 0
			for k := range m.digit {
				at = at<<4 | d.get(&m.digit[k])
			}
			if at >= r {
				return false
			}
			copy(row, l.Data[at*width:(at+1)*width])
			continue
		}
		if halves.n+l.Dim > int(plain) {
			return false
		}
		for ch := range l.Dim {
			x := row[ch*size : (ch+1)*size]
			a := d.get(&m.first[ch])
			c := d.get(&m.second[ch][a])
			x[size-1], x[size-2] = byte(a<<4|c), byte(d.get(&m.third[c])<<4)|halves.next()
			if size == 4 {
				low = low[copy(x[:2], low):]
			}
		}
	}
	return d.done() && halves.n == int(plain)
}
