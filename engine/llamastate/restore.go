// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// Has reports whether a capture or a file of rows was made from a state, which Restore can write again.
func Has(src *capture.Source) bool {
	_, ok := src.Lookup(NameFrame)
	return ok
}

// maxFrame bounds the frame of a forged file.
const maxFrame = 1 << 30

// Restore writes the state that Capture or Rows has read, from what they wrote or from what came of it through a
// .kvist file. Rows turns into the same bytes; of Capture, frame and tokens do, and elements are what the rows are
// now. It returns the bytes that were written.
//
// Errors: quant.ErrUnsupported where src was not made from a state, or where tokens were dropped that later
// queries see: llama.cpp would attend to them as zeros; *FileError; those of w, src and ctx.
func Restore(ctx context.Context, src *capture.Source, w io.Writer) (int64, error) {
	r := &restorer{ctx: ctx, src: src, w: &counter{w: w}, name: src.Info().Name}
	if err := r.open(); err != nil {
		return 0, err
	}
	if err := r.s.eachTensor(r.tensor); err != nil {
		return r.w.n, err
	}
	return r.w.n, r.frameTo(len(r.frame))
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type restorer struct {
	ctx    context.Context
	src    *capture.Source
	w      *counter
	name   string
	flags  uint32
	frame  []byte
	s      state
	l      *layout // nil for rows
	edge   []byte
	layers map[*layer]int // the model's numbers
	done   int            // of the frame
	edges  []int          // [layers] where the rows of the layer start in edge
}

// open reads the frame and what the rows mean.
func (r *restorer) open() error {
	raw, err := r.side(NameFrame)
	if err != nil {
		return err
	}
	if raw == nil {
		return r.bad(unsupportedf("it was not made from a state of llama.cpp"))
	}
	if len(raw) < frameHeader || string(raw[:4]) != frameMagic {
		return r.bad(corruptf("tensor %q does not begin with %s", NameFrame, frameMagic))
	}
	r.flags = binary.LittleEndian.Uint32(raw[4:])
	rot := sizes{int(binary.LittleEndian.Uint32(raw[8:])), int(binary.LittleEndian.Uint32(raw[12:]))}
	if r.flags > flagTokensApart|flagInterleaved|flagRows {
		return r.bad(fmt.Errorf("frame with flags %#x: %w", r.flags, quant.ErrVersion))
	}
	r.frame = raw[frameHeader:]
	p := &parser{c: newCursor(bytes.NewReader(r.frame), int64(len(r.frame)))}
	p.c.bare, p.c.tokensApart = true, r.flags&flagTokensApart != 0
	if err := p.parse(); err != nil {
		return &FileError{File: r.name, Section: p.section + " of its frame", Offset: -1, Err: err}
	}
	r.s = p.s
	if r.flags&flagRows != 0 {
		return nil
	}
	return r.openKV(rot)
}

func (r *restorer) bad(err error) error {
	return &FileError{File: r.name, Section: "state", Offset: -1, Err: err}
}

// side returns a side tensor of bytes, nil where there is none.
func (r *restorer) side(name string) ([]byte, error) {
	t, ok := r.src.Lookup(name)
	if !ok {
		return nil, nil
	}
	if t.Bytes > maxFrame {
		return nil, r.bad(tooLargef("tensor %q of %d bytes, want at most %d", name, t.Bytes, maxFrame))
	}
	b := make([]byte, t.Bytes)
	return b, r.src.ReadAt(name, 0, b)
}

// openKV lays out a state whose rows are those of a capture.
func (r *restorer) openKV(rot sizes) (err error) {
	i := r.src.Info()
	if !i.KV {
		return r.bad(corruptf("it holds no cache"))
	}
	if r.l, err = newLayout(&r.s, Facts{Geometry: i.Geometry, Interleaved: r.flags&flagInterleaved != 0}); err != nil {
		return r.bad(err)
	}
	if err := r.checkTokens(); err != nil {
		return err
	}
	g := r.l.geo
	for _, x := range []struct{ n, dim int }{{rot.k, g.HeadDim}, {rot.v, g.HeadDimV}} {
		if x.n != 0 && (x.n > x.dim || x.n&(x.n-1) != 0) {
			return r.bad(corruptf("a rotation of %d of rows of %d values", x.n, x.dim))
		}
	}
	r.l.turn = rot
	if r.edge, err = r.side(NameEdge); err != nil {
		return err
	}
	need := 0
	r.layers, r.edges = map[*layer]int{}, make([]int, len(r.l.layers))
	for n, p := range r.l.layers {
		r.layers[p.layer] = n
		r.edges[n] = need
		if r.l.edge(n) >= 0 {
			need += p.k.typ.rowBytes(p.k.width) + p.v.typ.rowBytes(p.v.width)
		}
	}
	if len(r.edge) != need {
		return r.bad(corruptf("tensor %q of %d bytes, want %d", NameEdge, len(r.edge), need))
	}
	return nil
}

// checkTokens checks that the capture has the tokens of the frame.
func (r *restorer) checkTokens() error {
	i, n := r.src.Info(), len(r.l.tokens)
	if i.Tokens != n || len(i.Layers) != r.l.geo.Layers {
		return r.bad(corruptf("%d tokens in %d layers, its frame has %d in %d", i.Tokens, len(i.Layers), n, r.l.geo.Layers))
	}
	pos := make([]int64, n)
	if err := r.src.ReadPositions(false, 0, pos); err != nil {
		return err
	}
	for k, p := range pos {
		if p != int64(r.l.tokens[k]) {
			return r.bad(corruptf("token %d is at position %d, its frame says %d", k, p, r.l.tokens[k]))
		}
	}
	return nil
}

// frameTo writes the frame up to byte end. The token list is put in its place.
func (r *restorer) frameTo(end int) error {
	at := r.s.tokensAt
	if r.flags&flagTokensApart != 0 && r.done <= at && at < end {
		if _, err := r.w.Write(r.frame[r.done:at]); err != nil {
			return err
		}
		r.done = at
		if err := r.writeTokens(int(binary.LittleEndian.Uint32(r.frame[at-4:]))); err != nil {
			return err
		}
		r.flags &^= flagTokensApart // they are written
	}
	_, err := r.w.Write(r.frame[r.done:end])
	r.done = end
	return err
}

func (r *restorer) writeTokens(n int) error {
	if n != r.src.Info().Tokens {
		return r.bad(corruptf("a list of %d tokens, the capture has %d", n, r.src.Info().Tokens))
	}
	ids := make([]int32, n)
	if err := r.src.ReadTokens(false, 0, ids); err != nil {
		return err
	}
	_, err := r.w.Write(integers(ids))
	return err
}

// tensor writes the frame in front of a tensor, and its elements.
func (r *restorer) tensor(p part) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if err := r.frameTo(p.t.frameAt); err != nil {
		return err
	}
	rows := r.codedRows
	if r.l == nil {
		rows = r.storedRows
	}
	read, err := rows(p)
	if err != nil {
		return err
	}
	if p.trans {
		return r.channels(p, read)
	}
	piece := max(1, pieceBytes/p.t.typ.rowBytes(p.t.width))
	for first := 0; first < len(p.s.pos); first += piece {
		b, err := read(first, min(piece, len(p.s.pos)-first))
		if err != nil {
			return err
		}
		if _, err := r.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// channels writes a transposed tensor: as many channels at a time as fit in memory.
func (r *restorer) channels(p part, read func(first, n int) ([]byte, error)) error {
	e, cells, row := p.t.typ.bytes, len(p.s.pos), p.t.typ.rowBytes(p.t.width)
	piece := max(1, pieceBytes/row)
	group := max(1, min(p.t.width, transposedBytes/(cells*e)))
	out := make([]byte, group*cells*e)
	for ch := 0; ch < p.t.width; ch += group {
		k := min(group, p.t.width-ch)
		for first := 0; first < cells; first += piece {
			n := min(piece, cells-first)
			b, err := read(first, n)
			if err != nil {
				return err
			}
			for i := range n {
				for j := range k {
					at := i*row + (ch+j)*e
					copy(out[(j*cells+first+i)*e:], b[at:at+e])
				}
			}
		}
		if _, err := r.w.Write(out[:k*cells*e]); err != nil {
			return err
		}
	}
	return nil
}

// transposedBytes is the memory that transposition may take.
const transposedBytes = 64 << 20

// storedRows returns a function that reads rows as Rows wrote them.
func (r *restorer) storedRows(p part) (func(first, n int) ([]byte, error), error) {
	decls := p.decls()
	for _, d := range decls {
		t, ok := r.src.Lookup(d.Name)
		if !ok || t.DTypeName != d.DTypeName || !slices.Equal(t.Shape, d.Shape) {
			return nil, r.bad(corruptf("tensor %q is not %s of %v", d.Name, d.DTypeName, d.Shape))
		}
	}
	read := func(d rowsDecl, first, n int) ([]byte, error) {
		size := d.Shape[1] * int64(p.t.typ.dtype.Size())
		b := make([]byte, int64(n)*size)
		return b, r.src.ReadAt(d.Name, int64(first)*size, b)
	}
	return func(first, n int) ([]byte, error) {
		b, err := read(decls[0], first, n)
		if err != nil || !p.t.typ.quantized() {
			return b, err
		}
		scales, err := read(decls[1], first, n)
		if err != nil {
			return nil, err
		}
		b, err = p.t.typ.together(b, scales)
		if err != nil {
			return nil, r.bad(fmt.Errorf("tensor %q: %w", p.name, err))
		}
		return b, nil
	}, nil
}

// codedRows returns a function that reads rows of a layer from the capture and makes those of the cache of them.
func (r *restorer) codedRows(p part) (func(first, n int) ([]byte, error), error) {
	layer := r.layers[p.of]
	which, dim, rot, rotary := capture.K, r.l.geo.HeadDim, r.l.turn.k, r.l.rotary
	if p.t == &p.of.v {
		which, dim, rot, rotary = capture.V, r.l.geo.HeadDimV, r.l.turn.v, 0
	}
	t, ok := r.src.KV(layer, which)
	if !ok || t.DType() != p.t.typ.dtype {
		return nil, r.bad(corruptf("layer %d has no %s of %s", layer, which, p.t.typ.dtype))
	}
	if err := r.checkKept(layer); err != nil {
		return nil, err
	}
	edge := r.l.edge(layer)
	tmp, head := make([]float32, dim), []float32(nil)
	return func(first, n int) ([]byte, error) {
		rows := make([]float32, n*p.t.width)
		for h := range p.t.width / dim {
			head = slices.Grow(head[:0], n*dim)[:n*dim]
			if err := r.head(t, h, p.s.pos[first:first+n], head); err != nil {
				return nil, err
			}
			for i := range n {
				x := head[i*dim : (i+1)*dim]
				if rotary > 0 {
					pairs(x, tmp, rotary)
				}
				turn(x, rot)
				copy(rows[i*p.t.width+h*dim:], x)
			}
		}
		size := p.t.typ.rowBytes(p.t.width)
		out := make([]byte, n*size)
		for i := range n {
			row := rows[i*p.t.width : (i+1)*p.t.width]
			if err := p.t.typ.encode(out[i*size:(i+1)*size], row); err != nil {
				return nil, r.bad(fmt.Errorf("%s of layer %d, position %d: %w", which, layer, p.s.pos[first+i], err))
			}
		}
		if edge >= first && edge < first+n {
			at := r.edges[layer]
			if p.t == &p.of.v {
				at += p.of.k.typ.rowBytes(p.of.k.width)
			}
			copy(out[(edge-first)*size:], r.edge[at:at+size])
		}
		return out, nil
	}, nil
}

// head reads the rows of a head at positions.
func (r *restorer) head(t capture.Tensor, h int, pos []int32, dst []float32) error {
	dim := t.Dim()
	for i := 0; i < len(pos); {
		first, k := r.l.index(pos[i]), 1
		for i+k < len(pos) && r.l.index(pos[i+k]) == first+k {
			k++
		}
		if err := t.ReadF32(h, first, k, dst[i*dim:(i+k)*dim]); err != nil {
			return err
		}
		i += k
	}
	return nil
}

// checkKept refuses dropped tokens that a later query sees.
func (r *restorer) checkKept(layer int) error {
	from := r.l.outside(layer)
	kept := make([]uint8, len(r.l.tokens)-from)
	for h := range r.l.geo.KVHeads {
		if err := r.src.ReadKept(layer, h, from, kept); err != nil {
			return err
		}
		if i := slices.Index(kept, 0); i >= 0 {
			return r.bad(unsupportedf("layer %d head %d: the token at position %d was dropped or lost, and llama.cpp would "+
				"attend to it as zeros; compress to archive form, or with --levels full", layer, h, r.l.tokens[from+i]))
		}
	}
	return nil
}
