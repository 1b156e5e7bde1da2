// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"fmt"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// validateMetrics reports an error unless metrics are what the file can hold.
func validateMetrics(h *Header) error {
	g := &h.Geometry
	if h.Metrics == nil {
		return nil
	}
	if len(h.Metrics) != len(h.Layers)*g.KVHeads {
		return shapef("header: %d metrics, want layers * kv_heads = %d", len(h.Metrics), len(h.Layers)*g.KVHeads)
	}
	some := false
	for i, m := range h.Metrics {
		if m == nil {
			continue
		}
		some = true
		rope, first := g.RopeOf(h.Layers[i/g.KVHeads]), make(map[int]float32, g.HeadDim)
		if len(m.Diagonal()) != g.HeadDim {
			return shapef("header: metric %d is a diagonal of %d values, want %d", i, len(m.Diagonal()), g.HeadDim)
		}
		for d, a := range m.Diagonal() {
			if quant.F16ToF32(quant.F32ToF16(a)) != a {
				return shapef("header: metric %d: value %d is %g, which is no binary16 number", i, d, a)
			}
			if other, ok := first[rope.Pair(d)]; ok && other != a {
				return shapef("header: metric %d: %g and %g in one rotary pair", i, other, a)
			}
			first[rope.Pair(d)] = a
		}
	}
	if !some {
		return shapef("header: metrics of which no head has one")
	}
	return nil
}

// metricValue returns the bytes of the field.
func metricValue(h *Header) []byte {
	le, g := binary.LittleEndian, &h.Geometry
	v := le.AppendUint32(nil, uint32(len(h.Layers)))
	v = le.AppendUint32(v, uint32(g.KVHeads))
	for i, m := range h.Metrics {
		if m == nil {
			v = append(v, 0)
			continue
		}
		rope := g.RopeOf(h.Layers[i/g.KVHeads])
		scales := make([]float32, g.HeadDim-rope.RotaryDim/2)
		for d, a := range m.Diagonal() {
			scales[rope.Pair(d)] = a
		}
		v = append(v, 1)
		for _, a := range scales {
			v = le.AppendUint16(v, quant.F32ToF16(a))
		}
	}
	return v
}

// parseMetric reads what metricValue writes. Every head takes a byte of the field, so that its length bounds what
// is allocated.
func parseMetric(h *Header, c *cursor) {
	g := &h.Geometry
	layers, heads := c.size(), c.size()
	if layers != len(h.Layers) || heads != g.KVHeads || layers*heads > len(c.b) {
		c.fail("shape of metrics", fmt.Sprint(len(h.Layers), g.KVHeads), fmt.Sprint(layers, heads))
		return
	}
	h.Metrics = make([]*frame.Metric, layers*heads)
	for i := range h.Metrics {
		switch kind := c.uint(1); kind {
		case 0:
			continue
		case 1:
		default:
			c.fail("kind of a metric", "0 or 1", kind)
			return
		}
		layer := h.Layers[i/heads]
		if layer >= g.Layers || g.HeadDim > quant.MaxDim {
			c.fail("metric of layer", fmt.Sprintf("below %d", g.Layers), layer)
			return
		}
		rope := g.RopeOf(layer)
		if rope.RotaryDim < 0 || rope.RotaryDim > g.HeadDim || rope.RotaryDim%2 != 0 {
			c.fail("metric: rotary_dim", fmt.Sprintf("even, up to %d", g.HeadDim), rope.RotaryDim)
			return
		}
		raw := c.bytes(2 * (g.HeadDim - rope.RotaryDim/2))
		if c.err != nil {
			return
		}
		diag := make([]float32, g.HeadDim)
		for d := range diag {
			diag[d] = quant.F16ToF32(binary.LittleEndian.Uint16(raw[2*rope.Pair(d):]))
		}
		m, err := frame.NewDiagonal(diag)
		if err != nil {
			c.fail("metric: "+err.Error(), nil, nil)
			return
		}
		h.Metrics[i] = m
	}
}
