// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// ValueError says which value a signal cannot be computed from. errors.Is sees through it.
type ValueError struct {
	What  string  // what was handed in: "k", "sum", "surprisal", ...
	Index int     // the row or token, counted from the start of what was handed in
	Value float64 // the value
	Want  string  // what was expected of it
	Err   error   // quant.ErrRange
}

// Error names the input, the row, the value and what was expected.
func (e *ValueError) Error() string {
	return fmt.Sprintf("kvist/importance: %s of row %d: %v, want %s: %v", e.What, e.Index, e.Value,
		e.Want, e.Err)
}

// Unwrap returns the cause.
func (e *ValueError) Unwrap() error { return e.Err }

func shapeErr(format string, args ...any) error {
	return fmt.Errorf("kvist/importance: "+format+": %w", append(args, quant.ErrShape)...)
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// checkRows accepts whole rows of finite values. A dim of 0 takes any.
func checkRows(what string, x quant.Rows, dim int) error {
	if len(x.Data) == 0 && (x.Dim == dim || x.Dim == 0) {
		return nil
	}
	if err := x.Validate(); err != nil {
		return fmt.Errorf("kvist/importance: %s: %w", what, err)
	}
	if dim != 0 && x.Dim != dim {
		return shapeErr("%s: rows of %d values, want %d", what, x.Dim, dim)
	}
	for i, v := range x.Data {
		if !finite(float64(v)) {
			return &ValueError{what, i / x.Dim, float64(v), "a finite number", quant.ErrRange}
		}
	}
	return nil
}

// checkSignal accepts finite values from 0 up.
func checkSignal(what string, x []float64) error {
	for i, v := range x {
		if !(v >= 0) || math.IsInf(v, 0) {
			return &ValueError{what, i, v, "a finite number from 0 up", quant.ErrRange}
		}
	}
	return nil
}

func tooLarge(format string, args ...any) error {
	return fmt.Errorf("kvist/importance: "+format+": %w", append(args, quant.ErrTooLarge)...)
}
