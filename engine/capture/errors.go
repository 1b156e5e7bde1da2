// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Sections of a file in a FormatError.
const (
	SectionFile     = "file"     // the file as a whole: its kind, its size
	SectionHeader   = "header"   // the header's bytes
	SectionMetadata = "metadata" // the text map of a safetensors header
	SectionTensor   = "tensor"   // declaration or data of the named tensor
)

// FormatError says where and why a file is invalid. It matches quant.ErrCorrupt, ErrVersion,
// ErrUnsupported or ErrTooLarge, or the error of the reader.
type FormatError struct {
	File    string // name given to Open or New
	Section string // one of the Section constants
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

func (s *Source) formatError(section, tensor string, off int64, cause error) error {
	return &FormatError{File: s.name, Section: section, Tensor: tensor, Offset: off, Err: cause}
}

// readFull fills dst from byte off of the file. The size was checked at Open, so a file that ends
// too early is corrupt.
func (s *Source) readFull(section, tensor string, off int64, dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	n, err := s.r.ReadAt(dst, off)
	if n >= len(dst) {
		return nil
	}
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("the file ends after %d of %d bytes: %w: %w",
			n, len(dst), io.ErrUnexpectedEOF, quant.ErrCorrupt)
	default:
		err = fmt.Errorf("%d bytes: %w", len(dst), err)
	}
	return s.formatError(section, tensor, off, err)
}
