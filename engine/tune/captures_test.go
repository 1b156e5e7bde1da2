// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// TestCaptures_Search tunes the exponent of relevance on the capture in testdata.
func TestCaptures_Search(t *testing.T) {
	if testing.Short() {
		t.Skip("compresses a real capture several times")
	}
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	src, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	sources := []*capture.Source{src}
	obj, err := tune.NewCaptures(sources, []float64{2.5}, be)
	require.NoError(t, err)

	space := tune.Space{{Name: "importance.relevance", Start: "0", Grid: []string{"0.5"}},
		{Name: "row-bias", Start: "true", Grid: []string{"false"}}}
	res, err := tune.Search(context.Background(), space, obj, tune.Options{
		Base: profile.Params{"importance": "window=64,floor=0.1", "levels": "full"}})
	require.NoError(t, err)
	require.Len(t, res.Trail, 3)
	require.Contains(t, res.Best.Params["importance"], "relevance=0.5")
	require.Equal(t, "true", res.Best.Params["row-bias"])
	t.Logf("mean log error: %.3f without relevance, %.3f with", res.Start.Value, res.Best.Value)
	require.Less(t, res.Best.Value, res.Start.Value-0.3, "relevance pays")

	// A budget that cannot be met is not an error, but has the worst value.
	obj, err = tune.NewCaptures(sources, []float64{0.01}, be)
	require.NoError(t, err)
	v, err := obj.Evaluate(context.Background(), nil)
	require.NoError(t, err)
	require.True(t, math.IsInf(v, 1))
}

func TestCaptures_Refusals(t *testing.T) {
	_, err := tune.NewCaptures(nil, []float64{3}, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	npy, err := capture.Open("../../testdata/minilm-queries-256x384.npy", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, npy.Close()) }()
	_, err = tune.NewCaptures([]*capture.Source{npy}, []float64{3}, nil)
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = tune.NewCaptures([]*capture.Source{npy}, []float64{math.NaN()}, nil)
	require.ErrorIs(t, err, quant.ErrShape)
}
