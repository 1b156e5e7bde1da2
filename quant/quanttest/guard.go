// SPDX-License-Identifier: Apache-2.0

package quanttest

import (
	"bytes"
	"testing"
)

const guardBytes = 64

// Guarded is a byte buffer between two zones that no one may write to.
type Guarded struct {
	Bytes []byte
	all   []byte
}

// NewGuarded returns n bytes between canaries. The bytes start as garbage, so that code that
// forgets to write one is found.
func NewGuarded(n int) *Guarded {
	all := bytes.Repeat([]byte{0xa5}, n+2*guardBytes)
	return &Guarded{Bytes: all[guardBytes : guardBytes+n : guardBytes+n], all: all}
}

// Check fails the test where a canary was written.
func (g *Guarded) Check(t testing.TB) {
	t.Helper()
	n := len(g.all)
	for i, b := range g.all {
		if (i < guardBytes || i >= n-guardBytes) && b != 0xa5 {
			t.Fatalf("byte %d of the buffer was written (buffer has %d)", i-guardBytes,
				n-2*guardBytes)
		}
	}
}
