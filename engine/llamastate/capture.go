// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/kvist-project/kvist/engine/capture"
)

// Capture writes the state as a capture: K with RoPE in half-split layout, V, the token list, and what Restore
// needs to write the state again. Rows keep their type; those of a quantized cache become F16, turned back. queries,
// if not nil, is a capture of the model over the same tokens, whose q are taken over. Tokens that the state has left
// out of layers with a window, because no query behind it sees them, are zeros.
//
// Errors: quant.ErrShape where model or queries do not fit; *FileError; those of w and of ctx.
func (s *State) Capture(ctx context.Context, w io.WriterAt, f Facts, queries *capture.Source) error {
	l, err := newLayout(&s.state, f)
	if err != nil {
		return s.inFile(err)
	}
	c := &captureWriter{ctx: ctx, s: s, l: l, q: queries, tokens: len(s.state.tokens) == len(l.tokens) && !l.uneven}
	if err := c.checkQueries(); err != nil {
		return err
	}
	edge, err := c.edge()
	if err != nil {
		return err
	}
	frame := c.frame()
	meta := capture.KVMetadata(l.geo, f.Model, int64(l.tokens[0]))
	if c.w, err = capture.NewWriter(w, c.declare(len(frame), len(edge)), meta); err != nil {
		return err
	}
	if err := c.sides(frame, edge); err != nil {
		return err
	}
	for n := range l.layers {
		if err := c.layer(n); err != nil {
			return err
		}
	}
	return c.w.Close()
}

// inFile names the file in an error that is not about a place in it.
func (s *State) inFile(err error) error {
	return &FileError{File: s.name, Section: "file", Offset: -1, Err: err}
}

type captureWriter struct {
	ctx    context.Context
	s      *State
	l      *layout
	q      *capture.Source
	w      *capture.Writer
	tokens bool // the token list is one number for each token
}

func (c *captureWriter) checkQueries() error {
	if c.q == nil {
		return nil
	}
	i, g := c.q.Info(), c.l.geo
	a := i.Geometry
	if !i.KV || i.Tokens != len(c.l.tokens) || a.Layers != g.Layers || a.Heads != g.Heads || a.HeadDim != g.HeadDim {
		return callErrorf("queries of %s: %d tokens, %d layers, %d heads of %d; the state has %d, %d, %d of %d", i.Name,
			i.Tokens, a.Layers, a.Heads, a.HeadDim, len(c.l.tokens), g.Layers, g.Heads, g.HeadDim)
	}
	return nil
}

func (c *captureWriter) declare(frame, edge int) (all []capture.Decl) {
	add := func(name, dtype string, shape ...int64) {
		all = append(all, capture.Decl{Name: name, DTypeName: dtype, Shape: shape})
	}
	g, n := c.l.geo, int64(len(c.l.tokens))
	add(NameFrame, "U8", int64(frame))
	if edge > 0 {
		add(NameEdge, "U8", int64(edge))
	}
	if c.tokens {
		add("tokens", "I32", n)
	}
	if c.l.uneven {
		add("positions", "I32", n)
	}
	if shape, _ := capture.KVFrequencies(g); shape != nil {
		add("rope_inv_freq", "F32", shape...)
	}
	for i := range g.Layers {
		add(name(i, "k"), c.l.k.dtype.String(), int64(g.KVHeads), n, int64(g.HeadDim))
		add(name(i, "v"), c.l.v.dtype.String(), int64(g.KVHeads), n, int64(g.HeadDimV))
		if c.q != nil {
			if t, ok := c.q.KV(i, capture.Q); ok {
				add(name(i, "q"), t.DType().String(), int64(g.Heads), n, int64(g.HeadDim))
			}
		}
	}
	return all
}

func name(layer int, part string) string { return fmt.Sprintf("layers.%d.%s", layer, part) }

// frame returns the tensor NameFrame.
func (c *captureWriter) frame() []byte {
	flags, frame := uint32(0), c.s.frame
	if c.tokens {
		flags |= flagTokensApart
		at := c.s.state.tokensAt
		frame = slices.Concat(frame[:at], frame[at+4*len(c.s.state.tokens):])
	}
	if c.l.rotary > 0 {
		flags |= flagInterleaved
	}
	return appendFrame(flags, c.l.turn, frame)
}

// edge returns the tensor NameEdge: the row of K and the row of V, as they are stored, of the last cell that no later
// query sees, for each layer that has one.
func (c *captureWriter) edge() (b []byte, err error) {
	for n, p := range c.l.layers {
		cell := c.l.edge(n)
		if cell < 0 {
			continue
		}
		for _, t := range []*tensor{&p.k, &p.v} {
			r := &reader{s: c.s, st: p.s, t: t, trans: t == &p.v && p.s.vTrans}
			raw, err := r.cells(cell, 1)
			if err != nil {
				return nil, err
			}
			b = append(b, raw...)
		}
	}
	return b, nil
}

func (c *captureWriter) sides(frame, edge []byte) error {
	write := func(name string, data []byte) error { return c.w.WriteAt(name, 0, data) }
	if err := write(NameFrame, frame); err != nil {
		return err
	}
	if len(edge) > 0 {
		if err := write(NameEdge, edge); err != nil {
			return err
		}
	}
	if c.tokens {
		if err := write("tokens", integers(c.s.state.tokens)); err != nil {
			return err
		}
	}
	if c.l.uneven {
		if err := write("positions", integers(c.l.tokens)); err != nil {
			return err
		}
	}
	if _, freqs := capture.KVFrequencies(c.l.geo); freqs != nil {
		b := make([]byte, 4*len(freqs))
		if err := elems[0].encode(b, freqs); err != nil {
			return err
		}
		return write("rope_inv_freq", b)
	}
	return nil
}

func integers(x []int32) []byte {
	var b []byte
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

// layer writes K, V and q of a layer.
func (c *captureWriter) layer(n int) error {
	p, g := c.l.layers[n], c.l.geo
	sides := []struct {
		name  string
		t     *tensor
		dim   int
		trans bool
		turn  int
		halve int
	}{
		{name(n, "k"), &p.k, g.HeadDim, false, c.l.turn.k, c.l.rotary},
		{name(n, "v"), &p.v, g.HeadDimV, p.s.vTrans, c.l.turn.v, 0},
	}
	for _, x := range sides {
		r := &reader{s: c.s, st: p.s, t: x.t, trans: x.trans}
		tmp := make([]float32, x.dim)
		fix := func(head []float32) {
			turn(head, x.turn)
			if x.halve > 0 {
				halves(head, tmp, x.halve)
			}
		}
		if err := c.side(x.name, r, x.dim, fix); err != nil {
			return err
		}
	}
	return c.queries(n)
}

// pieceBytes is about what a piece of a tensor takes in memory.
const pieceBytes = 1 << 20

// side writes a tensor of heads from rows of cells.
func (c *captureWriter) side(name string, r *reader, dim int, fix func(head []float32)) error {
	size := r.t.typ.dtype.Size()
	heads, rowBytes := r.t.width/dim, dim*size
	piece := max(1, pieceBytes/(4*r.t.width))
	row := make([]float32, r.t.width)
	out := make([]byte, piece*rowBytes*heads)
	store := &elem{dtype: r.t.typ.dtype, group: 1, bytes: size}
	for first := 0; first < len(r.st.pos); first += piece {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := min(piece, len(r.st.pos)-first)
		raw, err := r.cells(first, n)
		if err != nil {
			return err
		}
		for i := range n {
			size := len(raw) / n
			if err := r.t.typ.decode(row, raw[i*size:(i+1)*size]); err != nil {
				return c.s.inFile(fmt.Errorf("%s, cell %d: %w", name, first+i, err))
			}
			for h := range heads {
				fix(row[h*dim : (h+1)*dim])
				at := (h*n + i) * rowBytes
				if err := store.encode(out[at:at+rowBytes], row[h*dim:(h+1)*dim]); err != nil {
					return err
				}
			}
		}
		for h := range heads {
			if err := c.runs(name, r.st.pos[first:first+n], h, out[h*n*rowBytes:(h+1)*n*rowBytes]); err != nil {
				return err
			}
		}
	}
	return c.zeros(name, r.st, heads, rowBytes)
}

// runs writes rows of a head to the places of their tokens.
func (c *captureWriter) runs(name string, pos []int32, head int, rows []byte) error {
	size := len(rows) / len(pos)
	for i := 0; i < len(pos); {
		first, k := c.l.index(pos[i]), 1
		for i+k < len(pos) && c.l.index(pos[i+k]) == first+k {
			k++
		}
		at := int64(head*len(c.l.tokens)+first) * int64(size)
		if err := c.w.WriteAt(name, at, rows[i*size:(i+k)*size]); err != nil {
			return err
		}
		i += k
	}
	return nil
}

// zeros writes the rows of tokens that have no cell.
func (c *captureWriter) zeros(name string, st *stream, heads, rowBytes int) error {
	if len(st.pos) == len(c.l.tokens) {
		return nil
	}
	have := make([]bool, len(c.l.tokens))
	for _, pos := range st.pos {
		have[c.l.index(pos)] = true
	}
	none := make([]byte, max(rowBytes, pieceBytes/rowBytes*rowBytes))
	for h := range heads {
		for i := 0; i < len(have); i++ {
			k := i
			for k < len(have) && !have[k] && (k-i+1)*rowBytes <= len(none) {
				k++
			}
			if k == i {
				continue
			}
			at := int64(h*len(have)+i) * int64(rowBytes)
			if err := c.w.WriteAt(name, at, none[:(k-i)*rowBytes]); err != nil {
				return err
			}
			i = k - 1
		}
	}
	return nil
}

// queries copies q of a layer.
func (c *captureWriter) queries(n int) error {
	if c.q == nil {
		return nil
	}
	t, ok := c.q.KV(n, capture.Q)
	if !ok {
		return nil
	}
	rowBytes := t.Dim() * t.DType().Size()
	piece := max(1, pieceBytes/rowBytes)
	buf := make([]byte, piece*rowBytes)
	for h := range t.Heads() {
		for first := 0; first < t.Rows(); first += piece {
			k := min(piece, t.Rows()-first)
			if err := t.Read(h, first, k, buf[:k*rowBytes]); err != nil {
				return err
			}
			at := int64(h*t.Rows()+first) * int64(rowBytes)
			if err := c.w.WriteAt(name(n, "q"), at, buf[:k*rowBytes]); err != nil {
				return err
			}
		}
	}
	return nil
}

// reader reads a tensor cell by cell, however it is stored.
type reader struct {
	s     *State
	st    *stream
	t     *tensor
	trans bool
	buf   []byte
	chans []byte
}

// cells returns the stored rows of n cells. They are valid until the next call.
func (r *reader) cells(first, n int) ([]byte, error) {
	size := r.t.typ.rowBytes(r.t.width)
	r.buf = slices.Grow(r.buf[:0], n*size)[:n*size]
	if !r.trans {
		return r.buf, r.read(r.buf, int64(first)*int64(size))
	}
	e := r.t.typ.bytes
	r.chans = slices.Grow(r.chans[:0], n*e)[:n*e]
	for ch := range r.t.width {
		at := (int64(ch)*int64(len(r.st.pos)) + int64(first)) * int64(e)
		if err := r.read(r.chans, at); err != nil {
			return nil, err
		}
		for i := range n {
			copy(r.buf[i*size+ch*e:i*size+(ch+1)*e], r.chans[i*e:(i+1)*e])
		}
	}
	return r.buf, nil
}

func (r *reader) read(dst []byte, at int64) error {
	if n, err := r.s.src.ReadAt(dst, r.t.off+at); n < len(dst) {
		return &FileError{File: r.s.name, Section: "elements", Offset: r.t.off + at, Err: err}
	}
	return nil
}
