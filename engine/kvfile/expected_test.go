// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
)

// What a profile knows of queries takes the place of those that a capture lacks: the error of attention falls at least
// 10 times (bench/results/llama-state.md has the measurements), and is at most 1.5 times that with the queries.
func TestProfile_ExpectsQueries(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	p, err := profile.Open("../../testdata/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	without, err := p.WithQueries(nil, nil)
	require.NoError(t, err)
	none := withoutQueries(t, src)
	future := func(p *profile.Profile, queries bool) (float64, *kvfile.Result) {
		cfg, in := config(t, "bits=2 form=archive"), none
		if queries {
			in = src
		}
		require.NoError(t, cfg.Apply(p))
		b, res := compress(t, in, be, cfg)
		cmp, err := report.Compare(context.Background(), reader(t, b), src,
			report.Options{Backend: be, Profiles: []*profile.Profile{p}})
		require.NoError(t, err)
		return cmp.FutureError, res
	}
	real, res := future(p, true)
	require.Zero(t, res.Importance.Expected)
	expected, res := future(p, false)
	require.Equal(t, 12, res.Importance.Expected)
	require.Zero(t, res.Importance.Unweighed)
	blind, res := future(without, false)
	require.Equal(t, 12, res.Importance.Unweighed)
	t.Logf("with queries %.5f, expected %.5f, neither %.5f", real, expected, blind)
	require.Less(t, 10*expected, blind)
	require.Less(t, expected, 1.5*real)
}
