// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"encoding/binary"
	"math"
)

// scorer computes the scores of some queries on tiles of blocks. Attend and Relevance share it.
type scorer struct {
	p  *prepared
	qs []int32 // the queries at work, indices into the batch

	// Queries turned by the offset of the last block that had one, in both bases.
	offset       int32
	hasTurned    bool
	hasTurnedRot bool
	turned       []float32 // [len(qs), group, head_dim]
	turnedRot    []float32
	sin, cos     []float64

	// The tile at work.
	blk   blockView
	vecs  []float32 // where the queries are, in the basis and at the offset of the block
	local bool      // vecs is indexed by place in qs, not by query
	kt    []float32 // [tileRows, head_dim]
	n     int
	masks []uint32          // per query at work: bit r is set where row r is seen
	add   [tileRows]float64 // log(count) + bias
	noise [tileRows]float64 // Scale^2/2 * Noise * row scale^2; times |q|^2 it is subtracted
	dots  [tileRows]float32
	pos   [tileRows]int64
}

var negInf = math.Inf(-1)

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// reset starts work on other queries.
func (s *scorer) reset(p *prepared, qs []int32) {
	s.p, s.qs = p, qs
	s.hasTurned, s.hasTurnedRot = false, false
	s.kt = grow(s.kt, tileRows*p.HeadDim)
	s.masks = grow(s.masks, len(qs))
}

// block starts work on a block.
func (s *scorer) block(blk blockView) {
	s.blk = blk
	rotated := blk.K.Coding.Format.Rotated()
	s.local = blk.Offset != 0 && len(s.p.freqs) > 0
	switch {
	case s.local:
		s.vecs = s.turnedQueries(blk.Offset, rotated)
	case rotated:
		s.vecs = s.p.rotated
	default:
		s.vecs = s.p.Q
	}
}

// turnedQueries returns the queries at work, turned by offset, kept until another offset comes.
func (s *scorer) turnedQueries(offset int32, rotated bool) []float32 {
	p := s.p
	if s.offset != offset {
		s.hasTurned, s.hasTurnedRot = false, false
	}
	s.offset = offset
	size := p.Group * p.HeadDim
	if !s.hasTurned {
		s.hasTurned = true
		s.sin, s.cos = grow(s.sin, len(p.freqs)), grow(s.cos, len(p.freqs))
		sinCos(s.sin, s.cos, p.freqs, offset)
		s.turned = grow(s.turned, len(s.qs)*size)
		for i, q := range s.qs {
			dst := s.turned[i*size : (i+1)*size]
			copy(dst, p.Q[int(q)*size:])
			for h := range p.Group {
				turn(dst[h*p.HeadDim:(h+1)*p.HeadDim], p.Rope.Layout, s.sin, s.cos)
			}
		}
	}
	if !rotated {
		return s.turned
	}
	if !s.hasTurnedRot {
		s.hasTurnedRot = true
		s.turnedRot = grow(s.turnedRot, len(s.turned))
		copy(s.turnedRot, s.turned)
		for i, q := range s.qs {
			rot := p.rotK(int(q))
			for h := i * p.Group; h < (i+1)*p.Group; h++ {
				rot.Forward(s.turnedRot[h*p.HeadDim : (h+1)*p.HeadDim])
			}
		}
	}
	return s.turnedRot
}

// tile readies rows [r0, r0+n) of the block, and reports whether any query sees any of them.
// Nothing is unpacked when none does.
func (s *scorer) tile(r0, n int) bool {
	s.n = n
	if !s.see(r0, n) {
		return false
	}
	b := &s.blk
	unpackRows(s.kt, b.K.Coding, b.k, int(b.Rows), s.p.HeadDim, r0, n)
	half := 0.5 * float64(s.p.Scale) * float64(s.p.Scale) * float64(b.Noise)
	for i := range n {
		s.add[i], s.noise[i] = 0, 0
		if b.count != nil {
			if c := binary.LittleEndian.Uint16(b.count[2*(r0+i):]); c != 1 {
				s.add[i] = math.Log(float64(c))
			}
		}
		if b.bias != nil {
			bits := binary.LittleEndian.Uint32(b.bias[4*(r0+i):])
			s.add[i] += float64(math.Float32frombits(bits))
		}
		if half != 0 {
			scale := float64(rowScale(b.K.Coding, b.k, int(b.Rows), s.p.HeadDim, r0+i))
			s.noise[i] = half * scale * scale
		}
	}
	return true
}

// see fills the masks.
func (s *scorer) see(r0, n int) bool {
	all := uint32(1<<uint(n) - 1)
	if s.p.Pos == nil {
		for i := range s.masks {
			s.masks[i] = all
		}
		return len(s.masks) > 0
	}
	b := &s.blk
	for i := range n {
		s.pos[i] = b.Base + int64(r0+i)
		if b.pos != nil {
			s.pos[i] = b.Base + int64(binary.LittleEndian.Uint16(b.pos[2*(r0+i):]))
		}
	}
	var any uint32
	for i, q := range s.qs {
		var mask uint32
		at, window := s.p.Pos[q], s.p.Window
		for r, pos := range s.pos[:n] {
			if d := at - pos; d >= 0 && (window == 0 || d < window) {
				mask |= 1 << r
			}
		}
		s.masks[i] = mask
		any |= mask
	}
	return any != 0
}

// scores writes the scores of head h of the i-th query at work on the rows of the tile, -Inf
// where a row is not seen, and returns the largest. ok is false when the query sees no row.
func (s *scorer) scores(dst *[tileRows]float64, i, h int) (top float64, ok bool) {
	mask := s.masks[i]
	if mask == 0 {
		return negInf, false
	}
	p, dim := s.p, s.p.HeadDim
	head := int(s.qs[i])*p.Group + h
	at := head * dim
	if s.local {
		at = (i*p.Group + h) * dim
	}
	dotRows(&s.dots, s.vecs[at:at+dim], s.kt, s.n)
	scale, softcap, energy := float64(p.Scale), float64(p.Softcap), p.energy[head]
	top = negInf
	for r := range s.n {
		if mask>>r&1 == 0 {
			dst[r] = negInf
			continue
		}
		x := float64(s.dots[r]) * scale
		if softcap > 0 {
			x = softcap * math.Tanh(x/softcap)
		}
		x += s.add[r] - energy*s.noise[r]
		dst[r] = x
		if x > top {
			top = x
		}
	}
	return top, true
}

// dotRows writes <q, row r of k> for the first n rows, four rows at a time so that the adds of
// one do not wait for each other. Sums are float32 in ascending order of components.
func dotRows(dst *[tileRows]float32, q, k []float32, n int) {
	dim := len(q)
	r := 0
	for ; r+4 <= n; r += 4 {
		k0 := k[r*dim:][:dim]
		k1 := k[(r+1)*dim:][:dim]
		k2 := k[(r+2)*dim:][:dim]
		k3 := k[(r+3)*dim:][:dim]
		var s0, s1, s2, s3 float32
		for i, x := range q {
			s0 += x * k0[i]
			s1 += x * k1[i]
			s2 += x * k2[i]
			s3 += x * k3[i]
		}
		dst[r], dst[r+1], dst[r+2], dst[r+3] = s0, s1, s2, s3
	}
	for ; r < n; r++ {
		var sum float32
		for i, y := range k[r*dim:][:dim] {
			sum += q[i] * y
		}
		dst[r] = sum
	}
}
