// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
)

// What of engine/container/FORMAT.md a forger needs.
const (
	magic        = "\x93KVIST\r\n"
	headerFixed  = 24
	headerLength = 12 // where the length stands
	headerCRC    = 16
	trailerSize  = 32
	entrySize    = 16
	trailerCRC   = 12
	sectionCRC   = 4  // of index and side tensors
	recordCRC    = 20 // of records
	recordLength = 16
	sideLength   = 8
	kindRecord   = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// section is a record or a side tensor with its entry in the index.
type section struct {
	bytes []byte
	rest  [8]byte // of the entry, behind the offset: segment, layer, kind
}

type container struct {
	header   []byte
	sections []section
}

// split takes an intact file apart.
func split(b []byte) (*container, bool) {
	le := binary.LittleEndian
	if len(b) < headerFixed+trailerSize {
		return nil, false
	}
	t := b[len(b)-trailerSize:]
	at, n := int64(le.Uint64(t)), int64(le.Uint32(t[8:]))
	if string(t[24:]) != "KVISTEND" || at < headerFixed || at+n+trailerSize != int64(len(b)) {
		return nil, false
	}
	index := b[at : at+n]
	c := &container{header: bytes.Clone(b[:le.Uint32(b[headerLength:])])}
	for i := entrySize; i+entrySize <= len(index); i += entrySize {
		from, to := int64(le.Uint64(index[i:])), at
		if next := i + entrySize; next < len(index) {
			to = int64(le.Uint64(index[next:]))
		}
		s := section{bytes: bytes.Clone(b[from:to])}
		copy(s.rest[:], index[i+8:])
		c.sections = append(c.sections, s)
	}
	return c, true
}

func (s *section) record() bool { return binary.LittleEndian.Uint16(s.rest[6:]) == kindRecord }

// crcAt is where the checksum of a section stands.
func (s *section) crcAt() int {
	if s.record() {
		return recordCRC
	}
	return sectionCRC
}

// repair makes the checksum at an offset of s right.
func repair(s []byte, at int) {
	if len(s) < at+4 {
		return
	}
	sum := crc32.Update(0, castagnoli, s[:at])
	sum = crc32.Update(sum, castagnoli, s[at+4:])
	binary.LittleEndian.PutUint32(s[at:], sum)
}

// join puts the sections together again. With lengths, those that stand in header and sections are made
// those that they have.
func (c *container) join(lengths bool, last func(index, trailer []byte)) []byte {
	le := binary.LittleEndian
	if lengths && len(c.header) >= headerFixed {
		le.PutUint32(c.header[headerLength:], uint32(len(c.header)))
	}
	repair(c.header, headerCRC)
	out := bytes.Clone(c.header)
	index := make([]byte, entrySize)
	copy(index, "KIDX")
	le.PutUint32(index[8:], uint32(len(c.sections)))
	for i := range c.sections {
		s := &c.sections[i]
		if lengths && len(s.bytes) >= headerFixed {
			if s.record() {
				le.PutUint32(s.bytes[recordLength:], uint32(len(s.bytes)))
			} else {
				le.PutUint64(s.bytes[sideLength:], uint64(len(s.bytes)))
			}
		}
		repair(s.bytes, s.crcAt())
		index = le.AppendUint64(index, uint64(len(out)))
		index = append(index, s.rest[:]...)
		out = append(out, s.bytes...)
	}
	trailer := make([]byte, trailerSize)
	le.PutUint64(trailer, uint64(len(out)))
	le.PutUint32(trailer[8:], uint32(len(index)))
	le.PutUint64(trailer[16:], uint64(len(out)+len(index)+trailerSize))
	copy(trailer[24:], "KVISTEND")
	if last != nil {
		last(index, trailer)
	}
	repair(index, sectionCRC)
	repair(trailer, trailerCRC)
	return append(append(out, index...), trailer...)
}

// SetHeader returns an intact file with other bytes in its header, and the checksum made right.
func SetHeader(seed []byte, at int, v ...byte) []byte {
	b := bytes.Clone(seed)
	copy(b[at:], v)
	repair(b[:binary.LittleEndian.Uint32(b[headerLength:])], headerCRC)
	return b
}

// Forge returns forgery number n of a .kvist or .kvprofile, which is not changed, or of a file that ends with
// one. A file that is not intact is taken as Damage takes it.
func Forge(seed []byte, n uint64) []byte {
	r := rand.New(rand.NewPCG(n, 0x6b76697374))
	if at := bytes.Index(seed, []byte(magic)); at > 0 {
		return append(bytes.Clone(seed[:at]), Forge(seed[at:], n)...)
	}
	c, ok := split(seed)
	if !ok {
		return damage(seed, r)
	}
	for range 1 + r.IntN(4) {
		c.change(r)
	}
	var last func(index, trailer []byte)
	if r.IntN(6) == 0 {
		last = func(index, trailer []byte) {
			setNumber([][]byte{index, trailer}[r.IntN(2)], r)
		}
	}
	return c.join(r.IntN(4) != 0, last)
}

// change does one thing to the header or to a section.
func (c *container) change(r *rand.Rand) {
	b := &c.header
	i := -1
	if len(c.sections) > 0 && r.IntN(3) != 0 {
		i = r.IntN(len(c.sections))
		b = &c.sections[i].bytes
	}
	switch k := r.IntN(16); {
	case k < 7:
		setNumber(*b, r)
	case k < 9:
		(*b)[r.IntN(len(*b))] ^= 1 << r.IntN(8)
	case k < 11:
		setText(*b, r)
	case k < 13:
		*b = resize(*b, r)
	case i < 0:
		setNumber(*b, r)
	case k == 13:
		c.sections = append(c.sections[:i], c.sections[i+1:]...)
	case k == 14:
		s := c.sections[i]
		s.bytes = bytes.Clone(s.bytes)
		c.sections = append(c.sections, s)
	default:
		setNumber(c.sections[i].rest[:], r)
	}
}
