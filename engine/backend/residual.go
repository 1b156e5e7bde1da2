// SPDX-License-Identifier: Apache-2.0

package backend

import "context"

// MaxResidualOrder bounds Residuals.Order.
const MaxResidualOrder = 64

// Residuals is a request to compare rows with a linear prediction by the rows before them.
type Residuals struct {
	// X is [Order + rows, Dim], finite. The Order rows before the first compared row come first.
	X   []float32
	Dim int
	// Weights is [rows, Order], finite. The prediction of row r is the sum of Weights[r, i] times
	// the row i + 1 places before it. Each row has its own weights.
	Weights []float64
	Order   int // 0 to MaxResidualOrder. 0 predicts nothing
}

// Residual holds the sum of squares of a row's prediction error and that of the row itself.
type Residual struct{ Left, Own float64 }

// Predictor is a backend that compares rows with their predictions. It is optional; a cache works
// without it. The caller supplies the weights, because learning them is sequential and comparing is
// not.
type Predictor interface {
	// Residuals writes one Residual per row to out. The order of operations is fixed: float64
	// without fused multiply-add; subtract the predictors from the row, newest first; add squares
	// in 32 lanes, value d in lane d mod 32; then add lane i + n to lane i for n = 16, 8, 4, 2, 1.
	// Results are therefore the same on all backends, unless a sum overflows to a non-finite
	// number.
	//
	// Errors: quant.ErrShape, quant.ErrRange, quant.ErrTooLarge, quant.ErrClosed; nothing is
	// written then.
	Residuals(ctx context.Context, r *Residuals, out []Residual) error
}
