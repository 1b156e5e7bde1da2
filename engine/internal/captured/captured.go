// SPDX-License-Identifier: Apache-2.0

// Package captured makes the input of compression from capture files, and holds files against it.
package captured

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// rowSegmentValues is the size of a segment of general activations: it bounds memory, and is
// large enough that tables vanish.
const rowSegmentValues = 1 << 20

// Of returns the rows of a capture in segments of so many tokens.
//
// Errors: quant.ErrShape for a capture of no layers; quant.ErrUnsupported for one of no rows.
func Of(src *capture.Source, segment int) (*input.Data, error) {
	in := &input.Data{Name: src.Info().Name, Model: src.Info().Model, KV: src.Info().KV, First: src.Info().FirstPosition}
	in.Positions = func(first int, dst []int64) error { return src.ReadPositions(false, first, dst) }
	if _, ok := src.Lookup("surprisal"); ok && src.Info().KV {
		in.Surprisal = func(first int, dst []float32) error { return src.ReadSurprisal(false, first, dst) }
	}
	if !in.KV {
		acts := src.ActTensors()
		// All tensors of a file share one segment length.
		most := 1
		for _, a := range acts {
			most = max(most, a.Dim)
		}
		seg := min(max(rowSegmentValues/most, 32), 32768)
		for i, a := range acts {
			in.Layers = append(
				in.Layers,
				input.Layer{Name: fmt.Sprintf("tensor %q", a.Name), Index: i, Number: i,
					K: a.Tensor, Heads: 1, Tokens: a.Rows, Segment: seg},
			)
		}
		in.Heads = len(acts)
		if len(acts) == 0 {
			return nil, src.NoRows()
		}
		return in, nil
	}
	in.Geo = src.Info().Geometry
	for i, n := range src.Info().Layers {
		l := input.Layer{Name: fmt.Sprintf("layer %d", n), Index: i, Number: n, HasV: true,
			Heads: in.Geo.KVHeads, Tokens: src.Info().Tokens, Segment: segment}
		l.K, l.V = kv(src, n, capture.K), kv(src, n, capture.V)
		l.Q = kv(src, n, capture.Q)
		l.HasQ = l.Q != nil
		if q, ok := src.KV(n, capture.QNext); ok { // it implies the other two
			l.Next = &input.Next{K: kv(src, n, capture.KNext), V: kv(src, n, capture.VNext), Q: q, Heads: q.Heads(),
				Tokens: src.Info().TokensNext}
		}
		in.Layers = append(in.Layers, l)
		in.Heads += l.Heads
	}
	if len(in.Layers) == 0 {
		return nil, fmt.Errorf("kvist/captured: %s holds no layers: %w", src.Info().Name, quant.ErrShape)
	}
	return in, nil
}

// kv returns a side of a layer, nil where the capture lacks it.
func kv(src *capture.Source, layer int, part capture.Part) input.Tensor {
	if t, ok := src.KV(layer, part); ok {
		return t
	}
	return nil
}
