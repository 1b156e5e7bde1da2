// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

const tileRows = attend.TileRows

// scorer unpacks tiles of blocks and multiplies them with some queries. Attend and Relevance share
// it.
type scorer struct {
	p  *prepared
	qs []int32 // the current queries, indices into the batch

	// Queries rotated by the offset of the last block that had one, by basis.
	offset    int32
	hasTurned [2][layouts]bool
	turned    [2][layouts][]float32 // [len(qs), group, padK]
	cutTurned []byte                // [len(qs), group], in digits
	hasCut    bool
	one       []float32 // [head_dim]
	sin, cos  []float64

	// Tables of the current queries, without offset, for lists of at least tableRows rows.
	canLookUp, hasTables bool
	tables               []float32

	// The current block.
	blk    blockView
	layout attend.Layout
	vecs   []float32 // the queries in the basis and at the offset of the block
	bytes  bool      // K is unpacked to bytes: the queries are in cut, not in vecs
	direct bool      // the rows are expanded while they are multiplied
	cut    []byte
	lookUp bool // inner products with K come from tables
	local  bool // vecs and cut are indexed by position in qs, not by query

	// The current tile.
	kt       []float32 // [tileRows, padK]
	kb       []byte    // [tileRows, head_dim], for tiles of bytes
	unpackT  attend.Scratch
	r0, n    int
	seen     []uint32 // per current query: bit r is set if it sees row r
	terms    attend.Terms
	hasAdd   bool // whether terms.Add is not all zero, and so on
	hasNoise bool
	mul      [tileRows]float32 // with Softcap: row scale times unit times Queries.Scale
	pos      [tileRows]int64

	// Per current head.
	heads attend.Heads
}

var negInf = math.Inf(-1)

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// reset switches to other queries.
func (s *scorer) reset(p *prepared, qs []int32) {
	s.p, s.qs = p, qs
	s.hasTurned, s.hasCut = [2][layouts]bool{}, false
	s.canLookUp, s.hasTables = false, false
	s.kt = grow(s.kt, tileRows*p.padK)
	if p.hasCut {
		s.kb = grow(s.kb, tileRows*p.HeadDim)
	}
	s.seen = grow(s.seen, len(qs))
	h := len(qs) * p.Group
	s.heads.Dots, s.heads.Weights = grow(s.heads.Dots, h*tileRows), grow(s.heads.Weights, h*tileRows)
	s.heads.Energy = grow(s.heads.Energy, h)
	s.heads.Sums = grow(s.heads.Sums, h)
	s.heads.Masks = grow(s.heads.Masks, h)
	for i, q := range qs {
		copy(s.heads.Energy[i*p.Group:(i+1)*p.Group], p.energy[int(q)*p.Group:])
	}
}

// block switches to a block that has been checked. It fails if the block's memory was freed.
func (s *scorer) block(blk *backend.Block, withV bool) error {
	if err := s.blk.again(blk, withV); err != nil {
		return err
	}
	f := blk.K.Coding.Format
	s.local = blk.Offset != 0 && len(s.p.freqs) > 0
	if s.local && s.offset != blk.Offset {
		s.offset, s.hasTurned, s.hasCut = blk.Offset, [2][layouts]bool{}, false
	}
	if s.bytes = s.p.bytesK(f); s.bytes {
		s.cut = s.p.cut
		if s.local {
			s.cut = s.turnedCut()
		}
		s.lookUp = false
		return nil
	}
	s.lookUp = s.canLookUp && !s.local && s.p.kern.Tables(f, s.p.HeadDim)
	bs := s.p.basisOf(f)
	s.layout = bs.layout
	if s.local {
		s.vecs = s.turnedQueries(bs)
	} else {
		s.vecs = s.p.vecs[index(bs.rotated)][bs.layout]
	}
	return nil
}

// turnedQueries returns the current queries rotated by the block's offset. It keeps the result
// until the offset changes.
func (s *scorer) turnedQueries(bs basis) []float32 {
	p := s.p
	has, v := &s.hasTurned[index(bs.rotated)][bs.layout], &s.turned[index(bs.rotated)][bs.layout]
	if !*has {
		*has = true
		*v = grow(*v, len(s.qs)*p.Group*p.padK)
		s.turnAll(bs.rotated, func(i int) {
			attend.Arrange((*v)[i*p.padK:(i+1)*p.padK], s.one, bs.layout)
		})
	}
	return *v
}

// turnedCut is turnedQueries for queries in digits.
func (s *scorer) turnedCut() []byte {
	if size := s.p.cutBytes(); !s.hasCut {
		s.hasCut = true
		s.cutTurned = grow(s.cutTurned, len(s.qs)*s.p.Group*size)
		s.turnAll(true, func(i int) { s.p.kern.CutQuery(s.cutTurned[i*size:], s.one) })
	}
	return s.cutTurned
}

// turnAll rotates every current head by the block's offset into s.one, rotated or not, and calls f.
func (s *scorer) turnAll(rotated bool, f func(head int)) {
	p := s.p
	s.sin, s.cos = grow(s.sin, len(p.freqs)), grow(s.cos, len(p.freqs))
	sinCos(s.sin, s.cos, p.freqs, s.offset)
	s.one = grow(s.one, p.HeadDim)
	for i, q := range s.qs {
		for h := range p.Group {
			copy(s.one, p.Q[(int(q)*p.Group+h)*p.HeadDim:])
			turn(s.one, p.Rope.Layout, s.sin, s.cos)
			if rotated {
				p.codec.Forward(p.rotK(int(q)), s.one, 1, p.HeadDim)
			}
			f(i*p.Group + h)
		}
	}
}

// tile prepares rows [r0, r0+n) of the block and reports whether any query sees any of them. If
// none does, it unpacks nothing.
func (s *scorer) tile(r0, n int) bool {
	s.n = n
	if !s.see(r0, n) {
		return false
	}
	b, p := &s.blk, s.p
	rows, f := int(b.Rows), b.K.Coding.Format
	s.r0 = r0
	if s.lookUp {
		// nothing to unpack
	} else if s.direct = s.bytes && p.kern.Direct(f, p.HeadDim, n, len(s.qs)*p.Group); s.direct {
		// nothing to unpack
	} else if s.bytes {
		p.kern.UnpackBytes(s.kb, false, b.K.Coding, b.k, rows, p.HeadDim, r0, n, &s.unpackT)
	} else {
		p.kern.Unpack(s.kt, s.layout, b.K.Coding, b.k, rows, p.HeadDim, r0, n, &s.unpackT)
	}
	p.kern.Prefetch(b.K.Coding, b.k, p.HeadDim, r0+n, min(tileRows, rows-r0-n))
	unit := attend.Unit(f, p.HeadDim)
	p.kern.Scales(&s.terms.Mul, b.K.Coding, b.k, rows, r0, n, unit*p.Scale)
	if b.count != nil || b.bias != nil {
		s.addends(r0, n)
		s.hasAdd = true
	} else if s.hasAdd {
		s.terms.Add = [tileRows]float32{}
		s.hasAdd = false
	}
	if noise := 0.5 * b.Noise; noise != 0 && f.Rotated() {
		if f == quant.U8 || f.Nested() {
			noise /= unit * unit // Noise is relative to the row scale of quant.RowScales
		}
		p.kern.Square(&s.terms.Noise, &s.terms.Mul, noise)
		s.hasNoise = true
	} else if s.hasNoise {
		s.terms.Noise = [tileRows]float32{}
		s.hasNoise = false
	}
	if p.Softcap > 0 {
		s.mul = s.terms.Mul
		for r := range s.terms.Mul {
			s.terms.Mul[r] = 1 // capped scores need no further factor
		}
	}
	return true
}

// logCounts holds the logarithms of small counts.
var logCounts = func() (t [1024]float32) {
	for i := range t {
		t[i] = float32(math.Log(float64(i)))
	}
	return t
}()

// addends computes log(count) + bias.
func (s *scorer) addends(r0, n int) {
	b := &s.blk
	for i := range n {
		var x float32
		if b.count != nil {
			if c := binary.LittleEndian.Uint16(b.count[2*(r0+i):]); int(c) < len(logCounts) {
				x = logCounts[c]
			} else {
				x = float32(math.Log(float64(c)))
			}
		}
		if b.bias != nil {
			x += math.Float32frombits(binary.LittleEndian.Uint32(b.bias[4*(r0+i):]))
		}
		s.terms.Add[i] = x
	}
}

// see computes which query sees which row.
func (s *scorer) see(r0, n int) bool {
	all := uint32(1<<uint(n) - 1)
	if s.p.Pos == nil {
		for i := range s.seen {
			s.seen[i] = all
		}
		return len(s.seen) > 0
	}
	least, most := s.positions(r0, n)
	var any uint32
	for i, q := range s.qs {
		at, window := s.p.Pos[q], s.p.Window
		var mask uint32
		if at >= most && (window == 0 || at-least < window) {
			mask = all
		} else if at >= least {
			s.fillPositions(r0, n)
			for r, pos := range s.pos[:n] {
				if d := at - pos; d >= 0 && (window == 0 || d < window) {
					mask |= 1 << r
				}
			}
		}
		s.seen[i] = mask
		any |= mask
	}
	return any != 0
}

// positions returns the first and the last position of rows [r0, r0+n).
func (s *scorer) positions(r0, n int) (least, most int64) {
	b := &s.blk
	if b.pos == nil {
		return b.Base + int64(r0), b.Base + int64(r0+n-1)
	}
	lo, hi := attend.Span16(b.pos[2*r0 : 2*(r0+n)])
	return b.Base + int64(lo), b.Base + int64(hi)
}

func (s *scorer) fillPositions(r0, n int) {
	b := &s.blk
	for i := range n {
		s.pos[i] = b.Base + int64(r0+i)
		if b.pos != nil {
			s.pos[i] = b.Base + int64(binary.LittleEndian.Uint16(b.pos[2*(r0+i):]))
		}
	}
}

// nextRun finds the next consecutive queries from index i on that see a row, and computes their
// inner products: heads [a, b) of the current ones. It returns the index after them. If there are
// none, a = b.
func (s *scorer) nextRun(i int) (next, a, b int) {
	for i < len(s.qs) && s.seen[i] == 0 {
		i++
	}
	if i == len(s.qs) {
		return i, 0, 0
	}
	end := i + 1
	for end < len(s.qs) && s.seen[end] != 0 && (s.local || s.qs[end] == s.qs[end-1]+1) {
		end++
	}
	p := s.p
	for j := i; j < end; j++ {
		for h := range p.Group {
			s.heads.Masks[j*p.Group+h] = s.seen[j]
		}
	}
	from := i
	if !s.local {
		from = int(s.qs[i])
	}
	a, b = i*p.Group, end*p.Group
	from *= p.Group
	if dots := s.heads.Dots[a*tileRows:]; s.lookUp {
		s.dotTables(dots, a, b)
	} else if s.direct {
		p.kern.DotPlanes(dots, s.cut[from*p.cutBytes():], b-a, s.blk.K.Coding.Format, s.blk.k,
			int(s.blk.Rows), s.r0, s.n)
	} else if s.bytes {
		p.kern.DotBytes(dots, s.cut[from*p.cutBytes():], b-a, s.kb, p.HeadDim, s.n)
	} else {
		p.kern.Dots(dots, s.vecs[from*p.padK:], b-a, s.layout, s.kt, p.padK, s.n)
	}
	if p.Softcap > 0 {
		s.cap(a, b)
	}
	return end, a, b
}

// tableHeads is the number of heads whose tables are used at a time: they fill the first-level
// cache. tableRows is the shortest list for which filling tables pays.
const (
	tableHeads = 4
	tableRows  = 256
)

// dotTables looks up the inner products of the current heads [a, b).
func (s *scorer) dotTables(dots []float32, a, b int) {
	p, blk := s.p, &s.blk
	size := attend.TableFloats(p.HeadDim)
	if !s.hasTables {
		s.hasTables = true
		s.tables = grow(s.tables, len(s.qs)*p.Group*size)
		for i := range len(s.qs) * p.Group {
			at := (int(s.qs[0])*p.Group + i) * p.padK
			attend.FillTables(s.tables[i*size:(i+1)*size], s.vecs[at:at+p.HeadDim])
		}
	}
	attend.DotTables(dots, s.tables[a*size:], b-a, blk.K.Coding, blk.k, int(blk.Rows), p.HeadDim, s.r0,
		s.n)
}

// cap turns inner products into capped scores.
func (s *scorer) cap(a, b int) {
	softcap := float64(s.p.Softcap)
	for h := a; h < b; h++ {
		dots := s.heads.Dots[h*tileRows:][:s.n]
		for r := range dots {
			x := float64(dots[r]) * float64(s.mul[r])
			dots[r] = float32(softcap * math.Tanh(x/softcap))
		}
	}
}
