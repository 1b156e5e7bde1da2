// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// made takes from the header of a file what the caller may want to say of it.
func (r *Result) made(h *container.Header) {
	r.SeenValues = h.SeenValues()
	r.BitsPerSeen = quant.BitsPerValue(r.Bytes, r.SeenValues)
	r.Config, r.Profile, r.SourceBytes = h.Config, ProfileText(h.Profile), SourceBytes(h)
}

// sourceBytes returns the bytes that the values of a file had in their original types.
func SourceBytes(h *container.Header) (n int64) {
	for i := range h.Stored() {
		k, v := h.Dims(i)
		kSize, vSize := h.KType.Size(), h.VType.Size()
		if h.Kind == container.KindRows {
			kSize = h.Types(i)[0].Size()
		}
		n += h.LayerTokens(i) * int64(h.KVHeads()) * int64(k*kSize+v*vSize)
	}
	return n
}
