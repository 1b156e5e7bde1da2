// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// Rows writes the state as a file of rows that keeps every bit and needs no facts of a model: what lossless
// compression reads. A row has the values of a cell. Codes and scales of quantized caches become F16 rows of their
// own, exactly.
//
// Errors: *FileError; those of w and of ctx.
func (s *State) Rows(ctx context.Context, w io.WriterAt) error {
	frame := appendFrame(flagRows, sizes{}, s.frame)
	decls := []capture.Decl{{Name: NameFrame, DTypeName: "U8", Shape: []int64{int64(len(frame))}}}
	_ = s.state.eachTensor(func(p part) error {
		for _, d := range p.decls() {
			decls = append(decls, d.Decl)
		}
		return nil
	})
	out, err := capture.NewWriter(w, decls, map[string]string{"format": "llama-state-rows"})
	if err != nil {
		return err
	}
	if err := out.WriteAt(NameFrame, 0, frame); err != nil {
		return err
	}
	err = s.state.eachTensor(func(p part) error { return s.writeRows(ctx, out, p) })
	if err != nil {
		return err
	}
	return out.Close()
}

// part is a tensor of a state with its place.
type part struct {
	name  string // llama.CACHE.STREAM.LAYER.k or .v
	s     *stream
	of    *layer
	t     *tensor // K or V of the layer
	trans bool
}

// eachTensor calls f for the tensors in the order of the file.
func (s *state) eachTensor(f func(p part) error) error {
	for ci, c := range s.caches {
		for si, st := range c.streams {
			for _, side := range []string{"k", "v"} {
				for li := range st.layers {
					of := &st.layers[li]
					p := part{fmt.Sprintf("llama.%d.%d.%d.%s", ci, si, li, side), st, of, &of.k, false}
					if side == "v" {
						p.t, p.trans = &of.v, st.vTrans
					}
					if err := f(p); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// rowsDecl declares rows that hold so many values of every group.
type rowsDecl struct {
	capture.Decl
	codes bool
}

// decls returns the tensors of rows that a tensor becomes.
func (p *part) decls() []rowsDecl {
	n, width := int64(len(p.s.pos)), int64(p.t.width)
	dtype := p.t.typ.dtype.String()
	if !p.t.typ.quantized() {
		return []rowsDecl{{capture.Decl{Name: p.name, DTypeName: dtype, Shape: []int64{n, width}}, false}}
	}
	groups := width / int64(p.t.typ.group)
	return []rowsDecl{
		{capture.Decl{Name: p.name + ".codes", DTypeName: dtype, Shape: []int64{n, width}}, true},
		{capture.Decl{Name: p.name + ".scales", DTypeName: dtype, Shape: []int64{n, groups}}, false},
	}
}

func (s *State) writeRows(ctx context.Context, out *capture.Writer, p part) error {
	r := &reader{s: s, st: p.s, t: p.t, trans: p.trans}
	size := p.t.typ.rowBytes(p.t.width)
	piece := max(1, pieceBytes/size)
	decls := p.decls()
	for first := 0; first < len(p.s.pos); first += piece {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(piece, len(p.s.pos)-first)
		raw, err := r.cells(first, n)
		if err != nil {
			return err
		}
		if !p.t.typ.quantized() {
			if err := out.WriteAt(p.name, int64(first)*int64(size), raw); err != nil {
				return err
			}
			continue
		}
		codes, scales := p.t.typ.apart(raw)
		for i, b := range [][]byte{codes, scales} {
			if err := out.WriteAt(decls[i].Name, int64(first)*int64(len(b)/n), b); err != nil {
				return err
			}
		}
	}
	return nil
}

// apart returns the codes and the scales of groups as binary16, little-endian.
func (e *elem) apart(raw []byte) (codes, scales []byte) {
	code := func(c int) { codes = binary.LittleEndian.AppendUint16(codes, quant.F32ToF16(float32(c))) }
	for ; len(raw) > 0; raw = raw[e.bytes:] {
		scales = append(scales, raw[:2]...)
		b := raw[2:e.bytes]
		if e.coding.Format == quant.GGMLQ8_0 {
			for _, c := range b {
				code(int(int8(c)))
			}
			continue
		}
		for _, c := range b {
			code(int(c & 15))
		}
		for _, c := range b {
			code(int(c >> 4))
		}
	}
	return codes, scales
}

// together is the inverse of apart.
//
// Errors: quant.ErrCorrupt for codes that the type does not have.
func (e *elem) together(codes, scales []byte) ([]byte, error) {
	out := make([]byte, len(scales)/2*e.bytes)
	least, most := 0, 15
	if e.coding.Format == quant.GGMLQ8_0 {
		least, most = -128, 127
	}
	for g := range len(scales) / 2 {
		b := out[g*e.bytes:]
		copy(b, scales[2*g:2*g+2])
		for i := range e.group {
			v := quant.F16ToF32(binary.LittleEndian.Uint16(codes[2*(g*e.group+i):]))
			if !(v >= float32(least) && v <= float32(most)) || v != float32(int(v)) {
				return nil, corruptf("code %v of %s, want a whole number of [%d, %d]", v, e.name, least, most)
			}
			switch c := int(v); {
			case least < 0:
				b[2+i] = byte(int8(c))
			case i < 16:
				b[2+i] |= byte(c)
			default:
				b[2+i-16] |= byte(c) << 4
			}
		}
	}
	return out, nil
}
