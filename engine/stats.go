// SPDX-License-Identifier: Apache-2.0

package engine

// Stats describe a cache at one time.
type Stats struct {
	Steps    uint64 // committed
	Units    uint64 // of work that pressure did: sides of blocks recoded, blocks dropped
	Dropped  uint64 // blocks
	Refusals uint64 // steps and sequences that were refused for want of memory
}
