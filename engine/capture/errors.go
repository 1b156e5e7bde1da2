// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Sections of a file, as FormatError names them.
const (
	SectionFile     = "file"     // the file as a whole: its kind, its size
	SectionHeader   = "header"   // the header's bytes
	SectionMetadata = "metadata" // the text map of a safetensors header
	SectionTensor   = "tensor"   // declaration or data of the tensor that is named
)

// FormatError says where a file is not what it should be. errors.Is sees the category through
// it: quant.ErrCorrupt, ErrVersion, ErrUnsupported or ErrTooLarge, or the error of the reader.
type FormatError struct {
	File    string // as given to Open or New
	Section string // one of the Section constants
	Tensor  string // name of the tensor at fault; "" for none, and for the one of an .npy
	Offset  int64  // byte of the file, -1 where no byte is to blame
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

// callErrorf is an error of the caller: ErrShape, in the form of the house.
func callErrorf(format string, args ...any) error {
	return fmt.Errorf("kvist/capture: "+format+": %w", append(args, quant.ErrShape)...)
}

func (s *Source) formatError(section, tensor string, off int64, cause error) error {
	return &FormatError{File: s.name, Section: section, Tensor: tensor, Offset: off, Err: cause}
}

// readFull fills dst from byte off of the file. A file that ends too early is corrupt: its size
// was checked when it was opened.
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
		err = fmt.Errorf("%d of %d bytes are there: %w: %w",
			n, len(dst), io.ErrUnexpectedEOF, quant.ErrCorrupt)
	default:
		err = fmt.Errorf("%d bytes: %w", len(dst), err)
	}
	return s.formatError(section, tensor, off, err)
}
