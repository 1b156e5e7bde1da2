// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
)

// Weights returns what the tokens of a cache in archive form are worth, [heads][tokens] by the number of the
// layer, as the steps of their rows tell it; nil where all are worth the same.
//
// Errors: *container.CorruptError.
func Weights(ctx context.Context, r *container.Reader, codec *archive.Codec) (map[int][][]float32, error) {
	h := r.Header()
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
		n, first := h.SegmentLen(info.Layer, info.Segment), int(h.SegmentStart(info.Segment))
		kDim, vDim := h.Dims(info.Layer)
		gone := 0 // the record holds the other rows
		if rec.Archive != nil {
			gone = Dropped(h, rec)
		}
		seg := &archive.Segment{Layer: number, First: h.First + int64(first+gone), Pos: make([]int64, n-gone),
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
				if seg.Class != nil && t >= gone {
					class := seg.Class[head][t-gone]
					w[first+t] = float32(math.Exp2(-float64(codec.Class8[class]) / 8 / weightPower))
					// Sinks have a class of their own whether tokens were weighed or not.
					differ = differ || class != sinkClass && class != midClass
				}
			}
		}
	}
	if !differ {
		return nil, nil
	}
	return weights, nil
}
