// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cuda/internal/driver"
)

// The stand-in computes the instructions of the integer kernels exactly as the PTX ISA defines them,
// and stops a kernel that misuses them.
func TestTwins_AreExact(t *testing.T) {
	s := newStandIn(t, "")
	api, err := driver.Load(s.library)
	require.NoError(t, err)
	at, err := api.Symbol("cuEmuTwins")
	require.NoError(t, err)
	for what, c := range []struct{ name, want string }{
		{"products of signed bytes", "0 wrong"},
		{"products of unsigned bytes", "0 wrong"},
		{"four matrices", "0 wrong"},
		{"two matrices", "0 wrong"},
		{"bytes of registers", "0 wrong"},
		{"copies that land late", "0 wrong"},
		{"copies that land early", "0 wrong"},
		{"a copy to a misaligned address", "twins: a misaligned address in shared memory"},
		{"a copy beyond the launch", "twins: an address beyond the shared memory of the launch"},
		{"a matrix at a misaligned address", "twins: a misaligned address in shared memory"},
	} {
		require.Equal(t, c.want, cString(driver.Call(at, uintptr(what))), c.name)
	}
}
