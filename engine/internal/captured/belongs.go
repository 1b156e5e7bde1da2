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
	return nil
}
