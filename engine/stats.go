// SPDX-License-Identifier: Apache-2.0

package engine

// Stats describe a cache at one time.
type Stats struct {
	Refusals uint64 // steps and sequences that were refused for want of memory
}
