// SPDX-License-Identifier: Apache-2.0

package llamastate_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/quant"
)

// made describes a state as llama.cpp would write it.
type made struct {
	kind   llamastate.Kind
	caches []madeCache
	tokens []int32
}

type madeCache struct {
	pos    []int32
	layers int
	kType  int32
	vType  int32
	trans  bool
	k, v   [][][]float32 // [layers][cells][width]
}

// build writes the bytes, field by field, from the description of the format and not with the package's code.
func (m *made) build(t testing.TB) []byte {
	le := binary.LittleEndian
	var b []byte
	u32 := func(v uint32) { b = le.AppendUint32(b, v) }
	switch m.kind {
	case llamastate.Buffer:
		u32(0xaf143cd8)
		u32(7)
	case llamastate.Sequence:
		u32(0x67677371)
		u32(3)
	case llamastate.Session:
		u32(0x6767736e)
		u32(10)
	}
	if m.kind != llamastate.Buffer {
		u32(uint32(len(m.tokens)))
		for _, id := range m.tokens {
			u32(uint32(id))
		}
	}
	if m.kind == llamastate.Session {
		u32(5)
		b = append(b, "llama"...)
	}
	for _, c := range m.caches {
		u32(2) // streams: one empty
		u32(0)
		u32(uint32(len(c.pos)))
		for _, p := range c.pos {
			u32(uint32(p))
			u32(1)
			u32(7)
		}
		u32(map[bool]uint32{false: 0, true: 1}[c.trans])
		u32(uint32(c.layers))
		for _, rows := range c.k {
			u32(uint32(c.kType))
			b = le.AppendUint64(b, uint64(len(pack(t, c.kType, rows[0]))))
			for _, row := range rows {
				b = append(b, pack(t, c.kType, row)...)
			}
		}
		for _, rows := range c.v {
			u32(uint32(c.vType))
			if !c.trans {
				b = le.AppendUint64(b, uint64(len(pack(t, c.vType, rows[0]))))
				for _, row := range rows {
					b = append(b, pack(t, c.vType, row)...)
				}
				continue
			}
			u32(uint32(len(pack(t, c.vType, rows[0][:1]))))
			u32(uint32(len(rows[0])))
			for ch := range rows[0] {
				for _, row := range rows {
					b = append(b, pack(t, c.vType, row[ch:ch+1])...)
				}
			}
		}
	}
	return b
}

func pack(t testing.TB, typ int32, row []float32) []byte {
	var b []byte
	formats := map[int32]quant.Format{2: quant.GGMLQ4_0, 8: quant.GGMLQ8_0}
	if f, ok := formats[typ]; ok {
		c := quant.Coding{Format: f}
		b = make([]byte, c.PackedBytes(1, len(row)))
		require.NoError(t, quant.Encode(b, c, quant.Rows{Dim: len(row), Data: row}, 0))
		return b
	}
	for _, v := range row {
		switch typ {
		case 0:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		case 1:
			b = binary.LittleEndian.AppendUint16(b, quant.F32ToF16(v))
		case 30:
			b = binary.LittleEndian.AppendUint16(b, quant.F32ToBF16(v))
		}
	}
	return b
}

// random returns rows as layers have them: [layers][cells][width].
func random(rng *rand.Rand, layers, cells, width int) [][][]float32 {
	x := make([][][]float32, layers)
	for l := range x {
		x[l] = make([][]float32, cells)
		for i := range x[l] {
			x[l][i] = make([]float32, width)
			for j := range x[l][i] {
				x[l][i][j] = float32(rng.NormFloat64() * (1 + float64(j%7)))
			}
		}
	}
	return x
}

func span(from, to int32) (all []int32) {
	for p := from; p < to; p++ {
		all = append(all, p)
	}
	return all
}

// plain is a model with one cache; windowed one whose layers 1 and 3 of 4 see 9 tokens.
func plain(headDim int) llamastate.Facts {
	return llamastate.Facts{Model: "test", Geometry: quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: headDim,
		HeadDimV: headDim, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: headDim, Theta: 10000}}}
}

func windowed(headDim int) llamastate.Facts {
	f := plain(headDim)
	f.Geometry.Layers = 4
	for l := range 4 {
		f.Geometry.PerLayer = append(f.Geometry.PerLayer, quant.LayerAttention{Rope: f.Geometry.Rope, Window: int64(l % 2 * 9)})
	}
	f.Geometry.Rope = quant.Rope{}
	f.Geometry = f.Geometry.Canonical()
	return f
}

// plainState is a state of plain.
func plainState(headDim int, kType, vType int32, trans bool) *made {
	rng := rand.New(rand.NewPCG(1, uint64(headDim)))
	w := 2 * headDim
	return &made{llamastate.Sequence, []madeCache{{span(0, 21), 2, kType, vType, trans, random(rng, 2, 21, w),
		random(rng, 2, 21, w)}}, span(100, 121)}
}

// windowedState is a state of windowed: the second cache has the last 9 cells, begun in its middle.
func windowedState(headDim int, kType, vType int32, trans bool) *made {
	m := plainState(headDim, kType, vType, trans)
	rng := rand.New(rand.NewPCG(2, uint64(headDim)))
	pos := append(span(16, 21), span(12, 16)...)
	m.caches = append(m.caches, madeCache{pos, 2, kType, vType, trans, random(rng, 2, 9, 2*headDim), random(rng, 2, 9, 2*headDim)})
	return m
}

func open(t testing.TB, raw []byte) *llamastate.State {
	s, err := llamastate.Open("test", bytes.NewReader(raw), int64(len(raw)), llamastate.Limits{})
	require.NoError(t, err)
	return s
}

// through opens what write writes.
func through(t testing.TB, write func(w *atomicfile.Scratch) error) *capture.Source {
	s, err := atomicfile.NewScratch()
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	require.NoError(t, write(s))
	size, err := s.Seek(0, 2)
	require.NoError(t, err)
	src, err := capture.New("test", s, size, capture.Limits{})
	require.NoError(t, err)
	return src
}

func captured(t testing.TB, s *llamastate.State, f llamastate.Facts) *capture.Source {
	return through(t, func(w *atomicfile.Scratch) error { return s.Capture(context.Background(), w, f, nil) })
}

func restored(t testing.TB, src *capture.Source) []byte {
	var b bytes.Buffer
	n, err := llamastate.Restore(context.Background(), src, &b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	return b.Bytes()
}

func fixture(t testing.TB, name string) []byte {
	raw, err := os.ReadFile("testdata/" + name)
	require.NoError(t, err)
	return raw
}
