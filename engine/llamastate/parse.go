// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// What llama.cpp writes in front of a state. The versions are those of llama.cpp's LLAMA_STATE_SEQ_VERSION and
// LLAMA_SESSION_VERSION; another one may mean another layout, so it is refused.
const (
	magicSequence   = 0x67677371 // "ggsq": llama_state_seq_save_file, slots of llama-server
	magicSession    = 0x6767736e // "ggsn": llama_state_save_file
	magicBuffer     = 0xaf143cd8 // llama_state_seq_get_data
	versionSequence = 3
	versionSession  = 10
)

// Bounds of llama.cpp, and of sense.
const (
	maxStreams = 256 // LLAMA_MAX_SEQ
	maxCaches  = 2   // one, or a full one and one of sliding windows
	maxWidth   = 1 << 24
	maxArch    = 64
)

// Kind says what wrote a state.
type Kind uint8

// The kinds.
const (
	Sequence Kind = 1 + iota // llama_state_seq_save_file, and llama-server's slots
	Session                  // llama_state_save_file: all sequences of a context
	Buffer                   // llama_state_seq_get_data
)

// String names the function of llama.cpp.
func (k Kind) String() string {
	switch k {
	case Sequence:
		return "llama_state_seq_save_file"
	case Session:
		return "llama_state_save_file"
	case Buffer:
		return "llama_state_seq_get_data"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// state is a parsed frame.
type state struct {
	kind     Kind
	arch     string // of a session
	tokens   []int32
	tokensAt int // of the frame: where the tokens stand
	caches   []*cache
}

// cache is the part of a state that one cache of a context wrote.
type cache struct {
	streams []*stream // those with cells
}

// stream holds the cells of a stream. llama.cpp keeps sequences in streams of their own unless it was told to
// share one.
type stream struct {
	pos    []int32
	owners bool // some cell belongs to several sequences, or not all to the same one
	seq    int32
	vTrans bool
	layers []layer
}

type layer struct{ k, v tensor }

// tensor is where the elements of one side of a layer stand.
type tensor struct {
	typ     *elem
	width   int   // values of a cell
	off     int64 // of the file
	frameAt int   // of the frame: elements follow this many bytes of it
}

func (t *tensor) bytes(cells int) int64 { return int64(cells) * int64(t.typ.rowBytes(t.width)) }

// parser reads a state; section is what it is at.
type parser struct {
	c       *cursor
	section string
	s       state
}

func (p *parser) parse() error {
	p.section = "header"
	if err := p.header(); err != nil {
		return err
	}
	for n := 0; p.c.off < p.c.size; n++ {
		if n == maxCaches {
			return unsupportedf("%d bytes behind the caches: a state of another kind of memory, recurrent or of "+
				"attention that this version does not know", p.c.size-p.c.off)
		}
		if err := p.cache(n); err != nil {
			return err
		}
	}
	p.section = "file"
	for _, c := range p.s.caches {
		for _, s := range c.streams {
			if len(s.pos) > 0 {
				return nil
			}
		}
	}
	return unsupportedf("a state without cells: there is nothing to compress")
}

func (p *parser) header() error {
	magic, err := p.c.u32()
	if err != nil {
		return err
	}
	switch magic {
	case magicBuffer:
		p.s.kind = Buffer
		p.s.tokensAt = len(p.c.frame)
		_, err := p.c.u32() // the sequence that it was
		return err
	case magicSequence:
		p.s.kind = Sequence
		if err := p.version(versionSequence); err != nil {
			return err
		}
		return p.tokens()
	case magicSession:
		p.s.kind = Session
		if err := p.version(versionSession); err != nil {
			return err
		}
		if err := p.tokens(); err != nil {
			return err
		}
		n, err := p.c.count("length of the architecture's name", 1, maxArch)
		if err != nil {
			return err
		}
		name, err := p.c.take(n)
		p.s.arch = string(name)
		return err
	}
	return unsupportedf("a file that starts with %#x, want a sequence or session that llama.cpp has saved", magic)
}

func (p *parser) version(want uint32) error {
	v, err := p.c.u32()
	if err == nil && v != want {
		return fmt.Errorf("version %d of what %s writes, this version of kvist reads %d: %w", v, p.s.kind, want,
			quant.ErrVersion)
	}
	return err
}

func (p *parser) tokens() error {
	p.section = "tokens"
	n, err := p.c.count("number of tokens", 0, math.MaxInt32)
	if err != nil {
		return err
	}
	p.s.tokensAt = len(p.c.frame)
	if p.c.tokensApart {
		return nil
	}
	if err := p.c.need(4 * int64(n)); err != nil {
		return err
	}
	raw, err := p.c.take(4 * n)
	if err != nil {
		return err
	}
	p.s.tokens = make([]int32, n)
	for i := range p.s.tokens {
		p.s.tokens[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return nil
}

func (p *parser) cache(n int) error {
	p.section = fmt.Sprintf("cache %d", n)
	streams, err := p.c.count("number of streams", 1, maxStreams)
	if err != nil {
		return err
	}
	c := &cache{}
	p.s.caches = append(p.s.caches, c)
	for range streams {
		p.section = fmt.Sprintf("cells of cache %d", n)
		cells, err := p.c.count("number of cells", 0, math.MaxInt32)
		if err != nil {
			return err
		}
		if cells == 0 {
			continue
		}
		s := &stream{}
		c.streams = append(c.streams, s)
		if err := p.cells(s, cells); err != nil {
			return err
		}
		if err := p.layers(s, n); err != nil {
			return err
		}
	}
	return nil
}

// cells reads position and sequences of every cell.
func (p *parser) cells(s *stream, n int) error {
	if err := p.c.need(12 * int64(n)); err != nil {
		return err
	}
	s.pos = make([]int32, n)
	for i := range s.pos {
		b, err := p.c.take(8)
		if err != nil {
			return err
		}
		s.pos[i] = int32(binary.LittleEndian.Uint32(b))
		owners := binary.LittleEndian.Uint32(b[4:])
		if owners < 1 || owners > maxStreams || s.pos[i] < 0 {
			return corruptf("cell %d at position %d is of %d sequences; or it has more fields, as cells of models with "+
				"positions on several axes (M-RoPE), which are not supported", i, s.pos[i], owners)
		}
		for k := range owners {
			seq, err := p.c.u32()
			if err != nil {
				return err
			}
			if i == 0 && k == 0 {
				s.seq = int32(seq)
			}
			s.owners = s.owners || owners > 1 || int32(seq) != s.seq
		}
	}
	return nil
}

// layers reads where the elements of K and V are.
func (p *parser) layers(s *stream, cache int) error {
	p.section = fmt.Sprintf("layers of cache %d", cache)
	trans, err := p.c.count("the flag of transposed V", 0, 1)
	if err != nil {
		return err
	}
	s.vTrans = trans == 1
	n, err := p.c.count("number of layers", 0, quant.MaxLayers)
	if err != nil {
		return err
	}
	if err := p.c.need(12 * int64(n)); err != nil {
		return err
	}
	s.layers = make([]layer, n)
	for i := range s.layers {
		p.section = fmt.Sprintf("K of layer %d of cache %d", i, cache)
		if err := p.rows(s, &s.layers[i].k); err != nil {
			return err
		}
	}
	for i := range s.layers {
		p.section = fmt.Sprintf("V of layer %d of cache %d", i, cache)
		read := p.rows
		if s.vTrans {
			read = p.channels
		}
		if err := read(s, &s.layers[i].v); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) elem(t *tensor) error {
	id, err := p.c.u32()
	if err != nil {
		return err
	}
	t.typ, err = findElem(int32(id))
	return err
}

// rows reads a tensor that is stored cell by cell.
func (p *parser) rows(s *stream, t *tensor) error {
	if err := p.elem(t); err != nil {
		return err
	}
	n, err := p.c.u64()
	if err != nil {
		return err
	}
	size := uint64(t.typ.bytes)
	if n == 0 || n%size != 0 || n/size > maxWidth/uint64(t.typ.group) {
		return corruptf("rows of %d bytes of %s, want a multiple of %d, up to %d values", n, t.typ.name, size, maxWidth)
	}
	t.width = int(n/size) * t.typ.group
	return p.elements(s, t)
}

// channels reads a tensor that is stored channel by channel.
func (p *parser) channels(s *stream, t *tensor) error {
	if err := p.elem(t); err != nil {
		return err
	}
	if t.typ.quantized() {
		return corruptf("transposed V of %s, which has groups along a row", t.typ.name)
	}
	if _, err := p.c.count("size of an element", t.typ.bytes, t.typ.bytes); err != nil {
		return err
	}
	var err error
	if t.width, err = p.c.count("values of a cell", 1, maxWidth); err != nil {
		return err
	}
	return p.elements(s, t)
}

func (p *parser) elements(s *stream, t *tensor) (err error) {
	t.frameAt = len(p.c.frame)
	t.off, err = p.c.skip(t.bytes(len(s.pos)))
	return err
}
