// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/backendtest"
	"github.com/kvist-project/kvist/kernels/emu"
)

func TestBackend_Suite(t *testing.T) {
	library := emu.Build(t)
	backendtest.RunBackend(t, func(t *testing.T) backend.Backend {
		b, err := Open(Options{Library: library, Device: AnyDevice, NoSelfTest: true})
		require.NoError(t, err)
		return b
	})
}
