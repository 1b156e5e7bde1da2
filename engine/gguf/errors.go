// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// FileError says where in a file reading failed. It wraps the cause, which matches one of the
// category errors of package quant (ErrCorrupt, ErrVersion, ErrUnsupported, ErrTooLarge) or is an
// error of the reader below.
type FileError struct {
	File    string // name of the file, as given to the reader
	Section string // "header", `key "x"`, `tensor "x"`, `tokenizer`: what was being read
	Offset  int64  // byte offset in the file, -1 where the fault has no place of its own
	Err     error
}

// Error names file, section, offset and cause.
func (e *FileError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("kvist/gguf: read %s: %s: %v", e.File, e.Section, e.Err)
	}
	return fmt.Sprintf("kvist/gguf: read %s: %s at byte %d: %v", e.File, e.Section, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

func corruptf(format string, a ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), quant.ErrCorrupt)
}

// unsupportedf makes a cause of category quant.ErrUnsupported: "not supported: what".
func unsupportedf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", quant.ErrUnsupported, fmt.Sprintf(format, a...))
}

func tooLargef(format string, a ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), quant.ErrTooLarge)
}
