// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// CorruptError says where and how a file is damaged. It matches quant.ErrCorrupt.
type CorruptError struct {
	File    string // the name given to Open
	Section string // "header", "record", "side tensor", "index", "trailer", "bytes" (between sections)
	Layer   int    // index into the stored layers or tensors, -1 if not applicable
	Segment int    // -1 if not applicable
	Head    int    // KV head, -1 if not applicable
	Block   int    // within the head, -1 if not applicable
	Offset  int64  // of the wrong field in the file
	Want    any    // the expected value, nil if there is no single one
	Got     any    // the value in the file
	Err     error  // the cause; wraps quant.ErrCorrupt
}

// Error names the file, the section, the offset, and what was expected and found.
func (e *CorruptError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "kvist/container: reading %s: %s", e.File, e.Section)
	for _, p := range []struct {
		name string
		i    int
	}{{"layer", e.Layer}, {"segment", e.Segment}, {"head", e.Head}, {"block", e.Block}} {
		if p.i >= 0 {
			fmt.Fprintf(&s, " %s %d", p.name, p.i)
		}
	}
	fmt.Fprintf(&s, " at offset %d: ", e.Offset)
	if e.Want != nil {
		fmt.Fprintf(&s, "want %v, got %v: ", e.Want, e.Got)
	} else if e.Got != nil {
		fmt.Fprintf(&s, "got %v: ", e.Got)
	}
	fmt.Fprintf(&s, "%v", e.Err)
	return s.String()
}

// Unwrap returns the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// RefusedError says where a file needs something that this build or the Limits do not allow. The
// file may be intact. It matches quant.ErrVersion, quant.ErrUnsupported or quant.ErrTooLarge.
type RefusedError struct {
	File    string
	Section string
	Layer   int   // as CorruptError.Layer, -1 where it has no meaning
	Segment int   // -1 where it has no meaning
	Offset  int64 // -1 where the whole record is meant
	Err     error
}

// Error names the file, the section, the offset and the reason.
func (e *RefusedError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "kvist/container: reading %s: %s", e.File, e.Section)
	if e.Layer >= 0 && e.Segment >= 0 && e.Section == "record" {
		fmt.Fprintf(&s, " layer %d segment %d", e.Layer, e.Segment)
	}
	if e.Offset >= 0 {
		fmt.Fprintf(&s, " at offset %d", e.Offset)
	}
	fmt.Fprintf(&s, ": %v", e.Err)
	return s.String()
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// place is the parser's current position. It creates the errors.
type place struct {
	file, section               string
	layer, segment, head, block int
}

func (p place) in(section string) place {
	return place{file: p.file, section: section, layer: -1, segment: -1, head: -1, block: -1}
}

func (p place) corrupt(off int64, what string, want, got any) error {
	return &CorruptError{
		File: p.file, Section: p.section, Layer: p.layer, Segment: p.segment, Head: p.head,
		Block: p.block, Offset: off, Want: want, Got: got,
		Err: fmt.Errorf("%s: %w", what, quant.ErrCorrupt),
	}
}

func (p place) refuse(off int64, err error) error {
	return &RefusedError{File: p.file, Section: p.section, Layer: p.layer, Segment: p.segment,
		Offset: off, Err: err}
}

func (p place) tooLarge(off int64, what string, limit, got any) error {
	return p.refuse(off, fmt.Errorf("%s is %v, the limit is %v: %w", what, got, limit,
		quant.ErrTooLarge))
}

// shapef returns the error for arguments that do not fit together.
func shapef(format string, args ...any) error {
	return fmt.Errorf("kvist/container: "+format+": %w", append(args, quant.ErrShape)...)
}
