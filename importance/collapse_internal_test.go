// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTopOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		p := make([]float64, 1+rng.IntN(60))
		for i := range p {
			p[i] = float64(rng.IntN(40)) // some are equal
		}
		sorted := slices.Sorted(slices.Values(p))
		n := rng.IntN(1 + len(p))
		require.Equal(t, sorted[len(p)-n:], topOf(slices.Clone(p), n), "%d of %v", n, p)
	}
}
