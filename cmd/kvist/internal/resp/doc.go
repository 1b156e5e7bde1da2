// SPDX-License-Identifier: Apache-2.0

// Package resp serves values over Redis' protocol from memory, packed without loss, as the remote store of a cache of K
// and V such as LMCache's. It speaks what such clients ask for and no more; redcon parses it.
//
// Values are those of package packed. They go when they expire, and those unused for longest when the limit is reached.
// A value that is damaged in memory is not served: its key is removed.
//
// Bounds: connections; bytes of a value, which are refused as soon as they are announced; bytes of values that arrive at
// once on all connections; the time of a read in the middle of a command, and of a write. A connection keeps buffers of
// about twice its largest value until it ends.
package resp
