// SPDX-License-Identifier: Apache-2.0

package offline

// SetKeptBytes sets the bound on records that are kept from the search to the writing, and returns
// what sets it back.
func SetKeptBytes(n int64) (restore func()) {
	old := keptBytes
	keptBytes = n
	return func() { keptBytes = old }
}
