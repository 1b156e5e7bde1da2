// SPDX-License-Identifier: Apache-2.0

package backend

import "context"

// MaxResidualOrder bounds Residuals.Order.
const MaxResidualOrder = 64

// Residuals asks how far rows are from a linear prediction by the rows before them.
type Residuals struct {
	// X is [Order + rows, Dim], finite: the rows before the first one stand at the front.
	X   []float32
	Dim int
	// Weights is [rows, Order], finite: row r is predicted as the sum of Weights[r, i] times the row
	// i + 1 before it. Each row may have its own weights, as they were when it came.
	Weights []float64
	Order   int // 0 to MaxResidualOrder. 0: nothing is predicted
}

// Residual is what is left of a row, and the row: sums of squares.
type Residual struct{ Left, Own float64 }

// Predictor is a backend that compares rows with their predictions. It is apart from Backend, which
// a cache can do without. Weights come from outside: learning them goes row by row, this does not.
type Predictor interface {
	// Residuals writes one Residual a row to out. All is float64, without contraction: a row less
	// its predictors, the newest first; squares summed in 32 lanes, value d in lane d mod 32; and
	// lane i takes in lane i + n for n = 16, 8, 4, 2, 1. Results are the same on all backends, as long
	// as no sum overflows: such a row is not a finite number.
	//
	// Errors: quant.ErrShape, quant.ErrRange, quant.ErrTooLarge, quant.ErrClosed; nothing is
	// written then.
	Residuals(ctx context.Context, r *Residuals, out []Residual) error
}
