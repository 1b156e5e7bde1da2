// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/importance"
)

// TestShippedProfile tests that the profile of the test model opens, fits captures of the model, and
// has the settings that its results page states.
func TestShippedProfile(t *testing.T) {
	p, err := profile.Open("../quality/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	src, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	require.NoError(t, p.Check(src.Info().Model, src.Info().Geometry))
	cfg := kvfile.DefaultConfig()
	require.NoError(t, cfg.Apply(p))
	want, err := importance.ParseWeighting("default")
	require.NoError(t, err)
	want.ValueNorm = 0.25
	got, err := importance.ParseWeighting(cfg.Importance)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, "kvist:2.75,profile=../quality/smollm2.kvprofile",
		method(t, "kvist:2.75,profile=../quality/smollm2.kvprofile").Name())
}
