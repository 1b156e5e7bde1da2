// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
)

// modelProfile is the profile of the test model, from the calibration texts.
const modelProfile = "../../testdata/smollm2.kvprofile"

// TestArchive_InTheModel holds the archive's claim on a shorter context of a text that nothing was
// fitted to: at 1.8 bits it diverges less than TurboQuant at 4.25.
func TestArchive_InTheModel(t *testing.T) {
	m := realModel(t)
	o := Options{Context: 512, Next: 128}
	in := evalInput(t, m, 4, o)
	res, err := EvaluateText(context.Background(), m, in, []Method{method(t, "tqmse4"),
		method(t, "kvist-archive:1.8,profile="+modelProfile)}, o)
	require.NoError(t, err)
	ref, archive := res.Prefill[0], res.Prefill[1]
	t.Logf("%s: KL %.5f at %.3f bits/value, %.5f at %.3f", in.Name, ref.KL, ref.BitsPerValue, archive.KL,
		archive.BitsPerValue)
	require.LessOrEqual(t, archive.BitsPerValue, 1.8)
	require.Less(t, archive.KL, ref.KL)
}

// TestArchiveSteps_Measured runs the measurement on very little: it must say something different of layers, and
// leave a profile that compresses.
func TestArchiveSteps_Measured(t *testing.T) {
	m := realModel(t)
	p, err := profile.Open(modelProfile, profile.Limits{})
	require.NoError(t, err)
	o := Options{Context: 96, Next: 4}
	s, err := ArchiveSteps(context.Background(), m, []Input{evalInput(t, m, 4, o)}, p, 4, o)
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
