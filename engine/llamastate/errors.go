// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// FileError says where in a file reading failed. It wraps the cause, which matches quant.ErrCorrupt,
// quant.ErrVersion, quant.ErrUnsupported or quant.ErrTooLarge, or is an error of the reader below.
type FileError struct {
	File    string // name of the file, as given to Open
	Section string // "header", "tokens", "cells of cache 0", "layer 3 of cache 1"
	Offset  int64  // byte of the file, -1 where the fault has no place of its own
	Err     error
}

// Error names file, section, offset and cause.
func (e *FileError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("kvist/llamastate: read %s: %s: %v", e.File, e.Section, e.Err)
	}
	return fmt.Sprintf("kvist/llamastate: read %s: %s at byte %d: %v", e.File, e.Section, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// corruptf makes a cause of category quant.ErrCorrupt, which stands last.
func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, quant.ErrCorrupt)...)
}

// unsupportedf makes a cause of category quant.ErrUnsupported: "not supported: what".
func unsupportedf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{quant.ErrUnsupported}, args...)...)
}

// callErrorf returns the error for a wrong argument: quant.ErrShape.
func callErrorf(format string, args ...any) error {
	return fmt.Errorf("kvist/llamastate: "+format+": %w", append(args, quant.ErrShape)...)
}

func tooLargef(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, quant.ErrTooLarge)...)
}
