// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// windows[b] are the levels of width b, of 7 bits, by the last four bits of the path, the oldest in bit 0,
// and above them the member.
var windows = makeWindows()

func makeWindows() (w [trellis.MaxWidth + 1][]uint8) {
	for b := 1; b <= trellis.MaxWidth; b++ {
		w[b] = make([]uint8, 8<<b)
		levels, _ := trellis.ScanLevels(b)
		for i := range w[b] {
			state := i>>2&1 | i>>1&1<<1 | i&1<<2
			w[b][i] = levels[4*(i>>4)+trellis.Subset(state, i>>3&1)]
		}
	}
	return w
}

// unpackGeneric writes the levels of a run of cells of one tile, of 7 bits: vectors of 64 bytes, row r's
// components 4j+g in byte 4r+j of vector g of a cell.
func unpackGeneric(dst []uint8, tile []byte, r *run) {
	var before [trellis.TileRows]uint32 // the path, newest bit 15
	if r.path >= 0 {
		for row := range before {
			before[row] = uint32(trellis.Path(tile[r.path:], row))
		}
	}
	table := windows[r.width]
	bytes := trellis.TileBytes([]uint8{uint8(r.width)})
	for c := range r.cells {
		cell := tile[r.offset+c*bytes:][:bytes]
		out := dst[64*4*c:][:64*4]
		for row := range before {
			now := uint32(trellis.Path(cell, row))
			path := now<<3 | before[row]>>13
			before[row] = now
			m := members(cell, r.width, row)
			for t := range trellis.CellDim {
				w := path>>t&15 | uint32(m>>(4*uint(t))&15)<<4
				if r.width == 6 {
					w |= uint32(sixth(cell, row)>>t&1) << 8
				}
				out[64*(t%4)+4*row+t/4] = table[w]
			}
		}
	}
}

// exact[b] are the levels of width b by window and member, as windows.
var exact = makeExact()

func makeExact() (w [trellis.MaxWidth + 1][]float32) {
	for b := 1; b <= trellis.MaxWidth; b++ {
		w[b] = make([]float32, 8<<b)
		for i := range w[b] {
			state := i>>2&1 | i>>1&1<<1 | i&1<<2
			w[b][i] = trellis.Levels(b)[4*(i>>4)+trellis.Subset(state, i>>3&1)]
		}
	}
	return w
}

// members returns the members of a row's 16 components in a cell, 4 bits each: all but the last bit of
// width 6.
func members(cell []byte, width, row int) (m uint64) {
	le := binary.LittleEndian
	cell = cell[32:]
	w := width - 1
	if w&4 != 0 {
		a, b := le.Uint32(cell[4*row:]), le.Uint32(cell[64+4*row:])
		for j := range 4 {
			m |= uint64(a>>(8*j)&0xff|b>>(8*j)&0xff<<8) << (16 * j)
		}
		return m
	}
	lo := 0
	if w&2 != 0 {
		pairs := le.Uint32(cell[4*row:])
		x := uint64(pairs>>4&0x0f0f0f0f | pairs&0x0f0f0f0f<<4) // in order
		x = (x | x<<16) & 0x0000ffff0000ffff
		x = (x | x<<8) & 0x00ff00ff00ff00ff
		x = (x | x<<4) & 0x0f0f0f0f0f0f0f0f
		m = (x | x<<2) & 0x3333333333333333
		cell, lo = cell[64:], 2
	}
	if w&1 != 0 {
		x := uint64(le.Uint16(cell[2*row:]))
		x = (x | x<<24) & 0x000000ff000000ff
		x = (x | x<<12) & 0x000f000f000f000f
		x = (x | x<<6) & 0x0303030303030303
		m |= (x | x<<3) & 0x1111111111111111 << lo
	}
	return m
}

// sixth returns the last member bits of a row in a cell of width 6.
func sixth(cell []byte, row int) uint16 { return binary.LittleEndian.Uint16(cell[32+128+2*row:]) }

// dotsGeneric adds scale * (start + the dot products) to out, for the levels of a run of cells of one tile
// in vectors.
func dotsGeneric(out *[trellis.TileRows]float32, levels []uint8, codes []int8, start int32, scale float32) {
	for row := range out {
		sum := start
		for v := 0; 4*v < len(codes); v++ {
			q, l := codes[4*v:4*v+4], levels[64*v+4*row:][:4]
			sum += int32(q[0])*int32(l[0]) + int32(q[1])*int32(l[1]) + int32(q[2])*int32(l[2]) +
				int32(q[3])*int32(l[3])
		}
		out[row] += float32(scale * float32(sum))
	}
}

// scoresGeneric is one query on n tiles that lie stride bytes apart.
func scoresGeneric(out []float32, s *Section, tiles []byte, q *Query, scratch []uint8) {
	for t := range len(out) / trellis.TileRows {
		tile := tiles[t*s.tileBytes:][:s.tileBytes]
		row := (*[trellis.TileRows]float32)(out[t*trellis.TileRows:])
		clear(row[:])
		at := 0
		for i := range s.runs {
			r := &s.runs[i]
			levels := scratch[:64*4*r.cells]
			unpackGeneric(levels, tile, r)
			n := trellis.CellDim * r.cells
			dotsGeneric(row, levels, q.codes[at:at+n], q.starts[i], q.scales[i])
			at += n
		}
	}
}

// finishGeneric multiplies the scores of tiles by the factors of their rows, takes the norms off, and sets
// a bit for every row above the threshold.
func finishGeneric(masks []uint16, scores []float32, f *Factors, norms []float32, threshold float32) {
	for t := range masks {
		masks[t] = 0
		for r := range trellis.TileRows {
			i := trellis.TileRows*t + r
			x := float32(scores[i] * f.at(i))
			if norms != nil {
				x -= norms[i]
			}
			scores[i] = x
			if x > threshold {
				masks[t] |= 1 << r
			}
		}
	}
}

// at returns the factor of a row.
func (f *Factors) at(i int) float32 {
	if f.Table != nil {
		return f.Table[f.Codes[i]]
	}
	return quant.BF16ToF32(binary.LittleEndian.Uint16(f.Codes[2*i:]))
}

// paths is the work space of a search for the best paths of the rows of a tile.
type paths struct {
	from    []uint16 // [dim][8] for each state, the rows whose path came from the upper state
	members []uint8  // [dim][4][16] for each subset and row, the member nearest to the value
	cost    [trellis.States][trellis.TileRows]float32
}

// begin sets the costs of the states before the first component: the path starts in state 0.
func (p *paths) begin() {
	for s := range p.cost {
		for r := range p.cost[s] {
			if p.cost[s][r] = float32(math.Inf(1)); s == 0 {
				p.cost[s][r] = 0
			}
		}
	}
}

// searchGeneric is the forward part of trellis.Encode for 16 rows side by side: x is [dim][16].
func searchGeneric(p *paths, x []float32, widths []uint8) {
	p.begin()
	inf := float32(math.Inf(1))
	var dist [4][trellis.TileRows]float32
	for i, b := range widths {
		if b == 0 {
			continue
		}
		levels, members := trellis.Levels(int(b)), p.members[64*i:64*i+64]
		for r, v := range x[16*i : 16*i+16] {
			for k := range dist {
				best, member := inf, uint8(0)
				for m := 0; 4*m < len(levels); m++ {
					d := v - levels[4*m+k]
					if d := float32(d * d); d < best {
						best, member = d, uint8(m)
					}
				}
				dist[k][r], members[16*k+r] = best, member
			}
		}
		next := p.cost
		for s := range next {
			u, low, high := s&1, s>>1, s>>1|4
			kl, kh := trellis.Subset(low, u), trellis.Subset(high, u)
			var up uint16
			for r := range next[s] {
				a, c := p.cost[low][r]+dist[kl][r], p.cost[high][r]+dist[kh][r]
				if next[s][r] = a; c < a {
					next[s][r] = c
					up |= 1 << r
				}
			}
			p.from[8*i+s] = up
		}
		p.cost = next
	}
}
