// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
)

// residualRows is the number of rows that a worker takes at a time.
const residualRows = 256

var _ backend.Predictor = (*Backend)(nil)

// Residuals compares rows with their predictions; see backend.Predictor. It is plain Go.
func (b *Backend) Residuals(ctx context.Context, r *backend.Residuals, out []backend.Residual) error {
	turn, err := b.open(ctx, backend.OpRelevance)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	if err := args.Residuals(r, out); err != nil {
		return fmt.Errorf("kvist/cpu: residuals: %w", err)
	}
	done := make([]backend.Residual, len(out))
	pieces := (len(out) + residualRows - 1) / residualRows
	err = b.workers.run(ctx, backend.OpRelevance, pieces, func(i int) error {
		for row := i * residualRows; row < min(len(out), (i+1)*residualRows); row++ {
			done[row] = residual(r, row)
		}
		return nil
	})
	if err == nil {
		copy(out, done)
	}
	return err
}

// residual processes one row. The conversions prevent fused multiply-add on every machine.
func residual(r *backend.Residuals, row int) backend.Residual {
	var left, own [32]float64
	at := (row + r.Order) * r.Dim
	weights := r.Weights[row*r.Order : (row+1)*r.Order]
	for d := range r.Dim {
		v := float64(r.X[at+d])
		x := v
		for i, w := range weights {
			x -= float64(w * float64(r.X[at+d-(i+1)*r.Dim]))
		}
		left[d%32] += float64(x * x)
		own[d%32] += float64(v * v)
	}
	for step := 16; step > 0; step /= 2 {
		for i := range step {
			left[i] += left[i+step]
			own[i] += own[i+step]
		}
	}
	return backend.Residual{Left: left[0], Own: own[0]}
}
