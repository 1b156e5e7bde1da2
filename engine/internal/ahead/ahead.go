// SPDX-License-Identifier: Apache-2.0

// Package ahead measures the future-attention error of records.
package ahead

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/blocks"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// Error runs the later queries of a layer over its compressed and its exact context. want
// keeps the outputs over the exact context from call to call. Also returned are the sums of each KV head and
// query.
func Error(ctx context.Context, in *input.Data, l *input.Layer, h *container.Header,
	recs []*container.Record, be backend.Backend, rowBias bool, want *[]float32) (damage.Sum, [][]damage.Sum, error) {
	up := &input.Uploader{Backend: be}
	defer up.Free()
	f := &damage.Future{
		Group:    in.Geo.GQARatio(),
		HeadDim:  l.K.Dim(),
		HeadDimV: l.V.Dim(),
		Geo:      &in.Geo,
		Layer:    l.Number,
		Coded:    make([][]backend.Block, l.Heads),
		Want:     *want,
	}
	for _, rec := range recs {
		heads, err := blocks.Load(up, h, rec, l.Number, rowBias)
		if err != nil {
			return damage.Sum{}, nil, err
		}
		for hi := range heads {
			f.Coded[hi] = append(f.Coded[hi], heads[hi]...)
		}
	}
	next, qNext := l.Next.Tokens, l.Next.Q
	for hi := range l.Heads {
		if f.Want == nil {
			blocks, _, err := input.LoadHead(up, l, hi, []int{0, l.Tokens}, false)
			if err != nil {
				return damage.Sum{}, nil, err
			}
			f.Exact = append(f.Exact, blocks)
		}
		tail, err := exactBlock(up, in.Name, l.Next, hi, int64(l.Tokens))
		if err != nil {
			return damage.Sum{}, nil, err
		}
		f.Tail = append(f.Tail, []backend.Block{tail})
	}
	f.Q = make([]float32, l.Next.Heads*next*l.K.Dim())
	for hd := range l.Next.Heads {
		if err := qNext.ReadF32(hd, 0, next, f.Q[hd*next*l.K.Dim():(hd+1)*next*l.K.Dim()]); err != nil {
			return damage.Sum{}, nil, err
		}
		if !input.Finite(f.Q[hd*next*l.K.Dim() : (hd+1)*next*l.K.Dim()]) {
			return damage.Sum{}, nil, notMeasured(in.Name, qNext, hd)
		}
	}
	for i := range next {
		f.Pos = append(f.Pos, int64(l.Tokens+i))
	}
	sum, err := f.Measure(ctx, be)
	*want = f.Want
	return sum, f.Sums, err
}

// exactBlock uploads the rows that come after a head's as they are.
func exactBlock(up *input.Uploader, name string, next *input.Next, head int, base int64) (backend.Block, error) {
	n := next.Tokens
	b := backend.Block{KVHead: int32(head), Rows: int32(n), Base: base}
	for _, side := range []struct {
		t  input.Tensor
		to *backend.Side
	}{{next.K, &b.K}, {next.V, &b.V}} {
		raw := make([]byte, n*side.t.RowBytes())
		if err := side.t.Read(head, 0, n, raw); err != nil {
			return b, err
		}
		if !input.FiniteRow(side.t.DType(), raw) {
			return b, notMeasured(name, side.t, head)
		}
		span, err := up.Upload(raw)
		if err != nil {
			return b, err
		}
		*side.to = backend.Side{Coding: input.Exact(side.t), Data: span}
	}
	return b, nil
}

// notMeasured says why no future-attention error can be told.
func notMeasured(name string, t input.Tensor, head int) error {
	return fmt.Errorf("kvist/ahead: %s: %s head %d holds NaN or Inf: the future-attention error cannot be measured: %w",
		name, t.Name(), head, quant.ErrRange)
}
