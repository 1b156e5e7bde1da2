// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant/trellis"
)

// lanes is the number of rows that are traced at a time: the steps of one row wait for each other.
const lanes = 4

// subsets has trellis.Subset at 2*state+u.
var subsets = func() (t [2 * trellis.States]uint8) {
	for i := range t {
		t[i] = uint8(trellis.Subset(i>>1, i&1))
	}
	return t
}()

// trace follows the best paths of rows first to first+lanes-1 back, writes their codes into a tile and,
// unless levels is nil, their values into levels [16][dim]. It returns a row whose cost is not finite, or -1.
func (p *paths) trace(tile []byte, s *Section, first int, levels []float32) (bad int) {
	var state [lanes]uint32
	for l := range state {
		best := p.cost[0][first+l]
		for k := range p.cost {
			if c := p.cost[k][first+l]; c < best {
				best, state[l] = c, uint32(k)
			}
		}
		if !(best <= math.MaxFloat32) {
			return first + l
		}
	}
	dim, offset := s.Dim(), s.tileBytes
	for c := len(s.cells) - 1; c >= 0; c-- {
		b := int(s.cells[c])
		lo := trellis.CellDim * c
		if b == 0 {
			for l := range lanes {
				if levels != nil {
					clear(levels[(first+l)*dim+lo:][:trellis.CellDim])
				}
			}
			continue
		}
		offset -= 32 * b
		var path [lanes]uint32
		var low [lanes]uint64  // 4 bits of each member
		var high [lanes]uint32 // the fifth bit
		table := trellis.Levels(b)
		for t := trellis.CellDim - 1; t >= 0; t-- {
			i := lo + t
			from, members := (*[8]uint16)(p.from[8*i:]), (*[64]uint8)(p.members[64*i:])
			for l := range lanes {
				st := state[l] & 7
				row := uint32(first + l)
				before := st>>1 | uint32(from[st]>>row&1)<<2
				subset := uint32(subsets[(before<<1|st&1)&15])
				m := uint32(members[(16*subset+row)&63])
				path[l] |= (st & 1) << t
				low[l] |= uint64(m&15) << (4 * t)
				high[l] |= m >> 4 << t
				if levels != nil {
					levels[(first+l)*dim+i] = table[4*m+subset]
				}
				state[l] = before
			}
		}
		for l := range lanes {
			putCell(tile[offset:offset+32*b], b, first+l, uint16(path[l]), low[l], uint16(high[l]))
		}
	}
	return -1
}

// putCell writes the codes of a row in a cell: its path, 4 bits of each member, and the fifth bits.
func putCell(cell []byte, width, row int, path uint16, low uint64, high uint16) {
	le := binary.LittleEndian
	le.PutUint16(cell[2*row:], path)
	cell = cell[32:]
	w := width - 1
	if w&4 != 0 {
		var a, b uint32
		for j := range 4 {
			a |= uint32(low>>(16*j)&0xff) << (8 * j)
			b |= uint32(low>>(16*j+8)&0xff) << (8 * j)
		}
		le.PutUint32(cell[4*row:], a)
		le.PutUint32(cell[64+4*row:], b)
		cell = cell[128:]
		if w&1 != 0 {
			le.PutUint16(cell[2*row:], high)
		}
		return
	}
	if w&2 != 0 {
		x := low & 0x3333333333333333
		x = (x | x>>2) & 0x0f0f0f0f0f0f0f0f
		x = (x | x>>4) & 0x00ff00ff00ff00ff
		x = (x | x>>8) & 0x0000ffff0000ffff
		pairs := uint32(x | x>>16)
		le.PutUint32(cell[4*row:], pairs>>4&0x0f0f0f0f|pairs&0x0f0f0f0f<<4)
		cell, low = cell[64:], low>>2
	}
	if w&1 != 0 {
		x := low & 0x1111111111111111
		x = (x | x>>3) & 0x0303030303030303
		x = (x | x>>6) & 0x000f000f000f000f
		x = (x | x>>12) & 0x000000ff000000ff
		le.PutUint16(cell[2*row:], uint16(x|x>>24))
	}
}

// row writes the values of a row of a tile.
func (s *Section) row(dst []float32, tile []byte, row int) {
	var before uint32
	for c, b := range s.cells {
		out := (*[trellis.CellDim]float32)(dst[trellis.CellDim*c:])
		if b == 0 {
			clear(out[:])
			continue
		}
		cell := tile[:32*int(b)]
		tile = tile[len(cell):]
		now := uint32(trellis.Path(cell, row))
		path := now<<3 | before>>13
		before = now
		var m uint64
		if b > 1 {
			m = members(cell, int(b), row)
		}
		table := exact[b]
		if b == 6 {
			last := uint32(sixth(cell, row))
			for t := range out {
				out[t] = table[path>>t&15|uint32(m>>(4*t)&15)<<4|last>>t&1<<8]
			}
			continue
		}
		for t := range out {
			out[t] = table[path>>t&15|uint32(m>>(4*t)&15)<<4]
		}
	}
}
