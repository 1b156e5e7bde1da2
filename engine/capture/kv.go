// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// The values of the metadata key "format" in a KV capture. kvFormat2 is kvFormat and what differs from
// layer to layer; writers use it only for models that need it.
const (
	kvFormat  = "kv-capture/1"
	kvFormat2 = "kv-capture/2"
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

// kvCapture is the checked header of a KV capture.
type kvCapture struct {
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

// KV returns the rows of one part of a layer; false if the capture does not hold them.
func (s *Source) KV(layer int, p Part) (Tensor, bool) {
	l := s.layer(layer)
	if l == nil || p >= numParts {
		return Tensor{}, false
	}
	return l.parts[p], l.parts[p].f != nil
}

// OWeight returns the output projection of the layer as rows [hidden, heads * head_dim_v], as head
// 0; false if the capture does not hold it.
func (s *Source) OWeight(layer int) (Tensor, bool) {
	l := s.layer(layer)
	if l == nil {
		return Tensor{}, false
	}
	return l.oWeight, l.oWeight.f != nil
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
		"format":         kvFormat,
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
