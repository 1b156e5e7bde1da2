// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// file is the content of a file, as the tests pass it to the writer.
type file struct {
	h    *Header
	recs []*Record
	aux  []*Aux
}

// intn draws from [0, n), with a seeded generator or rapid.
type intn func(n int) int

func seeded(seed uint64) intn { return rand.New(rand.NewPCG(seed, 1)).IntN }

func (f *file) write(t require.TestingT) []byte {
	var b bytes.Buffer
	w, err := NewWriter(&b, f.h)
	require.NoError(t, err)
	for _, r := range f.recs {
		require.NoError(t, w.WriteRecord(r))
	}
	for _, a := range f.aux {
		require.NoError(t, w.WriteAux(a))
	}
	require.NoError(t, w.Close())
	require.EqualValues(t, b.Len(), w.Size())
	return b.Bytes()
}

func openBytes(b []byte, lim Limits) (*Reader, error) {
	return Open("test.kvist", bytes.NewReader(b), int64(len(b)), lim)
}

// readAll opens b, verifies it and reads everything in it.
func readAll(b []byte, lim Limits) (*file, error) {
	r, err := openBytes(b, lim)
	if err != nil {
		return nil, err
	}
	if err := r.Verify(nil); err != nil {
		return nil, err
	}
	f := &file{h: r.Header()}
	for i := range r.Records() {
		rec, err := r.ReadRecord(i)
		if err != nil {
			return nil, err
		}
		f.recs = append(f.recs, rec)
	}
	infos, err := r.Auxes()
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		a, err := r.ReadAux(info.Name)
		if err != nil {
			return nil, err
		}
		f.aux = append(f.aux, a)
	}
	return f, nil
}

// requireSame compares contents. Empty and nil byte slices are equal.
func requireSame(t require.TestingT, want, got *file) {
	wh, gh := *want.h, *got.h
	wh.Version, gh.Version = 0, 0
	require.Equal(t, wh, gh)
	require.Len(t, got.recs, len(want.recs))
	for i := range want.recs {
		requireSameRecord(t, want.recs[i], got.recs[i])
	}
	require.Len(t, got.aux, len(want.aux))
	for i, a := range want.aux {
		g := got.aux[i]
		require.Equal(t, a.Name, g.Name)
		require.Equal(t, a.DType, g.DType)
		require.True(t, bytes.Equal(a.Data, g.Data), "data of %q", a.Name)
		require.Len(t, g.Shape, len(a.Shape))
		for d := range a.Shape {
			require.Equal(t, a.Shape[d], g.Shape[d])
		}
	}
}

func requireSameRecord(t require.TestingT, w, g *Record) {
	require.Equal(t, w.Layer, g.Layer)
	require.Equal(t, w.Segment, g.Segment)
	require.Len(t, g.Heads, len(w.Heads))
	for hi := range w.Heads {
		require.Len(t, g.Heads[hi].Blocks, len(w.Heads[hi].Blocks))
		require.True(t, bytes.Equal(w.Heads[hi].MeanK, g.Heads[hi].MeanK), "mean of head %d", hi)
		for bi := range w.Heads[hi].Blocks {
			wb, gb := &w.Heads[hi].Blocks[bi], &g.Heads[hi].Blocks[bi]
			require.Equal(t, wb.Level, gb.Level)
			require.Equal(t, wb.K, gb.K)
			require.Equal(t, wb.V, gb.V)
			require.Equal(t, wb.Tokens, gb.Tokens)
			require.Equal(t, wb.Counts, gb.Counts)
			require.Equal(t, wb.Centered, gb.Centered)
			require.True(t, bytes.Equal(wb.KData, gb.KData), "K of head %d block %d", hi, bi)
			require.True(t, bytes.Equal(wb.VData, gb.VData), "V of head %d block %d", hi, bi)
		}
	}
}

// randomFile draws a small file that uses every feature of the format.
func randomFile(in intn) *file {
	h := &Header{Kind: KindCache, SegmentTokens: 1 + in(90), Seed: uint64(in(1 << 30))}
	if in(3) == 0 {
		h.Kind, h.Origin = KindRows, origins[1+in(2)]
		for i := range 1 + in(3) {
			s := Tensor{Name: string(rune('a' + i)), DType: []string{"F32", "F16", "BF16", "F64"}[in(4)]}
			for range in(3) {
				s.Shape = append(s.Shape, int64(in(9)))
			}
			s.Shape = append(s.Shape, int64(32*(1+in(2))))
			h.Tensors = append(h.Tensors, s)
			h.Tokens += s.rows()
		}
	} else {
		randomCache(in, h)
	}
	if in(2) == 0 {
		h.Config, h.Model = "bits=3", "möbius"
		h.Metadata = map[string]string{"format": "kv-capture/1", "": "x", "b": ""}
		h.Profile[in(32)] = 1
	}
	f := &file{h: h}
	for l := range h.Stored() {
		for s := range int(h.Segments(l)) {
			f.recs = append(f.recs, randomRecord(in, h, l, s))
		}
	}
	// Records come in any order.
	for i := range f.recs {
		j := in(i + 1)
		f.recs[i], f.recs[j] = f.recs[j], f.recs[i]
	}
	for i := range in(3) {
		f.aux = append(f.aux, randomAux(in, string(rune('p'+i))))
	}
	return f
}

func randomCache(in intn, h *Header) {
	kv := 1 + in(3)
	h.Geometry = quant.Geometry{
		Layers: 5, Heads: kv * (1 + in(2)), KVHeads: kv,
		HeadDim: 32 * (1 + in(2)), HeadDimV: 32 * (1 + in(2)),
	}
	if in(2) == 0 {
		h.Geometry.Rope = quant.Rope{Layout: quant.RopeHalf, RotaryDim: 4, Theta: 1e4}
		if in(2) == 0 {
			h.Geometry.Rope.InvFreq = []float32{1, 0.25}
		}
	}
	if in(2) == 0 {
		h.Geometry = randomLayers(in, h.Geometry)
	}
	for l := range 5 {
		if in(2) == 0 || (l == 4 && h.Layers == nil) {
			h.Layers = append(h.Layers, l)
		}
	}
	h.Tokens, h.First = int64(in(200)), int64(in(100))
	h.Sinks, h.Window = in(5), in(5)
	h.KType, h.VType = quant.DType(1+in(3)), quant.DType(1+in(3))
	if in(3) == 0 { // segments of different lengths
		for from := int64(0); from < h.Tokens; from += int64(1 + in(h.SegmentTokens)) {
			h.Starts = append(h.Starts, from)
		}
	}
	if in(2) == 0 {
		h.QueryEnergy = make([]float32, len(h.Layers)*kv)
		for i := range h.QueryEnergy {
			h.QueryEnergy[i] = float32(in(1000)) / 7
		}
	}
}

// randomLayers draws layers of up to three kinds.
func randomLayers(in intn, g quant.Geometry) quant.Geometry {
	kinds := []quant.LayerAttention{{Rope: g.Rope}, {Rope: g.Rope, Window: int64(1 + in(100))},
		{Scale: 0.25, Softcap: float64(1 + in(50)), Rope: quant.Rope{Layout: quant.RopeInterleaved,
			RotaryDim: 4, Theta: 1e6, InvFreq: []float32{1, float32(1+in(3)) / 4}}}}
	for range g.Layers {
		g.PerLayer = append(g.PerLayer, kinds[in(len(kinds))])
	}
	return g.Canonical()
}

func randomCoding(in intn) quant.Coding {
	f := quant.Formats()
	c := quant.Coding{Format: f[in(len(f))]}
	if c.Format.Nested() {
		c.Rule = quant.ScaleRule(in(3))
	}
	if c.Format.Nested() || c.Format == quant.U8 {
		c.Scale = quant.ScaleForm(in(2))
	}
	return c
}

func randomRecord(in intn, h *Header, layer, segment int) *Record {
	tokens := h.SegmentLen(layer, segment)
	kDim, vDim := h.Dims(layer)
	rec := &Record{Layer: layer, Segment: segment, Heads: make([]Head, h.KVHeads())}
	for hi := range rec.Heads {
		n := 1 + in(min(20, tokens))
		blocks := make([]Block, n)
		for t := range tokens {
			b := in(n) // scattered
			switch {
			case t < n:
				b = t // no block is empty
			case hi%3 == 1:
				b = t * n / tokens // runs
			case hi%3 == 2:
				b = t % n // even
			}
			blocks[b].Tokens = append(blocks[b].Tokens, uint16(t))
		}
		dropped := false
		for bi := range blocks {
			b := &blocks[bi]
			b.Level = quant.Level(in(4))
			if b.Level == quant.Dropped && dropped {
				b.Level = quant.Full
			}
			if b.Level == quant.Dropped {
				dropped = true
				continue
			}
			if b.Level != quant.Full {
				for left := len(b.Tokens); left > 0; left -= int(b.Counts[len(b.Counts)-1]) {
					b.Counts = append(b.Counts, uint16(1+in(left)))
				}
			}
			b.K = randomCoding(in)
			b.Centered = h.Kind == KindCache && in(3) == 0
			b.KData = payload(in, b.K, b.Rows(), kDim)
			if vDim > 0 {
				b.V = randomCoding(in)
				b.VData = payload(in, b.V, b.Rows(), vDim)
			}
		}
		rec.Heads[hi].Blocks = blocks
		if rec.Heads[hi].Centered() {
			rec.Heads[hi].MeanK = randomMean(in, kDim)
		}
	}
	return rec
}

// randomMean draws a stored mean: any binary16 values but infinities and NaNs.
func randomMean(in intn, dim int) []byte {
	b := make([]byte, frame.MeanBytes(dim))
	for i := range b {
		b[i] = byte(in(256))
		if i%2 == 1 {
			b[i] &= 0xbb
		}
	}
	return b
}

// payload returns bytes that differ from place to place.
func payload(in intn, c quant.Coding, rows, dim int) []byte {
	b := make([]byte, c.PackedBytes(rows, dim))
	seed := byte(in(256))
	for i := range b {
		b[i] = seed ^ byte(i*7) ^ byte(i>>8)
	}
	return b
}

func randomAux(in intn, name string) *Aux {
	dtypes := []string{"U8", "I16", "I32", "F32", "U64", "F64", "BOOL"}
	a := &Aux{Name: name, DType: dtypes[in(len(dtypes))],
		Shape: []int64{int64(in(40)), int64(1 + in(3))}}
	size := dtypeSize(a.DType)
	n := int(a.Shape[0] * a.Shape[1])
	start, step, how := in(1000), in(7)-3, in(3)
	for i := range n {
		v := start
		switch how {
		case 0:
			v += i * step
		case 1:
			v = in(1 << 16)
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(v))
		a.Data = append(a.Data, b[:size]...)
	}
	return a
}

// repair corrects the checksums of b, as far as its lengths lead, so that a test reaches the checks
// after the checksum.
func repair(b []byte) {
	le := binary.LittleEndian
	put := func(s []byte, at int) { le.PutUint32(s[at:], checksum(s, at)) }
	if len(b) < fileHeaderBytes {
		return
	}
	pos := int64(le.Uint32(b[12:]))
	if pos < fileHeaderBytes || pos > int64(len(b)) {
		return
	}
	put(b[:pos], fileHeaderCRCAt)
	if n := int64(len(b)) - trailerSize; n >= 0 {
		put(b[n:], trailerCRCAt)
	}
	for pos+recordHeaderBytes <= int64(len(b)) {
		n, at := int64(0), sideCRCAt
		switch string(b[pos : pos+4]) {
		case markRecord:
			n, at = int64(le.Uint32(b[pos+16:])), recordCRCAt
		case markIndex:
			n = indexEntryBytes * (1 + int64(le.Uint32(b[pos+8:])))
		default:
			n = int64(min(le.Uint64(b[pos+8:]), 1<<40))
		}
		if n < align || n > int64(len(b))-pos || n < int64(at)+4 {
			return
		}
		put(b[pos:pos+n], at)
		pos += n
	}
}

// requireTyped checks that err is a *CorruptError or *RefusedError with a place and one category.
func requireTyped(t testing.TB, err error, what ...any) {
	t.Helper()
	require.Error(t, err, what...)
	var c *CorruptError
	var r *RefusedError
	switch {
	case errors.As(err, &c):
		require.ErrorIs(t, c, quant.ErrCorrupt, what...)
		require.NotEmpty(t, c.Section)
	case errors.As(err, &r):
		n := 0
		for _, e := range []error{quant.ErrVersion, quant.ErrUnsupported, quant.ErrTooLarge} {
			if errors.Is(r, e) {
				n++
			}
		}
		require.Equal(t, 1, n, "%v %v", r, what)
		require.NotEmpty(t, r.Section)
	default:
		require.Fail(t, "untyped error", "%v %v", err, what)
	}
}
