// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Sum accumulates squared error and squared length.
type Sum struct {
	Err, Ref float64
}

// Add adds the squared error of got against ref.
func (s *Sum) Add(ref, got []float32) {
	for i, v := range ref {
		d := float64(got[i]) - float64(v)
		s.Err += d * d
		s.Ref += float64(v) * float64(v)
	}
}

// Merge adds another sum.
func (s *Sum) Merge(o Sum) { s.Err += o.Err; s.Ref += o.Ref }

// Relative returns Err / Ref (NMSE); 0 where there is no error, +Inf where there is error and
// nothing to compare it with.
func (s Sum) Relative() float64 {
	switch {
	case s.Err == 0:
		return 0
	case s.Ref == 0:
		return math.Inf(1)
	}
	return s.Err / s.Ref
}

// Future is one layer of a future-attention measurement. All blocks belong to the backend that
// measures.
type Future struct {
	Group    int // GQA ratio
	HeadDim  int
	HeadDimV int
	Rope     *quant.Rope
	// Q: [heads, queries, head_dim], RoPE applied. Pos: [queries] their positions.
	Q   []float32
	Pos []int64
	// Per KV head: the context as it was, the context as it is now, and the exact tail.
	Exact, Coded, Tail [][]backend.Block
	// Want holds the outputs over Exact. Measure fills it where it is nil; a caller that measures
	// the same layer again and again hands it in, and may leave Exact out.
	Want []float32
	// Sums is [kv_heads][queries], set by Measure: where the error lies.
	Sums [][]Sum
}

// Measure returns the future-attention error of the layer, over all its heads.
//
// Errors: quant.ErrShape and those of the backend.
func (f *Future) Measure(ctx context.Context, be backend.Backend) (Sum, error) {
	heads, n := len(f.Coded), len(f.Pos)
	if (f.Want == nil && len(f.Exact) != heads) || (f.Want != nil && len(f.Want) != heads*n*f.Group*f.HeadDimV) || len(f.Tail) != heads || len(f.Q) != heads*f.Group*n*f.HeadDim {
		return Sum{}, fmt.Errorf(
			"kvist/damage: future attention: %d values of q for %d kv_heads, group %d, %d queries: %w",
			len(f.Q), heads, f.Group, n, quant.ErrShape)
	}
	if f.Want == nil {
		var err error
		if f.Want, err = f.attend(ctx, be, f.Exact); err != nil {
			return Sum{}, err
		}
	}
	coded, err := f.attend(ctx, be, f.Coded)
	if err != nil {
		return Sum{}, err
	}
	var s Sum
	s.Add(f.Want, coded)
	f.Sums = make([][]Sum, heads)
	size := f.Group * f.HeadDimV
	for h := range f.Sums {
		f.Sums[h] = make([]Sum, n)
		for i := range f.Sums[h] {
			at := (h*n + i) * size
			f.Sums[h][i].Add(f.Want[at:at+size], coded[at:at+size])
		}
	}
	return s, nil
}

// attend returns [kv_heads, queries, group, head_dim_v].
func (f *Future) attend(ctx context.Context, be backend.Backend,
	context [][]backend.Block) ([]float32, error) {
	heads, n, dim := len(context), len(f.Pos), f.HeadDim
	q := &backend.Queries{
		Group: f.Group, HeadDim: dim, HeadDimV: f.HeadDimV,
		Scale:    float32(1 / math.Sqrt(float64(dim))),
		Q:        make([]float32, len(f.Q)),
		BlockPtr: []int32{0},
	}
	var blocks []backend.Block
	for h := range heads {
		first := int32(len(blocks))
		blocks = append(append(blocks, context[h]...), f.Tail[h]...)
		for i := range n {
			for g := range f.Group {
				from := ((h*f.Group+g)*n + i) * dim
				copy(q.Q[((h*n+i)*f.Group+g)*dim:], f.Q[from:from+dim])
			}
			q.Pos = append(q.Pos, f.Pos[i])
			for b := first; b < int32(len(blocks)); b++ {
				q.BlockIdx = append(q.BlockIdx, b)
			}
			q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		}
	}
	out := make([]float32, heads*n*f.Group*f.HeadDimV)
	return out, backend.AttendBlocks(ctx, be, q, f.Rope, blocks, backend.Attention{Out: out})
}
