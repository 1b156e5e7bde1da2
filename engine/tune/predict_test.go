// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// Predictions are those that plans are made from.
func TestPredict(t *testing.T) {
	src, be := opened(t, "../../testdata/smollm2-sqlite-1k.safetensors"), openCPU(t)
	lm2 := quant.Coding{Format: quant.LM2, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}
	lm4 := quant.Coding{Format: quant.LM4, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}
	cfg, err := kvfile.ParseConfig("bits=3 importance=none")
	require.NoError(t, err)
	coarse, err := tune.Predict(t.Context(), src, be, cfg, lm2, lm4)
	require.NoError(t, err)
	require.Len(t, coarse, len(src.Info().Layers)*src.Info().Geometry.KVHeads)
	fine, err := tune.Predict(t.Context(), src, be, cfg, lm4, lm4)
	require.NoError(t, err)
	var sum float64
	for i, d := range coarse {
		require.Equal(t, src.Info().Layers[i/3], d.Layer)
		require.Equal(t, i%3, d.KVHead)
		require.Greater(t, d.K, fine[i].K)
		require.Equal(t, d.V, fine[i].V)
		sum += fine[i].K + fine[i].V
	}
	// Result.Predicted is rehearsed, and sinks change it by next to nothing.
	fixed, err := kvfile.ParseConfig("k=lm4+len+s8 v=lm4+len+s8 importance=none")
	require.NoError(t, err)
	res, err := kvfile.Compress(t.Context(), src, io.Discard, kvfile.Options{Config: &fixed, Backend: be})
	require.NoError(t, err)
	require.InEpsilon(t, res.Predicted, sum, 0.35)

	rows := opened(t, "../../testdata/minilm-queries-256x384.npy")
	_, err = tune.Predict(t.Context(), rows, be, cfg, lm2, lm4)
	require.ErrorIs(t, err, quant.ErrShape)
}
