// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// origin is where rows come from: a capture file or memory.
type origin interface {
	// segment returns the tokens of a segment under a config.
	segment(cfg *Config) int
	// data returns the rows, in segments of this many tokens.
	data(segment int) (*input.Data, error)
	// describe fills in what the header of a file says of the origin.
	describe(h *container.Header)
	// sides returns the side tensors that a file keeps.
	sides() ([]*container.Aux, error)
}

// fileOrigin is a capture file.
type fileOrigin struct{ src *capture.Source }

func (o fileOrigin) segment(cfg *Config) int { return segmentOf(o.src, cfg) }

func (o fileOrigin) data(segment int) (*input.Data, error) { return captured.Of(o.src, segment) }

func (o fileOrigin) describe(h *container.Header) {
	src := o.src
	h.Metadata = src.Info().Metadata
	if src.Info().KV {
		h.Kind, h.Geometry, h.Layers = container.KindCache, src.Info().Geometry, src.Info().Layers
		h.Tokens, h.First, h.Model = int64(src.Info().Tokens), src.Info().FirstPosition, src.Info().Model
		return
	}
	h.Kind, h.Origin = container.KindRows, "safetensors"
	if src.Info().Format == "npy" {
		h.Origin = "npy"
	}
	for _, a := range src.ActTensors() {
		h.Tensors = append(h.Tensors, container.Tensor{Name: a.Name, DType: a.DType.String(), Shape: slices.Clone(a.Shape)})
		h.Tokens += int64(a.Rows)
	}
}

func (o fileOrigin) sides() (all []*container.Aux, err error) {
	for _, t := range o.src.SideTensors() {
		if o.src.Info().KV && !keptSide(t.Name) {
			continue
		}
		a := &container.Aux{Name: t.Name, DType: t.DTypeName, Shape: slices.Clone(t.Shape), Data: make([]byte, t.Bytes)}
		if err := o.src.ReadAt(t.Name, 0, a.Data); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// Memory is a cache whose rows a program holds: K and V of every layer, and the queries if it has them.
// Rows are shared, not copied, and must not change while a call uses them.
type Memory struct {
	Geometry quant.Geometry
	Model    string // "" where it does not matter
	First    int64  // position of the first token
	// K and V are [layers][kv_heads, tokens, head_dim], RoPE applied; Q is [layers][heads, tokens, head_dim],
	// or nil: then K stands in for the queries.
	K, V, Q [][]float32
}

// tokens checks the shapes and returns the number of tokens.
//
// Errors: quant.ErrShape.
func (m *Memory) tokens() (int, error) {
	g := &m.Geometry
	if err := g.Validate(); err != nil {
		return 0, err
	}
	if len(m.K) != g.Layers || len(m.V) != g.Layers || m.Q != nil && len(m.Q) != g.Layers || g.Layers == 0 {
		return 0, fmt.Errorf("kvist/kvfile: memory: K of %d layers, V of %d, Q of %d, the geometry has %d: %w", len(m.K),
			len(m.V), len(m.Q), g.Layers, quant.ErrShape)
	}
	n := len(m.K[0]) / (g.KVHeads * g.HeadDim)
	for l := range m.K {
		for _, x := range []struct {
			name       string
			have, want int
		}{{"K", len(m.K[l]), g.KVHeads * n * g.HeadDim}, {"V", len(m.V[l]), g.KVHeads * n * g.HeadDimV}} {
			if x.have != x.want {
				return 0, fmt.Errorf("kvist/kvfile: memory: layer %d: %s of %d values, want %d for %d tokens: %w", l, x.name,
					x.have, x.want, n, quant.ErrShape)
			}
		}
		if m.Q != nil && len(m.Q[l]) != g.Heads*n*g.HeadDim {
			return 0, fmt.Errorf("kvist/kvfile: memory: layer %d: Q of %d values, want %d for %d tokens: %w", l, len(m.Q[l]),
				g.Heads*n*g.HeadDim, n, quant.ErrShape)
		}
	}
	return n, nil
}

// memoryOrigin is a Memory of so many tokens.
type memoryOrigin struct {
	m      *Memory
	tokens int
}

func (o memoryOrigin) segment(cfg *Config) int {
	if !cfg.Lossless {
		return cfg.Segment
	}
	token := int64(4 * o.m.Geometry.KVHeads * (o.m.Geometry.HeadDim + o.m.Geometry.HeadDimV))
	return max(cfg.Segment, int(min(losslessSegment, container.DefaultExpandedBytes/token)))
}

func (o memoryOrigin) data(segment int) (*input.Data, error) {
	m, g := o.m, &o.m.Geometry
	in := &input.Data{Name: "memory", Model: m.Model, KV: true, Geo: *g, Heads: g.Layers * g.KVHeads, First: m.First}
	in.Positions = func(first int, dst []int64) error {
		for i := range dst {
			dst[i] = m.First + int64(first+i)
		}
		return nil
	}
	for l := range m.K {
		side := func(name string, x []float32, dim int) input.Tensor {
			return input.Floats(fmt.Sprintf("layers.%d.%s", l, name), x, o.tokens, dim)
		}
		layer := input.Layer{Name: fmt.Sprintf("layer %d", l), Index: l, Number: l, HasV: true, Heads: g.KVHeads,
			Tokens: o.tokens, Segment: segment, K: side("k", m.K[l], g.HeadDim), V: side("v", m.V[l], g.HeadDimV)}
		if m.Q != nil {
			layer.Q, layer.HasQ = side("q", m.Q[l], g.HeadDim), true
		}
		in.Layers = append(in.Layers, layer)
	}
	return in, nil
}

func (o memoryOrigin) describe(h *container.Header) {
	h.Kind, h.Geometry, h.Model = container.KindCache, o.m.Geometry, o.m.Model
	h.Tokens, h.First = int64(o.tokens), o.m.First
	for l := range o.m.K {
		h.Layers = append(h.Layers, l)
	}
}

func (o memoryOrigin) sides() ([]*container.Aux, error) { return nil, nil }
