// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// The values of the metadata key "format" in a KV capture. KVFormat2 is KVFormat and what differs from
// layer to layer; writers use it only for models that need it.
const (
	KVFormat  = "kv-capture/1"
	KVFormat2 = "kv-capture/2"
)

// isKVFormat reports whether a file of that format is a KV capture, of this or another version.
func isKVFormat(format string) bool { return strings.HasPrefix(format, "kv-capture/") }

// Part names a tensor of rows in a layer.
type Part uint8

// The parts.
const (
	K Part = iota
	V
	Q
	KNext // the Next parts hold the tokens after the captured ones
	VNext
	QNext

	numParts
)

var partNames = [numParts]string{"k", "v", "q", "k_next", "v_next", "q_next"}

// String returns the last part of the tensor's name: k, v, q, k_next, v_next, q_next.
func (p Part) String() string {
	if p < numParts {
		return partNames[p]
	}
	return "Part(" + strconv.Itoa(int(p)) + ")"
}

// Next reports whether p holds the tokens after the captured ones.
func (p Part) Next() bool { return p >= KNext && p <= QNext }

// Meta is the metadata of a KV capture, apart from its Geometry.
type Meta struct {
	Format        string
	Model         string
	FirstPosition int64             // position of the first token
	Values        map[string]string // all metadata, including the fields above
}

// kvCapture is the checked header of a KV capture.
type kvCapture struct {
	meta               Meta
	geo                quant.Geometry
	layers             []int
	parts              map[int]*kvLayer
	tokens, tokensNext int
	hasNext            bool
}

// kvLayer holds the tensors of one layer. An absent tensor is the zero Tensor or TensorInfo.
type kvLayer struct {
	parts      [numParts]Tensor
	oWeight    Tensor
	kept, bias bool
	residual   int // values of residual_ms, 0 if absent
}

// Meta returns the metadata of a KV capture, or the zero Meta for activations.
func (s *Source) Meta() Meta {
	if s.kv == nil {
		return Meta{}
	}
	m := s.kv.meta
	m.Values = maps.Clone(m.Values)
	return m
}

// Geometry returns the shape of the captured cache, or the zero Geometry for activations.
func (s *Source) Geometry() quant.Geometry {
	if s.kv == nil {
		return quant.Geometry{}
	}
	return s.kv.geo.Clone()
}

// Layers returns the numbers of the layers in the capture, ascending.
func (s *Source) Layers() []int {
	if s.kv == nil {
		return nil
	}
	return slices.Clone(s.kv.layers)
}

// Tokens returns the number of captured tokens.
func (s *Source) Tokens() int {
	if s.kv == nil {
		return 0
	}
	return s.kv.tokens
}

// TokensNext returns the number of tokens after the captured ones, or 0 if there are none.
func (s *Source) TokensNext() int {
	if s.kv == nil {
		return 0
	}
	return s.kv.tokensNext
}

// KV returns the rows of one part of a layer; false if the capture does not hold them.
func (s *Source) KV(layer int, p Part) (Tensor, bool) {
	l := s.layer(layer)
	if l == nil || p >= numParts {
		return Tensor{}, false
	}
	return l.parts[p], l.parts[p].src != nil
}

// DType returns the element type of a part, or DTypeInvalid if the capture does not hold it.
func (s *Source) DType(layer int, p Part) quant.DType {
	t, _ := s.KV(layer, p)
	return t.dtype
}

// HasQ reports whether the capture holds the layer's queries.
func (s *Source) HasQ(layer int) bool {
	_, ok := s.KV(layer, Q)
	return ok
}

// HasNext reports whether the capture holds K, V and Q of the tokens after the layer's captured
// ones. Future-attention errors can then be measured.
func (s *Source) HasNext(layer int) bool {
	_, ok := s.KV(layer, QNext) // it implies the other two
	return ok
}

// OWeight returns the output projection of the layer as rows [hidden, heads * head_dim_v], as head
// 0; false if the capture does not hold it.
func (s *Source) OWeight(layer int) (Tensor, bool) {
	l := s.layer(layer)
	if l == nil {
		return Tensor{}, false
	}
	return l.oWeight, l.oWeight.src != nil
}

func (s *Source) layer(n int) *kvLayer {
	if s.kv == nil {
		return nil
	}
	return s.kv.parts[n]
}

// KVMetadata returns the metadata of a capture with this geometry: kv-capture/1 where its layers are
// alike and attend plainly, else kv-capture/2. The caller must declare the tensor rope_inv_freq if
// KVFrequencies returns one.
func KVMetadata(g quant.Geometry, model string, firstPosition int64) map[string]string {
	m := map[string]string{
		"format":         KVFormat,
		"model":          model,
		"layers":         strconv.Itoa(g.Layers),
		"heads":          strconv.Itoa(g.Heads),
		"kv_heads":       strconv.Itoa(g.KVHeads),
		"head_dim":       strconv.Itoa(g.HeadDim),
		"head_dim_v":     strconv.Itoa(g.HeadDimV),
		"first_position": strconv.FormatInt(firstPosition, 10),
		"rope_layout":    g.Rope.Layout.String(),
		"rope_applied":   strconv.FormatBool(g.Rope.Layout != quant.RopeNone),
	}
	if g.Rope.Layout != quant.RopeNone {
		m["rotary_dim"] = strconv.Itoa(g.Rope.RotaryDim)
		if g.Rope.Theta > 0 {
			m["rope_theta"] = strconv.FormatFloat(g.Rope.Theta, 'g', -1, 64)
		}
	}
	if c := g.Canonical(); c.PerLayer != nil {
		perLayerMetadata(m, c)
	} else if g.PerLayer != nil {
		return KVMetadata(c, model, firstPosition)
	}
	return m
}
