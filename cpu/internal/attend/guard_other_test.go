// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package attend

import "testing"

// guarded returns n bytes. Only Linux builds put a faulting page after them.
func guarded(_ testing.TB, n int) []byte { return make([]byte, n) }
