// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// ArchiveWeights returns what the tokens of an archive are worth, as the steps of their rows tell
// it: with them, blocks in hot form are made from an archive as from the original, whose queries
// it does not hold. nil for a file without records in archive form, or one that weighs all alike.
//
// Errors: as Decompress.
func ArchiveWeights(ctx context.Context, r *container.Reader, profiles ...*profile.Profile) (Weights, error) {
	codec, err := archiveCodec(r, profiles)
	h := r.Header()
	if err != nil || codec == nil || h.Kind != container.KindCache {
		return nil, err
	}
	if err := checkExpansion(r); err != nil { // weights are not backed by as many bytes either
		return nil, err
	}
	weights := map[int][][]float32{}
	differ := false
	for i, info := range r.Records() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rec, err := r.ReadRecord(i)
		if err != nil {
			return nil, err
		}
		number := h.Layers[info.Layer]
		n, first := h.SegmentLen(info.Layer, info.Segment), info.Segment*h.SegmentTokens
		kDim, vDim := h.Dims(info.Layer)
		seg := &archive.Segment{Layer: number, First: h.First + int64(first), Pos: make([]int64, n),
			Dims: []int{kDim, vDim}, Rows: make([][]float32, 2*h.KVHeads())}
		if rec.Archive != nil && !archive.IsLossless(rec.Archive) {
			if err := codec.Side(seg, rec.Archive); err != nil {
				return nil, inRecord(rec, err)
			}
		}
		if weights[number] == nil {
			for range h.KVHeads() {
				weights[number] = append(weights[number], make([]float32, h.Tokens))
			}
		}
		for head, w := range weights[number] {
			for t := range n {
				w[first+t] = 1
				if seg.Class != nil {
					w[first+t] = float32(math.Exp2(-float64(codec.Class8[seg.Class[head][t]]) / 8 / weightPower))
					// Sinks have a class of their own whether tokens were weighed or not.
					differ = differ || seg.Class[head][t] != sinkClass && seg.Class[head][t] != midClass
				}
			}
		}
	}
	if !differ {
		return nil, nil
	}
	return weightsOf(weights), nil
}

// weightsOf hands out weights [heads][tokens] of layers by number. The caller takes the layers from
// elsewhere, and side tensors of a forged file can have the names of some.
func weightsOf(weights map[int][][]float32) Weights {
	return func(layer, kvHead int) ([]float32, error) {
		heads := weights[layer]
		if kvHead >= len(heads) {
			return nil, fmt.Errorf("kvist/kvfile: the file has no records of layer %d head %d: %w", layer,
				kvHead, quant.ErrCorrupt)
		}
		return heads[kvHead], nil
	}
}
