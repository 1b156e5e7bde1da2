// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"encoding/binary"
	"io"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// Limits bound what a file may ask of its reader. A zero field takes its default. A file that exceeds one is
// refused with quant.ErrTooLarge.
type Limits struct {
	TotalBytes int64 // bytes of the file; default 1 << 46 (64 TiB)
}

const defaultTotalBytes = 1 << 46

// State is an open state. Its elements are read on request; what is in memory is 16 bytes a cell and 4 a token.
type State struct {
	name  string
	src   io.ReaderAt
	state state
	frame []byte // all bytes that are no elements
}

// Info describes a state.
type Info struct {
	Kind   Kind
	Arch   string // of a Session: the architecture, as GGUF names it; else ""
	Tokens int    // of the token list; a Buffer has none
	Caches []CacheInfo
}

// CacheInfo describes what one cache of the context wrote. A model with sliding windows has two: of the layers
// that see everything, and of the others.
type CacheInfo struct {
	Cells        int
	Layers       int
	KType, VType string // ggml's names, "" where there are no layers
	KWidth       int    // values of a row of K: kv_heads * head_dim
	VWidth       int
	TransposedV  bool
	First, Last  int32 // least and largest position
}

// Is reports whether a file that starts with head, 4 bytes or more, may be a state.
func Is(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	switch binary.LittleEndian.Uint32(head) {
	case magicSequence, magicSession, magicBuffer:
		return true
	}
	return false
}

// Open reads all of a state but its elements. r must stay open as long as the State is used.
//
// Errors: *FileError; quant.ErrShape for a negative size.
func Open(name string, r io.ReaderAt, size int64, lim Limits) (*State, error) {
	if size < 0 {
		return nil, callErrorf("open %s: size %d is negative", name, size)
	}
	if lim.TotalBytes <= 0 {
		lim.TotalBytes = defaultTotalBytes
	}
	if size > lim.TotalBytes {
		return nil, &FileError{File: name, Section: "file", Offset: -1,
			Err: tooLargef("%d bytes, want at most %d", size, lim.TotalBytes)}
	}
	p := &parser{c: newCursor(r, size)}
	if err := p.parse(); err != nil {
		return nil, &FileError{File: name, Section: p.section, Offset: p.c.off, Err: err}
	}
	return &State{name: name, src: r, state: p.s, frame: p.c.frame}, nil
}

// Info describes the state.
func (s *State) Info() Info {
	i := Info{Kind: s.state.kind, Arch: s.state.arch, Tokens: len(s.state.tokens)}
	for _, c := range s.state.caches {
		var info CacheInfo
		for k, st := range c.streams {
			least, most := slices.Min(st.pos), slices.Max(st.pos)
			if k == 0 {
				info.First, info.Last = least, most
			}
			info.Cells, info.Layers = info.Cells+len(st.pos), len(st.layers)
			info.First, info.Last, info.TransposedV = min(info.First, least), max(info.Last, most), st.vTrans
			if len(st.layers) > 0 {
				l := st.layers[0]
				info.KType, info.VType, info.KWidth, info.VWidth = l.k.typ.name, l.v.typ.name, l.k.width, l.v.width
			}
		}
		i.Caches = append(i.Caches, info)
	}
	return i
}

// Tokens returns the token list. It is shared: do not write it.
func (s *State) Tokens() []int32 { return s.state.tokens }

// Facts are what a state does not say of its model.
type Facts struct {
	// Geometry is that of captures of the model: K in the half-split layout.
	Geometry quant.Geometry
	Model    string // "" where it does not matter
	// Interleaved says that llama.cpp turns pairs of neighbours in K of this model, as GGUF files of llama
	// models want it (model.Config.Interleaved).
	Interleaved bool
	// Plain says that quantized K and V are not rotated, which llama.cpp did before it took up Hadamard
	// rotations, and does under LLAMA_ATTN_ROT_DISABLE. Files do not say. A wrong answer makes larger
	// errors, not a wrong file: what is restored is turned back in the same way.
	Plain bool
}

// fields of the side tensor that takes the frame through a .kvist file.
const (
	// NameFrame and NameEdge are the side tensors, U8, that a capture of a state has.
	NameFrame = "llama.state"
	NameEdge  = "llama.edge"

	frameMagic  = "LST1"
	frameHeader = 16

	flagTokensApart = 1 << 0 // the token list is the tensor "tokens"
	flagInterleaved = 1 << 1
	flagRows        = 1 << 2 // rows as they are stored, without facts of the model
)

// sizes are those of the rotations of quantized K and V, 0 for none.
type sizes struct{ k, v int }

func appendFrame(flags uint32, rot sizes, frame []byte) []byte {
	b := []byte(frameMagic)
	for _, v := range []uint32{flags, uint32(rot.k), uint32(rot.v)} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, frame...)
}
