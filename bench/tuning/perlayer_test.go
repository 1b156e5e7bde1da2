// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Layers with windows are measured like others, and the factors are what a profile of such a model takes.
func TestObjective_SensitivitiesOfWindows(t *testing.T) {
	f, err := gguf.Open(filepath.Join("..", "..", "engine", "model", "testdata", "models", "gemma3.gguf"))
	require.NoError(t, err)
	defer f.Close()
	m, err := model.Load(f, model.Options{}) // four layers, three with windows of 8
	require.NoError(t, err)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	in := quality.Input{Name: "random"}
	for range 60 {
		in.Tokens = append(in.Tokens, int32(rng.IntN(m.Vocab)))
	}
	ctx := context.Background()
	tu, err := New(ctx, m, []quality.Input{in}, nil, Options{Context: 48, Next: 12, Backend: be})
	require.NoError(t, err)
	s, err := tu.MeasureSensitivities(ctx, quant.Coding{Format: quant.LM2, Rule: quant.LengthKeeping}, false, 1, nil)
	require.NoError(t, err)
	require.Greater(t, s.All, 0.0)
	for i := range s.K {
		require.Greater(t, s.K[i], 0.0, "K of layer %d", i)
		require.Greater(t, s.V[i], 0.0, "V of layer %d", i)
		require.Greater(t, s.PredictedV[i], 0.0, "layer %d", i)
	}
	g, err := m.CacheGeometry()
	require.NoError(t, err)
	p, err := profile.New(m.Name, g)
	require.NoError(t, err)
	_, err = p.WithSensitivity(s.Factors(), nil)
	require.NoError(t, err)
	require.NoError(t, p.Check(m.Name, tu.texts[0].PerLayer().Geometry))
}
