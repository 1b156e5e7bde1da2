// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// state is what Park and Save write of a sequence beside the rows of its segments.
//
// Its bytes, all little-endian:
//
//	i64 tokens, the most it had, position of the first exact page; u8 1: blocks are to be weighed again
//	u8 1: its tokens are known; then u32 keys, the keys, u32 rest, i32 token ids
//	u32 bytes, opaque state of the server
//	for every layer and kept query: i64 number, -1 for none; else q, f32 scales, lse and energies of outputs
//	u32 segments, each: 32 bytes name, u8 1: others may share it, i64 lo, i64 hi, then the f32 masses of its
//	  blocks
type state struct {
	n, high, left int64
	stale         uint8
	follows       bool
	keys          []key
	rest          []int32
	opaque        []byte
	kept          kept
	segs          []segmentState
}

// segmentState is what a sequence knows of a segment beside its image.
type segmentState struct {
	name   store.Key // of its image
	shared bool      // others may share the image
	coarse bool      // it has rows in archive form; not written
	lo, hi int64
	mass   []float32 // [layers, kv_heads, pages]
}

// stateSize returns the bytes of the state of a sequence.
func stateSize(s *Sequence) int64 {
	c := s.c
	n := int64(8*3+2+4+4+4+4) + int64(len(s.chain.keys)*len(key{})) + 4*prefixTokens + int64(len(s.opaque)) +
		c.keptBytes(c.cfg.KeptQueries)
	for _, g := range s.segs {
		n += 32 + 1 + 16 + 4*int64(len(g.blocks))
	}
	return n
}

func bit(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// appendState appends the state of a sequence to dst. Where images are in a store, named tells which; in a file,
// where named is nil, the keys of its tokens are left out.
func appendState(dst []byte, s *Sequence, named []segmentState) []byte {
	le, x, g := binary.LittleEndian, &s.chain, s.c.geo
	if named == nil {
		x = &chain{}
	}
	for _, v := range []int64{s.n, s.high, s.left} {
		dst = le.AppendUint64(dst, uint64(v))
	}
	dst = append(dst, s.stale, bit(x.follows))
	dst = le.AppendUint32(dst, uint32(len(x.keys)))
	for i := range x.keys {
		dst = append(dst, x.keys[i][:]...)
	}
	dst = le.AppendUint32(dst, uint32(x.n))
	for _, id := range x.rest[:x.n] {
		dst = le.AppendUint32(dst, uint32(id))
	}
	dst = le.AppendUint32(dst, uint32(len(s.opaque)))
	dst = append(dst, s.opaque...)
	k := &s.kept
	floats := func(x []float32) {
		for _, v := range x {
			dst = le.AppendUint32(dst, math.Float32bits(v))
		}
	}
	if k.n == 0 { // it is idle and has none
		for range g.Layers * s.c.cfg.KeptQueries {
			dst = le.AppendUint64(dst, math.MaxUint64)
		}
	}
	for i, e := range k.entry {
		dst = le.AppendUint64(dst, uint64(e))
		if e < 0 {
			continue
		}
		for _, v := range k.q[i*g.Heads*g.HeadDim : (i+1)*g.Heads*g.HeadDim] {
			dst = append(dst, byte(v))
		}
		floats(k.scale[i*g.Heads : (i+1)*g.Heads])
		floats(k.lse[i*g.Heads : (i+1)*g.Heads])
		floats(k.out[i*g.KVHeads : (i+1)*g.KVHeads])
	}
	dst = le.AppendUint32(dst, uint32(len(s.segs)))
	for i, seg := range s.segs {
		var of segmentState
		if named != nil {
			of = named[i]
		}
		dst = append(append(dst, of.name[:]...), bit(of.shared))
		dst = le.AppendUint64(le.AppendUint64(dst, uint64(seg.lo)), uint64(seg.hi()))
		for j := range seg.blocks {
			dst = le.AppendUint32(dst, math.Float32bits(seg.blocks[j].mass))
		}
	}
	return dst
}

// stateReader reads numbers until the bytes end.
type stateReader struct {
	p     []byte
	short bool
}

func (r *stateReader) take(n int) []byte {
	if r.short = r.short || n < 0 || n > len(r.p); r.short {
		return make([]byte, min(max(n, 0), 64))
	}
	x := r.p[:n:n]
	r.p = r.p[n:]
	return x
}

func (r *stateReader) u8() byte     { return r.take(1)[0] }
func (r *stateReader) u32() uint32  { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *stateReader) i64() int64   { return int64(binary.LittleEndian.Uint64(r.take(8))) }
func (r *stateReader) f32() float32 { return math.Float32frombits(r.u32()) }
func (r *stateReader) count(of int) int {
	n := int64(r.u32())
	if n*int64(of) > int64(len(r.p)) {
		r.short, n = true, 0
	}
	return int(n)
}

func (r *stateReader) floats(x []float32) {
	for i := range x {
		x[i] = r.f32()
	}
}

// parseState reads the state of a sequence.
//
// Errors: quant.ErrCorrupt.
func parseState(c *memory, p []byte) (*state, error) {
	bad := func(what string) error { return fmt.Errorf("state of a sequence: %s: %w", what, quant.ErrCorrupt) }
	r, g := &stateReader{p: p}, c.geo
	s := &state{n: r.i64(), high: r.i64(), left: r.i64()}
	flags := r.take(2)
	s.stale, s.follows = flags[0], flags[1] != 0
	s.keys = make([]key, r.count(len(key{})))
	for i := range s.keys {
		copy(s.keys[i][:], r.take(len(key{})))
	}
	s.rest = make([]int32, r.count(4))
	for i := range s.rest {
		s.rest[i] = int32(r.u32())
	}
	s.opaque = r.take(r.count(1))
	switch {
	case r.short:
		return nil, bad("it ends early")
	case flags[0] > repriceParts || flags[1] > 1 || s.n < 0 || s.n > quant.MaxTokens || s.high < s.n || s.high > quant.MaxTokens ||
		s.left < 0 || s.left > s.n+pageTokens:
		return nil, bad("its length")
	case s.follows && int64(len(s.keys))*prefixTokens+int64(len(s.rest)) != s.n || len(s.rest) >= prefixTokens ||
		!s.follows && len(s.keys)+len(s.rest) > 0:
		return nil, bad("its keys")
	}
	s.kept = c.newKept(c.cfg.KeptQueries)
	k := &s.kept
	for i := range k.entry {
		e := r.i64()
		if e < 0 {
			continue
		}
		if int64(i%k.n) != e%int64(k.n) || (e+1)*int64(c.stride) > s.n {
			return nil, bad("a kept query")
		}
		k.entry[i] = e
		for j, v := range r.take(g.Heads * g.HeadDim)[:] {
			if !r.short {
				k.q[i*g.Heads*g.HeadDim+j] = int8(v)
			}
		}
		r.floats(k.scale[i*g.Heads : (i+1)*g.Heads])
		r.floats(k.lse[i*g.Heads : (i+1)*g.Heads])
		r.floats(k.out[i*g.KVHeads : (i+1)*g.KVHeads])
	}
	return s, s.parseSegments(c, r)
}

// parseSegments reads what the sequence knows of its segments.
func (s *state) parseSegments(c *memory, r *stateReader) error {
	bad := func(what string) error { return fmt.Errorf("state of a sequence: %s: %w", what, quant.ErrCorrupt) }
	heads := c.geo.Layers * c.geo.KVHeads
	s.segs = make([]segmentState, r.count(49))
	end := int64(0)
	for i := range s.segs {
		x := &s.segs[i]
		copy(x.name[:], r.take(32))
		x.shared = r.u8() != 0
		x.lo, x.hi = r.i64(), r.i64()
		pages := c.segPages()
		if i == 0 && c.cfg.Sinks > 0 && x.lo == 0 {
			pages = 1
		}
		if 4*heads*pages > len(r.p) {
			r.short = true
		}
		if r.short {
			break
		}
		if x.lo < end || x.hi <= x.lo || x.lo >= s.n {
			return bad("its segments")
		}
		end = x.hi
		x.mass = make([]float32, heads*pages)
		r.floats(x.mass)
	}
	switch {
	case r.short:
		return bad("it ends early")
	case len(r.p) != 0:
		return bad("bytes behind its segments")
	}
	return nil
}

// named returns the segment in memory that has the image of a name, nil if none has.
func named(c *Cache, name store.Key) *segment {
	if name == (store.Key{}) {
		return nil
	}
	for _, n := range c.index.nodes {
		if n.seg.name == name {
			return n.seg
		}
		if n.sinks != nil && n.sinks.name == name {
			return n.sinks
		}
	}
	for _, s := range c.seqs {
		for _, g := range s.segs {
			if g.name == name {
				return g
			}
		}
	}
	return nil
}

// restore gives a sequence that has its segments the rest of its state.
func (x *state) restore(s *Sequence, salt []byte) error {
	c := s.c
	if err := s.setState(x.opaque); err != nil {
		return err
	}
	s.n, s.high, s.left, s.stale, s.kept = x.n, x.high, x.left, x.stale, x.kept
	if !x.follows {
		return nil
	}
	y := chain{follows: true, root: c.cfg.rootKey(salt), keys: x.keys, n: len(x.rest)}
	copy(y.rest[:], x.rest)
	if err := s.follow(y); err != nil {
		return err
	}
	s.enlist()
	return nil
}
