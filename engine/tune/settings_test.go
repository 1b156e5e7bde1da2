// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/importance"
)

// TestDefaultSpace_StartsFromTheDefaults checks that a search starts from what compress does
// without a profile, and that compress accepts every value of the grids.
func TestDefaultSpace_StartsFromTheDefaults(t *testing.T) {
	space := tune.DefaultSpace()
	require.NoError(t, space.Validate())
	cfg := kvfile.DefaultConfig()
	weights, err := importance.ParseWeighting("default")
	require.NoError(t, err)
	defaults := profile.Params{"importance": weights.String()}
	for f := range strings.FieldsSeq(cfg.String()) {
		k, v, _ := strings.Cut(f, "=")
		if k != "importance" {
			defaults[k] = v
		}
	}
	for _, p := range space {
		v, err := space.Value(defaults, p.Name)
		require.NoError(t, err)
		require.Equal(t, p.Start, v, p.Name)
		for _, g := range p.Grid {
			require.NotEqual(t, p.Start, g, p.Name)
			params, err := space.Replace(profile.Params{"importance": "default"}, p.Name, g)
			require.NoError(t, err)
			_, err = cfg.WithParams(params)
			require.NoError(t, err, "%s=%s", p.Name, g)
			got, err := space.Value(params, p.Name)
			require.NoError(t, err)
			require.Equal(t, g, got)
		}
	}
	_, err = space.Value(defaults, "brightness")
	require.Error(t, err)
	_, err = space.Replace(defaults, "brightness", "11")
	require.Error(t, err)
}
