// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Residuals checks the arguments of Residuals.
func Residuals(r *backend.Residuals, out []backend.Residual) error {
	switch n := len(out); {
	case r.Dim < 1 || r.Dim > quant.MaxDim:
		return fmt.Errorf("rows of %d values, want 1 to %d: %w", r.Dim, quant.MaxDim, quant.ErrShape)
	case r.Order < 0 || r.Order > backend.MaxResidualOrder:
		return fmt.Errorf("order %d, want 0 to %d: %w", r.Order, backend.MaxResidualOrder, quant.ErrShape)
	case n > math.MaxInt32-r.Order:
		return fmt.Errorf("%d rows: %w", n, quant.ErrTooLarge)
	case len(r.X)%r.Dim != 0 || len(r.X)/r.Dim != n+r.Order:
		return fmt.Errorf("%d values, want %d + %d rows of %d: %w", len(r.X), r.Order, n, r.Dim, quant.ErrShape)
	case int64(len(r.Weights)) != int64(n)*int64(r.Order):
		return fmt.Errorf("%d weights, want %d for each of %d rows: %w", len(r.Weights), r.Order, n, quant.ErrShape)
	}
	for i, v := range r.X {
		if !finite(v) {
			return fmt.Errorf("row %d, value %d is %v: %w", i/r.Dim-r.Order, i%r.Dim, v, quant.ErrRange)
		}
	}
	for i, w := range r.Weights {
		if math.IsNaN(w) || math.IsInf(w, 0) {
			return fmt.Errorf("row %d, weight %d is %v: %w", i/r.Order, i%r.Order, w, quant.ErrRange)
		}
	}
	return nil
}
