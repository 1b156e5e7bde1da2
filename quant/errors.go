// SPDX-License-Identifier: Apache-2.0

package quant

import "errors"

// Category errors. Every error that kvist returns for a reason a caller can act on matches exactly
// one of these with errors.Is. Its text names the object; typed errors of other packages, such as
// container.CorruptError and capture.FormatError, hold the place.
var (
	// ErrShape: the lengths, dimensions or indices of a call do not fit together. Fix the call.
	ErrShape = errors.New("shape mismatch")
	// ErrCorrupt: stored bytes are not what was written: a failed checksum, an impossible
	// field, a truncated file. Fetch the data again, or salvage what is intact.
	ErrCorrupt = errors.New("corrupt data")
	// ErrVersion: the data is of a format version that this build cannot read.
	ErrVersion = errors.New("unsupported version")
	// ErrUnsupported: the request or data is well-formed, but this build or backend does not support
	// it.
	ErrUnsupported = errors.New("not supported")
	// ErrUnavailable: no usable device. Choose another backend.
	ErrUnavailable = errors.New("device not available")
	// ErrBudget: no plan fits the budget; raised before any work is done.
	ErrBudget = errors.New("budget cannot be met")
	// ErrFull: a live cache cannot take the next token even at its lowest levels.
	ErrFull = errors.New("cache is full")
	// ErrTooLarge: a reader limit was hit. Raise the limit if the data is trusted.
	ErrTooLarge = errors.New("limit exceeded")
	// ErrClosed: the object was closed before the call.
	ErrClosed = errors.New("already closed")
	// ErrRange: a value cannot be represented by the coding asked for: NaN, an infinity, or a
	// magnitude beyond the range of the coding's scale. Nothing was stored in its place.
	ErrRange = errors.New("value not representable")
)
