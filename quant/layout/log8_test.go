// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLog8_Derivation(t *testing.T) {
	for i := range log8Frac {
		require.Equal(t, float32(math.Exp2(-float64(i)/16)), log8Frac[i])
		require.Equal(t, float32(math.Exp2(-(float64(i)+0.5)/16)), log8Mid[i])
	}
	const base = 3.7
	for k := range 255 {
		s := Log8Scale(base, uint8(k))
		require.InEpsilon(t, base*math.Exp2(-float64(k)/16), s, 2e-7)
		require.Less(t, Log8Bound(base, uint8(k)), s)
		if k < 254 {
			require.Greater(t, Log8Bound(base, uint8(k)), Log8Scale(base, uint8(k+1)))
		}
	}
	require.Zero(t, Log8Scale(base, Log8Zero))
}
