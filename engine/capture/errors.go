// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// The sections of a file that a FormatError names.
const (
	sectionFile     = "file"     // the file as a whole: its kind, its size
	sectionHeader   = "header"   // the header's bytes
	sectionMetadata = "metadata" // the text map of a safetensors header
	sectionTensor   = "tensor"   // declaration or data of the named tensor
)

// FormatError says where and why a file is invalid. It matches quant.ErrCorrupt, ErrVersion,
// ErrUnsupported or ErrTooLarge, or the error of the reader.
type FormatError struct {
	File    string // name given to Open or New
	Section string // "file", "header", "metadata" or "tensor"
	Tensor  string // name of the wrong tensor; "" for none, and for the tensor of an .npy
	Offset  int64  // byte of the file, -1 if the error is not at one byte
	Err     error
}

// Error returns "kvist/capture: read FILE: SECTION at byte N: cause".
func (e *FormatError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kvist/capture: read %s: %s", e.File, e.Section)
	if e.Tensor != "" {
		fmt.Fprintf(&b, " %q", e.Tensor)
	}
	if e.Offset >= 0 {
		fmt.Fprintf(&b, " at byte %d", e.Offset)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns the cause.
func (e *FormatError) Unwrap() error { return e.Err }

// corruptf makes a cause of category quant.ErrCorrupt, which stands last.
func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, quant.ErrCorrupt)...)
}

// unsupportedf makes a cause of category quant.ErrUnsupported: "not supported: what". The text ends
// with what would make it work.
func unsupportedf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{quant.ErrUnsupported}, args...)...)
}

func tooLargef(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, quant.ErrTooLarge)...)
}

// callErrorf returns the error for a wrong argument: quant.ErrShape.
func callErrorf(format string, args ...any) error {
	return fmt.Errorf("kvist/capture: "+format+": %w", append(args, quant.ErrShape)...)
}
