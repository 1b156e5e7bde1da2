// SPDX-License-Identifier: Apache-2.0

package llamastate_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/quant"
)

// example is a state and its model.
type example struct {
	m *made
	f llamastate.Facts
}

// sorted returns states in one order.
func sorted() (all []example) {
	m := states()
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, m[name])
	}
	return all
}

// states are the kinds of states that tests run over: both layouts of V, types, one and two caches.
func states() map[string]example {
	type c = example
	pairs := plain(16)
	pairs.Interleaved = true
	session, buffer := plainState(16, 1, 1, true), plainState(16, 1, 1, false)
	session.kind, buffer.kind = llamastate.Session, llamastate.Buffer
	late := windowedState(16, 1, 1, false) // after tokens were taken out in front
	for i := range late.caches {
		for k := range late.caches[i].pos {
			late.caches[i].pos[k] += 1000
		}
	}
	gap := plainState(16, 1, 1, false)
	for k := 10; k < 21; k++ {
		gap.caches[0].pos[k] += 5
	}
	return map[string]c{
		"f16":          {plainState(16, 1, 1, false), plain(16)},
		"f16-trans":    {plainState(16, 1, 1, true), plain(16)},
		"f16-pairs":    {plainState(16, 1, 1, true), pairs},
		"f32":          {plainState(16, 0, 0, true), plain(16)},
		"bf16":         {plainState(16, 30, 30, false), plain(16)},
		"mixed":        {plainState(32, 1, 8, false), plain(32)},
		"q8_0":         {plainState(64, 8, 8, false), plain(64)},
		"q4_0":         {plainState(128, 2, 2, false), plain(128)},
		"q8_0-small":   {plainState(32, 8, 8, false), plain(32)},
		"window":       {windowedState(16, 1, 1, false), windowed(16)},
		"window-trans": {windowedState(16, 1, 1, true), windowed(16)},
		"window-q8_0":  {windowedState(64, 8, 8, false), windowed(64)},
		"window-late":  {late, windowed(16)},
		"gap":          {gap, plain(16)},
		"session":      {session, plain(16)},
		"buffer":       {buffer, plain(16)},
	}
}

// Rows restore to the same bytes, whatever the model.
func TestRows_SameBytes(t *testing.T) {
	for name, c := range states() {
		t.Run(name, func(t *testing.T) {
			raw := c.m.build(t)
			s := open(t, raw)
			src := through(t, func(w *atomicfile.Scratch) error { return s.Rows(context.Background(), w) })
			require.True(t, bytes.Equal(raw, restored(t, src)))
		})
	}
}

// A capture of plain types restores to the same bytes; one of quantized rows to rows that decode to nearly the same.
func TestCapture_Restores(t *testing.T) {
	for name, c := range states() {
		t.Run(name, func(t *testing.T) {
			raw := c.m.build(t)
			got := restored(t, captured(t, open(t, raw), c.f))
			require.Len(t, got, len(raw))
			if c.m.caches[0].vType != 8 && c.m.caches[0].vType != 2 {
				require.True(t, bytes.Equal(raw, got))
				return
			}
			a, b := values(t, open(t, raw), c.f), values(t, open(t, got), c.f)
			// Codes are made once more: a value moves by rounding to f16 and by half a step of its group at most, which
			// is 1/254 of the largest value with 8 bits and 1/16 with 4.
			limit := map[int32]float64{8: 1e-4, 2: 2e-2}[c.m.caches[0].vType]
			require.Less(t, nmse(a, b), limit)
		})
	}
}

// values returns all values of K and V of a capture of the state.
func values(t testing.TB, s *llamastate.State, f llamastate.Facts) (all []float32) {
	src := captured(t, s, f)
	for _, n := range src.Info().Layers {
		for _, p := range []capture.Part{capture.K, capture.V} {
			all = append(all, rowsOf(t, src, n, p)...)
		}
	}
	return all
}

func rowsOf(t testing.TB, src *capture.Source, layer int, p capture.Part) (all []float32) {
	x, ok := src.KV(layer, p)
	require.True(t, ok)
	for h := range x.Heads() {
		row := make([]float32, x.Rows()*x.Dim())
		require.NoError(t, x.ReadF32(h, 0, x.Rows(), row))
		all = append(all, row...)
	}
	return all
}

func nmse(a, b []float32) float64 {
	var off, sum float64
	for i := range a {
		d := float64(a[i] - b[i])
		off, sum = off+d*d, sum+float64(a[i]*a[i])
	}
	return off / sum
}

// What a capture holds is what the cells hold, in the order of tokens, heads apart.
func TestCapture_Rows(t *testing.T) {
	m := windowedState(16, 0, 0, true)
	src := captured(t, open(t, m.build(t)), windowed(16))
	require.Equal(t, 21, src.Info().Tokens)
	for layer, at := range []struct{ cache, layer int }{{0, 0}, {1, 0}, {0, 1}, {1, 1}} {
		c := m.caches[at.cache]
		for p, rows := range map[capture.Part][][]float32{capture.K: c.k[at.layer], capture.V: c.v[at.layer]} {
			want := make([]float32, 2*21*16)
			for i, pos := range c.pos {
				for h := range 2 {
					copy(want[(h*21+int(pos))*16:], rows[i][h*16:(h+1)*16])
				}
			}
			require.Equal(t, want, rowsOf(t, src, layer, p), "layer %d %s", layer, p)
		}
	}
	ids := make([]int32, 21)
	require.NoError(t, src.ReadTokens(false, 0, ids))
	require.Equal(t, m.tokens, ids)
}

// Pairs of neighbours become halves: RoPE of the capture's layout turns what llama.cpp's does.
func TestCapture_Pairs(t *testing.T) {
	f := plain(16)
	f.Interleaved = true
	m := plainState(16, 0, 0, false)
	src := captured(t, open(t, m.build(t)), f)
	got := rowsOf(t, src, 0, capture.K)
	for i, v := range m.caches[0].k[0][3][:16] {
		require.Equal(t, v, got[3*16+i%2*8+i/2], i)
	}
}

// A rotation of quantized rows is undone: the capture has what was turned.
func TestCapture_Turned(t *testing.T) {
	for _, typ := range []int32{8, 2} {
		m := plainState(128, typ, typ, false)
		want := [2][]float32{}
		for side, x := range [][][][]float32{m.caches[0].k, m.caches[0].v} {
			for h := range 2 {
				for _, row := range x[0] {
					want[side] = append(want[side], row[h*128:(h+1)*128]...)
				}
			}
			for _, rows := range x {
				for _, row := range rows {
					for h := range 2 {
						head := row[h*128 : (h+1)*128]
						copy(head, hadamard(head, []int{128, 64}[side])) // K by all of head_dim, V by 64
					}
				}
			}
		}
		src := captured(t, open(t, m.build(t)), plain(128))
		limit := map[int32]float64{8: 1e-4, 2: 1e-2}[typ]
		require.Less(t, nmse(want[0], rowsOf(t, src, 0, capture.K)), limit)
		require.Less(t, nmse(want[1], rowsOf(t, src, 0, capture.V)), limit)
	}
}

// hadamard multiplies pieces of n values with the matrix (-1)^popcount(i&j) / sqrt(n).
func hadamard(x []float32, n int) []float32 {
	out := make([]float32, len(x))
	for at := 0; at < len(x); at += n {
		for i := range n {
			var sum float64
			for j := range n {
				sign := 1.0
				for b := i & j; b > 0; b &= b - 1 {
					sign = -sign
				}
				sum += sign * float64(x[at+j])
			}
			out[at+i] = float32(sum / math.Sqrt(float64(n)))
		}
	}
	return out
}

func TestInfo(t *testing.T) {
	i := open(t, windowedState(16, 1, 1, true).build(t)).Info()
	require.Equal(t, llamastate.Info{Kind: llamastate.Sequence, Tokens: 21, Caches: []llamastate.CacheInfo{
		{21, 2, "f16", "f16", 32, 32, true, 0, 20}, {9, 2, "f16", "f16", 32, 32, true, 12, 20}}}, i)
	m := plainState(16, 1, 1, true)
	m.kind = llamastate.Session
	require.Equal(t, "llama", open(t, m.build(t)).Info().Arch)
}

// Other versions and kinds are refused by name and number.
func TestOpen_Refuses(t *testing.T) {
	base := plainState(16, 1, 1, false).build(t)
	at := func(off int, v uint32) []byte {
		b := bytes.Clone(base)
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	cells := 12 + 4*21 + 8 // of the second stream
	layers := cells + 4 + 12*21
	for name, c := range map[string]struct {
		raw  []byte
		want error
		text string
	}{
		"older":        {at(4, 2), quant.ErrVersion, "version 2 of what llama_state_seq_save_file writes, this version of kvist reads 3"},
		"newer":        {at(4, 4), quant.ErrVersion, "version 4"},
		"magic":        {at(0, 0x46554747), quant.ErrUnsupported, "want a sequence or session"},
		"tokens":       {at(8, 1<<30), quant.ErrCorrupt, "missing at the end"},
		"streams":      {at(12+4*21, 0), quant.ErrCorrupt, "number of streams is 0"},
		"owners":       {at(cells+8, 0), quant.ErrCorrupt, "M-RoPE"},
		"many cells":   {at(cells, 1<<30), quant.ErrCorrupt, "missing at the end"},
		"transposed":   {at(layers, 2), quant.ErrCorrupt, "flag of transposed V is 2"},
		"layers":       {at(layers+4, 1<<13), quant.ErrCorrupt, "missing at the end"},
		"type":         {at(layers+8, 6), quant.ErrUnsupported, "a cache of q5_0, want f16"},
		"unknown type": {at(layers+8, 77), quant.ErrCorrupt, "element type 77"},
		"row":          {at(layers+12, 63), quant.ErrCorrupt, "rows of 63 bytes of f16"},
		"huge row":     {at(layers+16, 1<<31), quant.ErrCorrupt, "up to"},
		"behind":       {append(append(bytes.Clone(base), base[12+4*21:]...), 1, 0, 0, 0), quant.ErrUnsupported, "recurrent"},
		"no cells":     {base[: 12+4*21 : 12+4*21], quant.ErrUnsupported, "without cells"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := llamastate.Open("x", bytes.NewReader(c.raw), int64(len(c.raw)), llamastate.Limits{})
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
			var file *llamastate.FileError
			require.ErrorAs(t, err, &file)
		})
	}
	_, err := llamastate.Open("x", bytes.NewReader(base), int64(len(base)), llamastate.Limits{TotalBytes: 100})
	require.ErrorIs(t, err, quant.ErrTooLarge)
}

// A file that ends early is never taken for a whole one.
func TestOpen_Truncated(t *testing.T) {
	raw := windowedState(16, 1, 1, true).build(t)
	ends := 0
	for n := range raw {
		_, err := llamastate.Open("x", bytes.NewReader(raw[:n]), int64(n), llamastate.Limits{})
		if err == nil {
			ends++ // behind the first cache, as a state of one has it
			continue
		}
		require.Condition(t, func() bool { return category(err) }, "%d: %v", n, err)
	}
	require.Equal(t, 1, ends)
}

// States that captures cannot hold, and models that do not fit, are refused by what is wrong.
func TestCapture_Refuses(t *testing.T) {
	part := windowedState(16, 1, 1, false)
	part.caches[1].pos[2] = 3 // what was there is missing
	twice := plainState(16, 1, 1, false)
	twice.caches[0].pos[5] = 4
	for name, c := range map[string]struct {
		m    *made
		f    llamastate.Facts
		want error
		text string
	}{
		"layers":  {plainState(16, 1, 1, false), windowed(16), quant.ErrShape, "caches of [2] layers, the model has 4"},
		"width":   {plainState(32, 1, 1, false), plain(16), quant.ErrShape, "rows of 64 and 64 values"},
		"windows": {windowedState(16, 1, 1, false), plain(16), quant.ErrShape, "caches of [2 2] layers"},
		"part":    {part, windowed(16), quant.ErrUnsupported, "no cell at position 18"},
		"twice":   {twice, plain(16), quant.ErrUnsupported, "two cells of layer 0 at position 4"},
		"no facts": {plainState(16, 1, 1, false), llamastate.Facts{}, quant.ErrShape,
			"0 layers"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, c.m.build(t))
			w, err := atomicfile.NewScratch()
			require.NoError(t, err)
			defer w.Close()
			err = s.Capture(context.Background(), w, c.f, nil)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}

// changed is a capture with one tensor changed.
func changed(t testing.TB, src *capture.Source, name string, change func(b []byte) []byte) *capture.Source {
	return through(t, func(w *atomicfile.Scratch) error {
		data := map[string][]byte{}
		var decls []capture.Decl
		for _, info := range src.Tensors() {
			b := make([]byte, info.Bytes)
			require.NoError(t, src.ReadAt(info.Name, 0, b))
			if info.Name == name {
				b = change(b)
				info.Shape = []int64{int64(len(b))}
			}
			data[info.Name], decls = b, append(decls, info.Decl)
		}
		out, err := capture.NewWriter(w, decls, src.Info().Metadata)
		require.NoError(t, err)
		for name, b := range data {
			require.NoError(t, out.WriteAt(name, 0, b))
		}
		return out.Close()
	})
}

// Forged frames are refused, whatever they say of the rows beside them.
func TestRestore_Refuses(t *testing.T) {
	src := captured(t, open(t, windowedState(16, 1, 1, true).build(t)), windowed(16))
	frame := func(off int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[off:], v)
			return b
		}
	}
	cells := 16 + 12 + 8 // behind its header, and tokens are apart
	for i, c := range []struct {
		tensor string
		change func(b []byte) []byte
		want   error
		text   string
	}{
		{llamastate.NameFrame, func(b []byte) []byte { return b[:10] }, quant.ErrCorrupt, "does not begin"},
		{llamastate.NameFrame, frame(0, 1), quant.ErrCorrupt, "does not begin"},
		{llamastate.NameFrame, frame(4, 8), quant.ErrVersion, "flags"},
		{llamastate.NameFrame, frame(4, 5), quant.ErrCorrupt, "is not F16 of"},
		{llamastate.NameFrame, frame(8, 12), quant.ErrCorrupt, "a rotation of 12"},
		{llamastate.NameFrame, frame(12, 1<<20), quant.ErrCorrupt, "a rotation of"},
		{llamastate.NameFrame, frame(24, 22), quant.ErrCorrupt, "a list of 22 tokens"},
		{llamastate.NameFrame, frame(cells, 20), quant.ErrCorrupt, ""},
		{llamastate.NameFrame, frame(cells+4, 500), quant.ErrUnsupported, "no cell at position 500"},
		{llamastate.NameFrame, func(b []byte) []byte { return b[:len(b)-1] }, quant.ErrCorrupt, "missing"},
		{llamastate.NameEdge, func(b []byte) []byte { return b[:3] }, quant.ErrCorrupt, "3 bytes, want"},
	} {
		_, err := llamastate.Restore(context.Background(), changed(t, src, c.tensor, c.change), io.Discard)
		require.ErrorIs(t, err, c.want, "case %d", i)
		require.ErrorContains(t, err, c.text, "case %d", i)
	}
	plain := through(t, func(w *atomicfile.Scratch) error {
		out, err := capture.NewWriter(w, []capture.Decl{{Name: "x", DTypeName: "F32", Shape: []int64{1, 2}}}, nil)
		require.NoError(t, err)
		require.NoError(t, out.WriteAt("x", 0, make([]byte, 8)))
		return out.Close()
	})
	_, err := llamastate.Restore(context.Background(), plain, io.Discard)
	require.ErrorIs(t, err, quant.ErrUnsupported)
}

// Codes that the type does not have are refused.
func TestRestore_Codes(t *testing.T) {
	s := open(t, plainState(64, 8, 8, false).build(t))
	src := through(t, func(w *atomicfile.Scratch) error { return s.Rows(context.Background(), w) })
	for _, bad := range []float32{128, 0.5, float32(math.NaN()), float32(math.Inf(-1))} {
		out := through(t, func(w *atomicfile.Scratch) error {
			copied, err := capture.NewWriter(w, decls(src), src.Info().Metadata)
			require.NoError(t, err)
			for _, info := range src.Tensors() {
				b := make([]byte, info.Bytes)
				require.NoError(t, src.ReadAt(info.Name, 0, b))
				if info.Name == "llama.0.0.1.v.codes" {
					binary.LittleEndian.PutUint16(b[6:], quant.F32ToF16(bad))
				}
				require.NoError(t, copied.WriteAt(info.Name, 0, b))
			}
			return copied.Close()
		})
		_, err := llamastate.Restore(context.Background(), out, io.Discard)
		require.ErrorIs(t, err, quant.ErrCorrupt)
		require.ErrorContains(t, err, fmt.Sprintf("code %v of q8_0", bad))
	}
}

func decls(src *capture.Source) (all []capture.Decl) {
	for _, info := range src.Tensors() {
		all = append(all, info.Decl)
	}
	return all
}
