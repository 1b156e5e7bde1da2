// SPDX-License-Identifier: Apache-2.0

package container

import "fmt"

// Version is the number of a file format. It is independent of the module's version: it rises
// only when a reader of the number below could not read what is written. Numbers are never
// reused; a retired one stays in the list as _.
type Version uint16

// The versions.
const (
	_ Version = iota
	// V1 is the first format: header fields, records of (layer, segment) with palette and
	// range-coded table, side tensors, index, trailer. Since kvist v0.1.0.
	V1
)

// MinSupported and MaxSupported bound the versions this build reads. A file of a version once
// written stays readable for ever.
const (
	MinSupported = V1
	MaxSupported = V1
)

// String returns "v1" and so on.
func (v Version) String() string { return fmt.Sprintf("v%d", uint16(v)) }

// Supported reports whether this build reads files of version v.
func (v Version) Supported() bool { return v >= MinSupported && v <= MaxSupported }

// oldestVersion is the version the writer stamps on a file: the oldest one that can express
// what h asks for, so that old readers keep reading where they can.
func oldestVersion(Header) Version { return V1 }
