// SPDX-License-Identifier: Apache-2.0

package container

import "fmt"

// Version is the version of the file format. It is independent of the module's version. It rises
// only if readers of the version below could not read the new files. Numbers are never reused; a
// retired number stays in the list as _.
type Version uint16

// The versions.
const (
	_ Version = iota
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

// String returns "v1" and so on.
func (v Version) String() string { return fmt.Sprintf("v%d", uint16(v)) }

// supported reports whether this build reads files of version v.
func (v Version) supported() bool { return v >= MinSupported && v <= MaxSupported }

// oldestVersion returns the version that the writer stamps on a file: the oldest that can express
// h, so that older readers can read the file if possible.
func oldestVersion(Header) Version { return v1 }
