// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/vectors"
	"github.com/kvist-project/kvist/quant"
)

// The index of embeddings that is scanned: as many values as all-MiniLM-L6-v2 has, 2 bits each.
const (
	embedDim   = 384
	embedBytes = 100
	embedBatch = 16 // queries of a call
)

// embedCases measure adding rows to an index of embeddings and searching it.
func embedCases(quick bool, threads int) []Case {
	rows := 50_000
	if quick {
		rows = 10_000
	}
	key := fmt.Sprintf("dim=%d/bytes=%d/rows=%d/threads=%d", embedDim, embedBytes, rows, threads)
	return []Case{{Names: []string{"embed/op=add/" + key, "embed/op=search/" + key}, Keep: true,
		Setup: func(ctx context.Context, e *Env) (*Ready, error) { return embedReady(ctx, e, rows) }}}
}

// embeddings returns rows whose components fall off as those of trained embeddings do.
func embeddings(n int, seed uint64) quant.Rows {
	x := gaussian(n*embedDim, seed)
	for i := range x {
		x[i] *= float32(math.Pow(float64(i%embedDim)+4, -0.6))
	}
	return quant.Rows{Data: x, Dim: embedDim}
}

func embedReady(ctx context.Context, e *Env, rows int) (*Ready, error) {
	const added = 2000
	x, err := vectors.Calibrate(embeddings(added, 1), vectors.Options{Bytes: embedBytes, Metric: vectors.Cosine})
	if err != nil {
		return nil, err
	}
	if err := x.Add(ctx, nil, embeddings(rows, 2)); err != nil {
		return nil, err
	}
	more, queries := embeddings(added, 3), embeddings(embedBatch, 4)
	ids := make([]uint64, added)
	for i := range ids {
		ids[i] = uint64(rows + i)
	}
	there := false
	add := &Work{Unit: "row", Units: added, Bytes: added * embedBytes, Plain: 2 * added * embedDim, Threads: e.Threads,
		Before: func(context.Context) error {
			if !there {
				return nil
			}
			there = false
			return x.Remove(ids...)
		},
		Run: func(ctx context.Context) error {
			err := x.Add(ctx, ids, more)
			there = err == nil
			return err
		}}
	n := float64(rows * embedBatch)
	search := &Work{Unit: "row and query", Units: n, Bytes: n * embedBytes, Plain: n * 2 * embedDim, Threads: e.Threads,
		Run: func(ctx context.Context) error {
			_, err := x.Search(ctx, queries, 10, vectors.SearchOptions{Workers: e.Threads})
			return err
		}}
	return &Ready{Work: []*Work{add, search}, Close: x.Close}, nil
}
