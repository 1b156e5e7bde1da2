// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// CallError says which call failed and for which sequence. It unwraps to the cause, so errors.Is finds
// the category (quant.ErrShape and so on).
type CallError struct {
	Call     string
	Sequence uint64 // 0 if the call concerns no single sequence
	Err      error
}

// Error names the call and the sequence.
func (e *CallError) Error() string {
	if e.Sequence == 0 {
		return fmt.Sprintf("kvist/engine: %s: %v", e.Call, e.Err)
	}
	return fmt.Sprintf("kvist/engine: %s, sequence %d: %v", e.Call, e.Sequence, e.Err)
}

// Unwrap returns the cause.
func (e *CallError) Unwrap() error { return e.Err }

// fail makes a *CallError. The format wraps one of quant's category errors.
func fail(call string, seq uint64, format string, args ...any) error {
	return &CallError{Call: call, Sequence: seq, Err: fmt.Errorf(format, args...)}
}

// wrap adds call and sequence to an error of a backend or of an inner call.
func wrap(call string, seq uint64, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*CallError); ok { // it already says where
		return e
	}
	return &CallError{Call: call, Sequence: seq, Err: err}
}

func closed(call string, seq uint64, what string) error {
	return fail(call, seq, "the %s is closed: %w", what, quant.ErrClosed)
}
