// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// residualBytes bounds the rows of a launch, beyond one row and its predecessors.
const residualBytes = 16 << 20

var _ backend.Predictor = (*Backend)(nil)

// Residuals compares rows with their predictions; see backend.Predictor.
func (b *Backend) Residuals(ctx context.Context, r *backend.Residuals, out []backend.Residual) error {
	if err := b.open(ctx, backend.OpRelevance); err != nil {
		return err
	}
	if err := args.Residuals(r, out); err != nil {
		return fmt.Errorf("kvist/cuda: residuals: %w", err)
	}
	done := make([]backend.Residual, len(out))
	wave := max(1, residualBytes/(4*r.Dim+8*r.Order)-r.Order)
	for row := 0; row < len(out); row += wave {
		if err := cancelled(ctx, backend.OpRelevance); err != nil {
			return err
		}
		n := min(wave, len(out)-row)
		part := &backend.Residuals{Dim: r.Dim, Order: r.Order, X: r.X[row*r.Dim : (row+n+r.Order)*r.Dim],
			Weights: r.Weights[row*r.Order : (row+n)*r.Order]}
		if err := b.withLane(func(l *lane) error { return residualWave(l, part, done[row:row+n]) }); err != nil {
			return err
		}
	}
	copy(out, done)
	return nil
}

// residualWave is one launch.
func residualWave(l *lane, r *backend.Residuals, out []backend.Residual) error {
	var y layout
	xs, ws := room[float32](&y, len(r.X)), room[float64](&y, len(r.Weights))
	inputs := y.size
	os := room[backend.Residual](&y, len(out))
	if y.bad {
		return fmt.Errorf("kvist/cuda: residuals: %d rows: %w", len(out), quant.ErrTooLarge)
	}
	if err := l.ready(y.size, y.size); err != nil {
		return err
	}
	copy(slice[float32](l, xs), r.X)
	copy(slice[float64](l, ws), r.Weights)
	if err := l.send(inputs); err != nil {
		return err
	}
	p := kernels.ResidualParams{X: l.address(xs), Weights: l.address(ws), Out: l.address(os),
		Rows: int32(len(out)), Dim: int32(r.Dim), Order: int32(r.Order)}
	err := l.timed(func() error {
		return start(l, "kvist_residual", [2]int{len(out), 1}, 32, 2*32*8, p)
	})
	if err == nil {
		err = l.fetch(os.at, os.n)
	}
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	copy(out, slice[backend.Residual](l, os))
	return l.tick()
}
