// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"sync"
)

// NumTokenClasses is how many steps tokens of a head can choose from.
const NumTokenClasses = sideSyms

// Params are shared by all records of a file.
type Params struct {
	// Fine is the file's factor on all steps, [1, 2^(1/8)).
	Fine float32
	// Class8 is what a token's class adds to the step of its rows, in eighths of an octave.
	Class8 [NumTokenClasses]int8
	Ropes  Ropes
	// Set holds transforms and tables. With Own they are part of the file; otherwise they are those
	// of the profile that the file names.
	Set *Set
	Own bool
	// Predict has the encoder predict lanes where the set has predictors and that takes fewer bits. Those that
	// decode need them.
	Predict bool
}

// paramsVersion is the version of the parameters and of payloads in transform mode. Version 1 had
// neither shifts of lanes nor rows of coarser steps. Version 3 is version 2 with a rope for each layer,
// and written only where they differ. Version 4 is for files of a profile's predictors, and says itself whether
// ropes differ.
const (
	paramsVersion   = 2
	paramsRopes     = 3
	paramsPredicted = 4
)

// Append appends the parameters, little-endian: u8 version, u8 own, u8 rope layout (0 where ropes differ), u8 0 (in
// version 4: 1 where ropes differ), f32 fine, i8[16] classes, the ropes, and tables and transforms where they are
// the file's own.
func (p *Params) Append(dst []byte) []byte {
	le := binary.LittleEndian
	version, layout, differ := byte(paramsVersion), byte(0), byte(0)
	if p.Ropes.of == nil {
		layout = byte(p.Ropes.Of(0).Layout)
	} else {
		version = paramsRopes
	}
	if p.Predict {
		version, differ = paramsPredicted, byte(b2u(p.Ropes.of != nil))
	}
	dst = append(dst, version, byte(b2u(p.Own)), layout, differ)
	dst = le.AppendUint32(dst, math.Float32bits(p.Fine))
	for _, c := range p.Class8 {
		dst = append(dst, byte(c))
	}
	dst = p.Ropes.append(dst)
	if p.Own {
		dst = p.Set.Append(p.Set.AppendTables(dst))
	}
	return dst
}

// ParseParams reads what Append wrote. Where Own is false the caller sets Set.
//
// Errors: *CorruptError, quant.ErrVersion.
func ParseParams(b []byte) (*Params, error) {
	r := &setReader{b: b}
	v := r.uint(1)
	if r.err == nil && (v < paramsVersion || v > paramsPredicted) {
		return nil, versionf("parameters", v, paramsPredicted)
	}
	p := &Params{Predict: v == paramsPredicted}
	own, layout, differ := r.uint(1), r.uint(1), r.uint(1)
	p.Own = own == 1
	most := uint64(0) // of differ
	switch v {
	case paramsRopes:
		most, differ = 1, differ+1 // it stands as 0
	case paramsPredicted:
		most = 1
	}
	p.Fine = r.float()
	for i, c := range r.take(NumTokenClasses) {
		p.Class8[i] = int8(c)
	}
	if r.err == nil && (own > 1 || p.Own && p.Predict || layout > 2 || layout > 0 && differ == 1 || differ > most ||
		!(p.Fine >= 1 && p.Fine < 2)) {
		r.fail("own %d, layout %d, fine %v", own, layout, p.Fine)
	}
	if differ == 1 {
		p.Ropes.parse(r)
	} else {
		p.Ropes.kinds = []Rope{{Layout: ropeLayout(layout), Freqs: parseFreqs(r)}}
	}
	if r.err != nil {
		return nil, r.err
	}
	if p.Own {
		tables := r.take(1 + tablesBytes)
		if r.err != nil {
			return nil, r.err
		}
		s, err := ParseSet(tables, r.b)
		if err != nil {
			return nil, err
		}
		p.Set = s
	} else if len(r.b) != 0 {
		return nil, corrupt("parameters", -1, -1, r.off, "%d bytes too many", len(r.b))
	}
	return p, nil
}

// Codec codes and decodes records. It may be used by many goroutines at once.
type Codec struct {
	*Params
	c *coder

	work  sync.Pool // *[]float32: the components of a lane
	quick sync.Pool // *levels
	loops sync.Pool // *loop
	turns *LayerTurns

	encode bool
	mu     sync.Mutex
	staged []*coder // see coders
}

// Turns is a Rope that remembers sines and cosines of segments, because those of all layers are at
// the same positions. Many goroutines may use it at once.
type Turns struct {
	rope Rope
	most int // segments that are remembered
	mu   sync.Mutex
	met  []turns
}

// NewTurns returns the turns of a rope.
func NewTurns(r Rope) *Turns { return &Turns{rope: r, most: maxTurns} }

// Undo takes the embedding off rows of K, [len(pos), dim], in place.
func (c *Turns) Undo(rows []float32, dim int, pos []int64) {
	sin, cos := c.angles(pos)
	c.rope.apply(rows, dim, sin, cos, -1)
}

// turns are the sines and cosines of positions that count up from first.
type turns struct {
	first    int64
	n        int
	sin, cos []float32
}

// maxTurns is the number of segments that are remembered. Every layer goes through the same segments,
// so it is better to keep the first ones than to replace them by the latest. Ropes of a codec share
// them.
const maxTurns = 32

// angles returns Rope.angles of positions.
func (c *Turns) angles(pos []int64) (sin, cos []float32) {
	n := len(pos)
	for t, p := range pos {
		if p != pos[0]+int64(t) {
			return c.rope.angles(pos)
		}
	}
	if n == 0 || len(c.rope.Freqs) == 0 {
		return nil, nil
	}
	c.mu.Lock()
	for _, t := range c.met {
		if t.first == pos[0] && t.n >= n {
			c.mu.Unlock()
			return t.sin, t.cos
		}
	}
	c.mu.Unlock()
	sin, cos = c.rope.angles(pos)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.met) < c.most {
		c.met = append(c.met, turns{pos[0], n, sin, cos})
	}
	return sin, cos
}

// NewCodec makes a codec. With encode it prepares for encoding as well.
//
// Errors: quant.ErrShape for a set that does not hang together.
func NewCodec(p *Params, encode bool) (*Codec, error) {
	if p.Set == nil {
		return nil, shapef("parameters without transforms: the file needs its profile")
	}
	if err := p.Set.Tables.validate(); err != nil {
		return nil, err
	}
	if err := p.Set.prepare(encode); err != nil {
		return nil, err
	}
	c := &Codec{Params: p, c: newCoder(p.Set.Tables, encode), encode: encode}
	c.turns = p.Ropes.Turns()
	c.work.New = func() any { return new([]float32) }
	c.quick.New = func() any { return new(levels) }
	return c, nil
}
