// SPDX-License-Identifier: Apache-2.0

package model

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// CaptureOptions select what WriteCapture stores. The zero value stores every layer in f16, with
// all tokens as context.
type CaptureOptions struct {
	// Next is the number of tokens at the end that are stored as those after the context (*_next).
	// Default 0.
	Next int
	// Layers are the layers to store, each at most once. Default nil: all.
	Layers []int
	// DType is the element type of k, v and q. Default: Float16.
	DType quant.DType
	// OWeight stores the output projection of each layer as well.
	OWeight bool
	// NoQ leaves out q.
	NoQ bool
	// Model is the name of the model in the metadata. Default: Config.Name.
	Model string
	// Chunk is as in ForwardOptions.
	Chunk int
	// Force replaces an existing file.
	Force bool
}

// Capture runs the model over tokens and writes the K, V and queries of chosen layers to w as a
// kv-capture/1 file, or kv-capture/2 where layers attend in different ways. K has RoPE applied in half-split layout. tokens and surprisal (-log p of each
// token given those before it, in nats; 0 for the first) are stored too. Memory is bounded by the
// chunk and the float32 cache of the tokens. Capture checks ctx between layers.
//
// Errors: those of Forward and CacheGeometry; ErrShape for options that do not fit the model;
// ErrUnsupported for an element type that captures do not have; those of w and of ctx.
func (m *Model) Capture(ctx context.Context, w io.WriterAt, tokens []int32, o CaptureOptions) error {
	if err := m.checkCapture(len(tokens), &o); err != nil {
		return err
	}
	return m.capture(ctx, w, tokens, o)
}

// WriteCapture writes what Capture does to the file at path. The file appears whole or not at all.
//
// Errors: those of Capture; fs.ErrExist; those of the file system.
func (m *Model) WriteCapture(path string, tokens []int32, o CaptureOptions) (err error) {
	if err := m.checkCapture(len(tokens), &o); err != nil {
		return err
	}
	f, err := atomicfile.Create(path, o.Force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Abort()) }()
	if err := m.capture(context.Background(), f, tokens, o); err != nil {
		return err
	}
	return f.Commit()
}

func (m *Model) checkCapture(n int, o *CaptureOptions) error {
	const op = "write capture"
	if _, err := m.CacheGeometry(); err != nil {
		return err
	}
	if o.Next < 0 || o.Next >= max(n, 1) {
		return shapef(op, "%d tokens after the context of %d in all", o.Next, n)
	}
	if o.Layers == nil {
		for l := range m.Layers {
			o.Layers = append(o.Layers, l)
		}
	}
	sorted := slices.Sorted(slices.Values(o.Layers))
	for i, l := range sorted {
		if l < 0 || l >= m.Layers || (i > 0 && l == sorted[i-1]) {
			return shapef(op, "layer %d, want each of 0 to %d at most once", l, m.Layers-1)
		}
	}
	if len(sorted) == 0 {
		return shapef(op, "no layers")
	}
	if o.DType == quant.DTypeInvalid {
		o.DType = quant.Float16
	}
	if o.DType.Size() == 0 {
		return fmt.Errorf("kvist/model: %s: element type %s: %w", op, o.DType, quant.ErrUnsupported)
	}
	if o.Model == "" {
		o.Model = m.Name
	}
	return nil
}

// capturer writes the rows that its observer is called with.
type capturer struct {
	ctx     context.Context
	m       *Model
	geo     quant.Geometry // with what each layer's attention is
	o       CaptureOptions
	w       *capture.Writer
	context int
	wanted  map[int]bool
	raw     []byte
}

func (m *Model) capture(ctx context.Context, w io.WriterAt, tokens []int32, o CaptureOptions) error {
	g, err := m.CacheGeometry()
	if err != nil {
		return err
	}
	c := &capturer{ctx: ctx, m: m, geo: g, o: o, context: len(tokens) - o.Next, wanted: map[int]bool{}}
	for _, l := range o.Layers {
		c.wanted[l] = true
	}
	meta := capture.KVMetadata(g, o.Model, 0)
	if c.w, err = capture.NewWriter(w, c.declare(len(tokens)), meta); err != nil {
		return err
	}
	kv, err := m.NewKV(KVOptions{})
	if err != nil {
		return err
	}
	surprisal := make([]float32, len(tokens))
	fo := ForwardOptions{Observer: c.observe, Chunk: o.Chunk, Logits: LogitsRange, To: len(tokens) - 1,
		OnLogits: func(i int, logits []float32) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			surprisal[i+1] = float32(Surprisal(logits, tokens[i+1]))
			return nil
		}}
	if _, err := m.Forward(tokens, kv, 0, fo); err != nil {
		return err
	}
	if err := c.side(tokens, surprisal); err != nil {
		return err
	}
	if o.OWeight {
		for _, l := range o.Layers {
			if err := c.oWeight(l); err != nil {
				return err
			}
		}
	}
	return c.w.Close()
}

func (c *capturer) declare(n int) []capture.Decl {
	var d []capture.Decl
	add := func(name, dtype string, shape ...int64) {
		d = append(d, capture.Decl{Name: name, DTypeName: dtype, Shape: shape})
	}
	g, dt := c.geo, c.o.DType.String()
	for _, p := range c.parts(n) {
		rows := int64(p.to - p.from)
		add("tokens"+p.suffix, "I32", rows)
		add("surprisal"+p.suffix, "F32", rows)
		for _, l := range c.o.Layers {
			add(tensorName(l, "k", p.suffix), dt, int64(g.KVHeads), rows, int64(g.HeadDim))
			add(tensorName(l, "v", p.suffix), dt, int64(g.KVHeads), rows, int64(g.HeadDimV))
			if !c.o.NoQ {
				add(tensorName(l, "q", p.suffix), dt, int64(g.Heads), rows, int64(g.HeadDim))
			}
		}
	}
	for _, l := range c.o.Layers {
		if c.o.OWeight {
			add(tensorName(l, "o_weight", ""), "F16", int64(c.m.Hidden), int64(g.Heads*g.HeadDimV))
		}
	}
	if shape, _ := capture.KVFrequencies(g); shape != nil {
		add("rope_inv_freq", "F32", shape...)
	}
	return d
}

func tensorName(layer int, part, suffix string) string {
	return fmt.Sprintf("layers.%d.%s%s", layer, part, suffix)
}

// capturePart is the context or the tokens after it: tokens [from, to).
type capturePart struct {
	suffix   string
	from, to int
}

func (c *capturer) parts(n int) []capturePart {
	p := []capturePart{{"", 0, c.context}}
	if c.context < n {
		p = append(p, capturePart{"_next", c.context, n})
	}
	return p
}

// observe is the Observer of the pass.
func (c *capturer) observe(layer, pos, n int, q, k, v []float32) error {
	if err := c.ctx.Err(); err != nil || !c.wanted[layer] {
		return err
	}
	g := c.geo
	for _, p := range c.parts(c.context + c.o.Next) {
		lo, hi := max(pos, p.from), min(pos+n, p.to)
		if lo >= hi {
			continue
		}
		for _, t := range []struct {
			part       string
			x          []float32
			heads, dim int
		}{{"q", q, g.Heads, g.HeadDim}, {"k", k, g.KVHeads, g.HeadDim}, {"v", v, g.KVHeads, g.HeadDimV}} {
			if t.part == "q" && c.o.NoQ {
				continue
			}
			name := tensorName(layer, t.part, p.suffix)
			for h := range t.heads {
				c.raw = c.raw[:0]
				for i := lo; i < hi; i++ {
					at := ((i-pos)*t.heads + h) * t.dim
					c.raw = appendValues(c.raw, c.o.DType, t.x[at:at+t.dim])
				}
				first := int64(h*(p.to-p.from)+lo-p.from) * int64(t.dim*c.o.DType.Size())
				if err := c.w.WriteAt(name, first, c.raw); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// appendValues appends x in an element type, rounded to nearest even, little-endian.
func appendValues(b []byte, t quant.DType, x []float32) []byte {
	for _, v := range x {
		switch t {
		case quant.Float16:
			b = binary.LittleEndian.AppendUint16(b, quant.F32ToF16(v))
		case quant.BFloat16:
			b = binary.LittleEndian.AppendUint16(b, quant.F32ToBF16(v))
		default:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return b
}

func (c *capturer) side(tokens []int32, surprisal []float32) error {
	for _, p := range c.parts(len(tokens)) {
		var b []byte
		for _, t := range tokens[p.from:p.to] {
			b = binary.LittleEndian.AppendUint32(b, uint32(t))
		}
		if err := c.w.WriteAt("tokens"+p.suffix, 0, b); err != nil {
			return err
		}
		b = appendValues(b[:0], quant.Float32, surprisal[p.from:p.to])
		if err := c.w.WriteAt("surprisal"+p.suffix, 0, b); err != nil {
			return err
		}
	}
	if _, inv := capture.KVFrequencies(c.geo); inv != nil {
		return c.w.WriteAt("rope_inv_freq", 0, appendValues(nil, quant.Float32, inv))
	}
	return nil
}

func (c *capturer) oWeight(layer int) error {
	w, err := c.m.OutputWeight(layer)
	if err != nil {
		return err
	}
	return c.w.WriteAt(tensorName(layer, "o_weight", ""), 0, appendValues(nil, quant.Float16, w))
}
