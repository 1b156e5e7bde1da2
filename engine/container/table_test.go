// SPDX-License-Identifier: Apache-2.0

package container

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// Every coding has two bytes of its own, and all other bytes are refused but those of no coding.
func TestPackCoding(t *testing.T) {
	for _, c := range quanttest.Codings() {
		back, err := unpackCoding(packCoding(c))
		require.NoError(t, err)
		require.Equal(t, c, back)
	}
	n := 0
	for a := range 256 {
		for b := range 256 {
			c, err := unpackCoding([2]byte{byte(a), byte(b)})
			if err != nil {
				require.ErrorIs(t, err, quant.ErrUnsupported)
				continue
			}
			n++
			require.Equal(t, [2]byte{byte(a), byte(b)}, packCoding(c), "two codings share bytes")
		}
	}
	require.Equal(t, len(quanttest.Codings())+1, n)
}
