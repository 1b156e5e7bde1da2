// SPDX-License-Identifier: Apache-2.0

package container

// The versions of the file format, which are independent of the module's version. They rise only if
// readers of the version below could not read the new files. Numbers are never reused; a retired
// number stays in the list as _.
const (
	_ = iota
	// v1 is the first format: header fields, records of (layer, segment) with palette and
	// range-coded table, side tensors, index, trailer. Since kvist v0.1.0.
	v1
)

// MinSupported and MaxSupported bound the versions that this build reads. Files of a released
// version stay readable.
const (
	MinSupported = v1
	MaxSupported = v1
)

// supported reports whether this build reads files of version v.
func supported(v int) bool { return v >= MinSupported && v <= MaxSupported }

// oldestVersion returns the version that the writer stamps on a file: the oldest that can express
// h, so that older readers can read the file if possible.
func oldestVersion(Header) int { return v1 }
