// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package attend

import "testing"

// guarded returns n bytes; faulting pages are asked for on Linux only.
func guarded(_ testing.TB, n int) []byte { return make([]byte, n) }
