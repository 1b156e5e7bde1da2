// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// CorruptError says where a payload is damaged. It matches quant.ErrCorrupt.
type CorruptError struct {
	What   string // the part at fault: "parameters", "side stream", "lane"
	Head   int    // KV head, -1 where it has no meaning
	Side   int    // 0 K, 1 V, -1 where it has no meaning
	Offset int    // in the payload
	Err    error  // the cause; wraps quant.ErrCorrupt
}

// Error names the part, its place and the cause.
func (e *CorruptError) Error() string {
	s := "kvist/archive: " + e.What
	if e.Head >= 0 {
		s += fmt.Sprintf(" of head %d", e.Head)
	}
	if e.Side >= 0 {
		s += " of " + [2]string{"K", "V"}[e.Side&1]
	}
	return fmt.Sprintf("%s at offset %d: %v", s, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

func corrupt(what string, head, side, off int, format string, args ...any) error {
	return &CorruptError{What: what, Head: head, Side: side, Offset: off,
		Err: fmt.Errorf(format+": %w", append(args, quant.ErrCorrupt)...)}
}

func shapef(format string, args ...any) error {
	return fmt.Errorf("kvist/archive: "+format+": %w", append(args, quant.ErrShape)...)
}

func versionf(what string, v, want uint64) error {
	return fmt.Errorf("kvist/archive: %s of version %d, this build reads %d: %w", what, v, want, quant.ErrVersion)
}

// RangeError says which row of a segment the transform mode cannot code. It matches quant.ErrRange.
type RangeError struct {
	Lane, Row int
	Value     float32 // the value at fault, or the size of the lane's rows
	Err       error   // the cause; wraps quant.ErrRange
}

// Error names the place and the cause.
func (e *RangeError) Error() string {
	return fmt.Sprintf("kvist/archive: lane %d row %d: %v", e.Lane, e.Row, e.Err)
}

// Unwrap returns the cause.
func (e *RangeError) Unwrap() error { return e.Err }
