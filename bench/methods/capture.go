// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// Capture returns the context as a capture in memory with K, V and Q at f16. Kvist compresses it.
//
// Errors: quant.ErrShape; quant.ErrRange for values out of the range of binary16.
func (c *Context) Capture() (*capture.Source, error) {
	s, err := c.shape("capture", false)
	if err != nil {
		return nil, err
	}
	return c.capture(s)
}

func (c *Context) capture(s shapeOf) (*capture.Source, error) {
	var raw memory
	if err := writeCapture(&raw, c, s); err != nil {
		return nil, err
	}
	return capture.New("context", &raw, int64(len(raw.data)), capture.Limits{})
}

// writeCapture writes K, V and, if there are any, queries, as a capture.
func writeCapture(w io.WriterAt, c *Context, s shapeOf) error {
	g := c.Geometry
	g.Layers = max(g.Layers, len(c.Layers))
	type tensor struct {
		name string
		x    []float32
	}
	var tensors []tensor
	var decls []capture.Decl
	add := func(name string, x []float32, heads, dim int) {
		if len(x) == 0 {
			return
		}
		tensors = append(tensors, tensor{name, x})
		decls = append(decls, capture.Decl{Name: name, DTypeName: quant.Float16.String(),
			Shape: []int64{int64(heads), int64(s.tokens), int64(dim)}})
	}
	for i, l := range c.Layers {
		add(fmt.Sprintf("layers.%d.k", i), l.K, s.kvHeads, s.dimK)
		add(fmt.Sprintf("layers.%d.v", i), l.V, s.kvHeads, s.dimV)
		add(fmt.Sprintf("layers.%d.q", i), l.Q, s.heads, s.dimK)
	}
	if len(c.Surprisal) > 0 {
		decls = append(decls, capture.Decl{Name: "surprisal", DTypeName: quant.Float32.String(),
			Shape: []int64{int64(len(c.Surprisal))}})
	}
	shape, freqs := capture.KVFrequencies(g)
	if shape != nil {
		decls = append(decls, capture.Decl{Name: "rope_inv_freq",
			DTypeName: quant.Float32.String(), Shape: shape})
	}
	out, err := capture.NewWriter(w, decls, capture.KVMetadata(g, "", 0))
	if err != nil {
		return err
	}
	for _, t := range tensors {
		b := make([]byte, 2*len(t.x))
		for i, x := range t.x {
			if _, err := halfOf(x); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			binary.LittleEndian.PutUint16(b[2*i:], quant.F32ToF16(x))
		}
		if err := out.WriteAt(t.name, 0, b); err != nil {
			return err
		}
	}
	if len(c.Surprisal) > 0 {
		b, err := binary.Append(nil, binary.LittleEndian, c.Surprisal)
		if err != nil {
			return err
		}
		if err := out.WriteAt("surprisal", 0, b); err != nil {
			return err
		}
	}
	if shape != nil {
		b, err := binary.Append(nil, binary.LittleEndian, freqs)
		if err != nil {
			return err
		}
		if err := out.WriteAt("rope_inv_freq", 0, b); err != nil {
			return err
		}
	}
	return out.Close()
}

// readLayer reads a layer that Decompress wrote.
func readLayer(src *capture.Source, layer int, s shapeOf, out *CacheLayer) error {
	out.K = make([]float32, s.kvHeads*s.tokens*s.dimK)
	out.V = make([]float32, s.kvHeads*s.tokens*s.dimV)
	if err := readPart(src, layer, capture.K, out.K); err != nil {
		return err
	}
	if err := readPart(src, layer, capture.V, out.V); err != nil {
		return err
	}
	marks := make([]uint8, s.tokens)
	for h := range s.kvHeads {
		if holds(src, layer, "kept") {
			if err := src.ReadKept(layer, h, 0, marks); err != nil {
				return err
			}
			for _, m := range marks {
				out.Keep = append(out.Keep, m != 0)
			}
		}
		if holds(src, layer, "bias") {
			bias := make([]float32, s.tokens)
			if err := src.ReadBias(layer, h, 0, bias); err != nil {
				return err
			}
			out.Bias = append(out.Bias, bias...)
		}
	}
	return nil
}

// holds reports whether a capture has a tensor of a layer.
func holds(src *capture.Source, layer int, name string) bool {
	_, ok := src.Lookup(fmt.Sprintf("layers.%d.%s", layer, name))
	return ok
}

// readPart reads all heads of a tensor of a layer, [heads, tokens, dim].
func readPart(src *capture.Source, layer int, p capture.Part, dst []float32) error {
	t, ok := src.KV(layer, p)
	if !ok || t.Heads()*t.Rows()*t.Dim() != len(dst) {
		return fmt.Errorf("kvist/methods: %s: layer %d: %s of %d values, want %d: %w",
			src.Info().Name, layer, p, t.Heads()*t.Rows()*t.Dim(), len(dst), quant.ErrShape)
	}
	n := t.Rows() * t.Dim()
	for h := range t.Heads() {
		if err := t.ReadF32(h, 0, t.Rows(), dst[h*n:(h+1)*n]); err != nil {
			return err
		}
	}
	return nil
}

// memory is a file in memory. Writes may run in parallel with each other, but not with reads.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := int(off) + len(p)
	if end > len(m.data) {
		if end > cap(m.data) {
			grown := make([]byte, len(m.data), max(end, 2*cap(m.data)))
			copy(grown, m.data)
			m.data = grown
		}
		m.data = m.data[:end]
	}
	return copy(m.data[off:end], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
