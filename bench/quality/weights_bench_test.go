// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// BenchmarkSegmentWeights compares the time of weighing a segment of 512 tokens in every layer and head
// with that of the prefill of these tokens. Weighing takes the attention of the last window's queries,
// whose log-sum-exp is known, to the keys of the segment, with the default importance.
func BenchmarkSegmentWeights(b *testing.B) {
	m := modeltest.SmolLM2(b)
	const tokens, window = 512, 64
	in := evalInput(b, m, 0, Options{Context: tokens, Next: 2})
	ctx := context.Background()
	b.Run("op=prefill", func(b *testing.B) {
		for b.Loop() {
			kv, err := m.NewKV(model.KVOptions{})
			require.NoError(b, err)
			if _, err := m.Forward(in.Tokens[:tokens], kv, 0,
				model.ForwardOptions{Logits: model.LogitsNone}); err != nil {
				b.Fatal(err)
			}
		}
	})
	c, _, err := Prefill(ctx, m, in.Tokens[:tokens], false)
	require.NoError(b, err)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(b, err)
	defer be.Close()
	heads := segmentHeads(b, c, be, tokens, window)
	b.Run("op=weights", func(b *testing.B) {
		for b.Loop() {
			for _, h := range heads {
				require.NoError(b, h.weigh(ctx, be))
			}
		}
		b.ReportMetric(float64(len(heads)), "heads")
	})
}

// segmentHead is what a serving cache holds of one KV head when its segment closes.
type segmentHead struct {
	keys, values quant.Rows
	rope         quant.Rope
	q            *backend.Queries
	lse          []float32
	blocks       []backend.Block
	first        int64
}

func segmentHeads(b *testing.B, c *methods.Context, be backend.Backend, tokens, window int) []*segmentHead {
	var heads []*segmentHead
	g := c.Geometry
	f32 := quant.Coding{Format: quant.F32}
	for _, l := range c.Layers {
		for h := range g.KVHeads {
			x := &segmentHead{first: int64(tokens - window), rope: g.Rope,
				keys:   quant.Rows{Dim: g.HeadDim, Data: l.K[h*tokens*g.HeadDim:][:tokens*g.HeadDim]},
				values: quant.Rows{Dim: g.HeadDimV, Data: l.V[h*tokens*g.HeadDimV:][:tokens*g.HeadDimV]}}
			side := func(r quant.Rows) backend.Side {
				packed := make([]byte, f32.PackedBytes(tokens, r.Dim))
				require.NoError(b, quant.Encode(packed, f32, r, 0))
				buf, err := be.Alloc(int64(len(packed)))
				require.NoError(b, err)
				require.NoError(b, buf.Upload(0, packed))
				return backend.Side{Coding: f32, Data: backend.Span{Buf: buf, Len: buf.Len()}}
			}
			x.blocks = []backend.Block{{Rows: int32(tokens), K: side(x.keys), V: side(x.values)}}
			group := g.GQARatio()
			x.q = &backend.Queries{Group: group, HeadDim: g.HeadDim, HeadDimV: g.HeadDimV,
				Scale: float32(1 / math.Sqrt(float64(g.HeadDim))), BlockPtr: []int32{0}}
			for t := tokens - window; t < tokens; t++ {
				for i := range group {
					x.q.Q = append(x.q.Q, l.Q[((h*group+i)*tokens+t)*g.HeadDim:][:g.HeadDim]...)
				}
				x.q.Pos = append(x.q.Pos, int64(t))
				x.q.BlockIdx = append(x.q.BlockIdx, 0)
				x.q.BlockPtr = append(x.q.BlockPtr, int32(len(x.q.BlockIdx)))
			}
			x.lse = make([]float32, window*group)
			out := make([]float32, window*group*g.HeadDimV)
			require.NoError(b, backend.AttendBlocks(context.Background(), be, x.q, nil, x.blocks,
				backend.Attention{Out: out, LSE: x.lse}))
			heads = append(heads, x)
		}
	}
	return heads
}

func (h *segmentHead) weigh(ctx context.Context, be backend.Backend) error {
	weights, err := importance.ParseWeighting("default")
	if err != nil {
		return err
	}
	track, err := importance.NewTracker(weights, h.keys.Dim, h.values.Dim, h.rope)
	if err != nil {
		return err
	}
	if err := track.Append(h.keys, h.values, nil); err != nil {
		return err
	}
	n := h.keys.Len()
	rel := &backend.RelevanceOut{Power: 2, RowPtr: []int32{0, int32(n)}, Sum: make([]float32, n)}
	if err := backend.RelevanceBlocks(ctx, be, h.q, nil, h.lse, h.blocks, rel); err != nil {
		return err
	}
	err = track.Observe(importance.Queries{First: h.first, N: h.q.Len(), Group: h.q.Group},
		importance.RowSums{Sum: rel.Sum})
	if err != nil {
		return err
	}
	_, err = track.Weights(make([]float32, n), h.keys)
	return err
}
