// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/engine/profile"
)

// modelProfile is the profile of the test model, from the calibration texts.
const modelProfile = "../../testdata/smollm2.kvprofile"

// TestArchiveSteps_Measured runs the measurement on a few tokens: steps differ between layers and are
// bounded.
func TestArchiveSteps_Measured(t *testing.T) {
	m := modeltest.SmolLM2(t)
	p, err := profile.Open(modelProfile, profile.Limits{})
	require.NoError(t, err)
	o := quality.Options{Context: 96, Next: 4}
	s, err := ArchiveSteps(context.Background(), m, []quality.Input{calibInput(t, m, o)}, p, 4, o)
	require.NoError(t, err)
	g := m.Geometry()
	require.Len(t, s.K, g.Layers*g.KVHeads)
	require.Len(t, s.V, g.Layers*g.KVHeads)
	differ := false
	for _, v := range append(s.K, s.V...) {
		require.LessOrEqual(t, v, float32(400))
		require.GreaterOrEqual(t, v, float32(-400))
		differ = differ || v != s.K[0]
	}
	require.True(t, differ)
}
