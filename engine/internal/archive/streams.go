// SPDX-License-Identifier: Apache-2.0

package archive

import "encoding/binary"

// streams are the parts of a payload in transform mode.
type streams struct {
	predicted []bool   // [lanes]; nil where no lane is
	constants [][]byte // [lanes], those of K; nil where no lane has one
	chunks    int
	side      []byte
	parts     int      // of the tokens; a refinement has NumGroups streams for each
	lanes     []stream // the base of each
	// energy is that of all rows. err is the error of the complete payload.
	energy, err worth
	refined     [][]stream // [chunks-1][parts*NumGroups]
}

// parser splits a payload into its parts. The lengths of all parts come first.
type parser struct {
	b    []byte
	head int // of the lengths
	at   int64
}

func (p *parser) u16() uint16 {
	p.head += 2
	return binary.LittleEndian.Uint16(p.b[p.head-2:])
}

func (p *parser) u32() int {
	p.head += 4
	return int(binary.LittleEndian.Uint32(p.b[p.head-4:]))
}

// part returns the next size bytes, or false if the payload ends before.
func (p *parser) part(size int) ([]byte, bool) {
	if int64(size) > int64(len(p.b))-p.at {
		return nil, false
	}
	v := p.b[p.at : p.at+int64(size) : p.at+int64(size)]
	p.at += int64(size)
	return v, true
}

// MaxParts is the most parts of the tokens.
const MaxParts = 16

// headBytes returns the bytes before the side stream.
func headBytes(lanes, chunks, parts int) int64 {
	return 3 + 4 + 4 + 6*int64(lanes) + 6*int64(chunks-1)*int64(parts)*NumGroups
}

// parse takes a payload apart.
func parse(b []byte, lanes int) (*streams, error) {
	predicted, off, err := parsePredicted(b, lanes)
	if err != nil {
		return nil, err
	}
	constants, n, err := parseConstants(b[off:], lanes)
	if err != nil {
		return nil, err
	}
	off += n
	if len(b)-off < 3 || b[off] != modeTransform {
		return nil, corrupt("payload", -1, -1, off, "not in transform mode")
	}
	s := &streams{predicted: predicted, constants: constants, chunks: int(b[off+1]), parts: int(b[off+2])}
	head := int64(off) + headBytes(lanes, s.chunks, s.parts)
	if s.chunks < 1 || s.chunks > MaxChunks || s.parts < 1 || s.parts > MaxParts || int64(len(b)) < head {
		return nil, corrupt("payload", -1, -1, off+1, "%d stages of %d parts in %d bytes", s.chunks, s.parts, len(b))
	}
	if predicted != nil && s.chunks > 1 {
		return nil, corrupt("payload", -1, -1, off+1, "%d stages of lanes that are predicted, want 1", s.chunks)
	}
	p := &parser{b: b, head: off + 3, at: head}
	var ok bool
	if s.side, ok = p.part(p.u32()); !ok {
		return nil, corrupt("side stream", -1, -1, off+3, "longer than the payload")
	}
	s.energy, s.err = worth(p.u16()), worth(p.u16())
	valid, whole := s.energy.valid() && s.err.valid(), true
	for i := range lanes {
		x, ok := p.stream()
		if !ok {
			return nil, corrupt("lane", i, -1, p.head-6, "longer than the payload")
		}
		valid, whole = valid && x.worth.valid(), whole && len(x.b) > 0
		s.lanes = append(s.lanes, x)
	}
	for n := range s.chunks - 1 {
		refined := make([]stream, s.parts*NumGroups)
		for g := range refined {
			if refined[g], ok = p.stream(); !ok {
				return nil, corrupt("refinement", -1, -1, p.head-6, "longer than the payload")
			}
			valid = valid && refined[g].worth.valid()
			if len(refined[g].b) > 0 && (!whole || n > 0 && len(s.refined[n-1][g].b) == 0) {
				return nil, corrupt("refinement", -1, -1, refined[g].at, "stream %d of refinement %d without what it refines", g, n)
			}
		}
		s.refined = append(s.refined, refined)
	}
	if !valid {
		return nil, corrupt("payload", -1, -1, off+7, "a stream is worth no number")
	}
	if p.at != int64(len(b)) {
		return nil, corrupt("payload", -1, -1, int(p.at), "%d bytes behind the last stream", int64(len(b))-p.at)
	}
	return s, nil
}

// stream returns the next stream: its length and worth come first.
func (p *parser) stream() (s stream, ok bool) {
	s.at = int(p.at)
	s.b, ok = p.part(p.u32())
	s.worth = worth(p.u16())
	return s, ok
}

// append puts the parts together again.
func (s *streams) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = appendConstants(appendPredicted(dst, s.predicted), s.constants)
	dst = append(dst, modeTransform, byte(s.chunks), byte(s.parts))
	dst = le.AppendUint32(dst, uint32(len(s.side)))
	dst = le.AppendUint16(le.AppendUint16(dst, uint16(s.energy)), uint16(s.err))
	for _, r := range append([][]stream{s.lanes}, s.refined...) {
		for _, x := range r {
			dst = le.AppendUint16(le.AppendUint32(dst, uint32(len(x.b))), uint16(x.worth))
		}
	}
	dst = append(dst, s.side...)
	for _, l := range s.lanes {
		dst = append(dst, l.b...)
	}
	for _, r := range s.refined {
		for _, x := range r {
			dst = append(dst, x.b...)
		}
	}
	return dst
}

// spread adds the bytes of the refinements, which hold all lanes, to those of the bases, in
// proportion to them.
func (s *streams) spread(sizes []int64) {
	var base, refined int64
	for _, n := range sizes {
		base += n
	}
	for _, r := range s.refined {
		for _, x := range r {
			refined += int64(len(x.b))
		}
	}
	var seen, given int64
	for i := range sizes {
		if seen += sizes[i]; base > 0 {
			upTo := refined * seen / base
			sizes[i] += upTo - given
			given = upTo
		}
	}
}
