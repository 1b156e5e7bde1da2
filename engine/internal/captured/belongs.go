// SPDX-License-Identifier: Apache-2.0

package captured

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// kindOf names what an input holds.
func kindOf(in *input.Data) container.Kind {
	if in.KV {
		return container.KindCache
	}
	return container.KindRows
}

// belongs checks that a file can have been made from a capture.
func Matches(h *container.Header, in *input.Data) error {
	mismatch := func(what string, got, want any) error {
		return fmt.Errorf(
			"kvist/captured: %s is not what the file was made from: %s %v, the file has %v: %w",
			in.Name, what, got, want, quant.ErrShape)
	}
	if (h.Kind == container.KindCache) != in.KV {
		return mismatch("kind", kindOf(in), h.Kind)
	}
	if h.Starts != nil {
		return fmt.Errorf("kvist/captured: the file holds a sequence that a cache has saved, in segments of its own "+
			"lengths; it cannot be held against %s: %w", in.Name, quant.ErrUnsupported)
	}
	if h.Stored() != len(in.Layers) {
		return mismatch("layers", len(in.Layers), h.Stored())
	}
	for i := range in.Layers {
		l := &in.Layers[i]
		k, v := h.Dims(i)
		switch {
		case l.K.Dim() != k || l.DimV() != v:
			return mismatch(l.Name+" dims", []int{l.K.Dim(), l.DimV()}, []int{k, v})
		case int64(l.Tokens) != h.LayerTokens(i):
			return mismatch(l.Name+" tokens", l.Tokens, h.LayerTokens(i))
		case l.Heads != h.KVHeads():
			return mismatch(l.Name+" kv_heads", l.Heads, h.KVHeads())
		case in.KV && l.Number != h.Layers[i]:
			return mismatch("layer number", l.Number, h.Layers[i])
		}
	}
	return attendAlike(h, in, mismatch)
}

// attendAlike checks that the layers of a file and of a capture have the same windows, scales and soft caps.
func attendAlike(h *container.Header, in *input.Data, mismatch func(what string, got, want any) error) error {
	if !in.KV {
		return nil
	}
	for i, n := range h.Layers {
		a, b := in.Geo.AttentionOf(n), h.Geometry.AttentionOf(n)
		a.Rope, b.Rope = quant.Rope{}, quant.Rope{}
		if !a.Equal(b) {
			text := func(a quant.LayerAttention) string {
				return fmt.Sprintf("window %d, scale %v, soft cap %v", a.Window, a.Scale, a.Softcap)
			}
			return mismatch(in.Layers[i].Name, text(a), text(b))
		}
	}
	return nil
}
