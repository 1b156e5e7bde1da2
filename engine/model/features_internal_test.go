// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/stretchr/testify/require"
)

// eachLayer returns a change of the attention of every layer.
func eachLayer(change func(a *LayerAttention)) func(m *Model) {
	return func(m *Model) {
		for l := range m.layerAttention {
			change(&m.layerAttention[l])
		}
	}
}

func eachWeight(change func(w *layerWeights)) func(m *Model) {
	return func(m *Model) {
		for l := range m.layers {
			change(&m.layers[l])
		}
	}
}

var (
	noWindow = eachLayer(func(a *LayerAttention) { a.Window = 0 })
	rootD    = eachLayer(func(a *LayerAttention) { a.Scale = 0.25 })
	noQNorm  = eachWeight(func(w *layerWeights) { w.qNorm, w.kNorm = nil, nil })
	noPost   = eachWeight(func(w *layerWeights) { w.attnPostNorm, w.ffnPostNorm = nil, nil })
	noBias   = eachWeight(func(w *layerWeights) { w.qkvBias = nil })
	ropeEach = func(m *Model) { clear(m.layerRope) }
	ropeBase = func(m *Model) { m.ropes[0] = newRope(m.ropes[0].dim, 10000, ropeScaling{factor: 1, attnFactor: 1}) }
	otherAct = func(m *Model) {
		a := *m.arch
		a.gelu = !a.gelu
		m.arch = &a
	}
)

// TestReference_FeaturesMatter takes one feature at a time from the reference models. The logits must
// move by at least ten times what TestReference_Logits allows: a model in which a window or a soft cap
// changes nothing would test nothing.
func TestReference_FeaturesMatter(t *testing.T) {
	for _, c := range []struct {
		model, feature string
		without        func(m *Model)
	}{
		{"llama", "biases", noBias}, {"llama", "RoPE factors", ropeBase},
		{"llama", "output bias", eachWeight(func(w *layerWeights) { w.oBias = nil })},
		{"llama", "output of its own", func(m *Model) { m.output = m.embed }},
		{"llama-yarn", "YaRN", ropeBase}, {"mistral", "window", noWindow},
		{"mistral", "window less one", eachLayer(func(a *LayerAttention) { a.Window-- })},
		{"smollm3", "layer without RoPE", ropeEach},
		{"qwen2", "biases", noBias}, {"qwen2", "RoPE base", ropeBase}, {"qwen3", "QK norm", noQNorm},
		{"gemma2", "window", noWindow}, {"gemma2", "post norms", noPost}, {"gemma2", "GELU", otherAct},
		{"gemma2", "score cap", eachLayer(func(a *LayerAttention) { a.Softcap = 0 })},
		{"gemma2", "logit cap", func(m *Model) { m.logitSoftcap = 0 }},
		{"gemma2", "embedding scale", func(m *Model) { m.embedScale = 1 }},
		{"gemma3", "window", noWindow}, {"gemma3", "RoPE of windows", ropeEach}, {"gemma3", "QK norm", noQNorm},
		{"gemma3", "linear scaling", func(m *Model) {
			m.ropes[0] = newRope(16, 1e6, ropeScaling{factor: 1, attnFactor: 1})
		}},
		{"gemma3", "post norms", noPost}, {"gemma3", "GELU", otherAct},
		{"phi3", "window", noWindow}, {"phi3", "longrope", ropeBase},
		{"phi3", "RoPE scale", func(m *Model) { m.ropes[0].mscale = 1 }},
		{"granite", "residual scale", func(m *Model) { m.residualScale = 1 }},
		{"granite", "logit scale", func(m *Model) { m.logitScale = 1 }},
		{"granite", "embedding scale", func(m *Model) { m.embedScale = 1 }}, {"granite", "attention scale", rootD},
	} {
		t.Run(c.model+"/"+c.feature, func(t *testing.T) {
			with, without := tinyLogits(t, c.model, nil), tinyLogits(t, c.model, c.without)
			var top, diff float64
			for i := range with {
				top = math.Max(top, math.Abs(float64(with[i])))
				diff = math.Max(diff, math.Abs(float64(with[i])-float64(without[i])))
			}
			require.Greater(t, diff, 1e-3*top)
		})
	}
}

func tinyLogits(t *testing.T, name string, change func(m *Model)) []float32 {
	t.Helper()
	f, err := gguf.Open(filepath.Join("testdata", "models", name+".gguf"))
	require.NoError(t, err)
	defer f.Close()
	m, err := Load(f, Options{Workers: 1})
	require.NoError(t, err)
	if change != nil {
		change(m)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	tokens := make([]int32, min(40, m.Context))
	for i := range tokens {
		tokens[i] = int32(rng.IntN(m.Vocab))
	}
	kv, err := m.NewKV(KVOptions{})
	require.NoError(t, err)
	logits, err := m.Forward(tokens, kv, 0, ForwardOptions{Logits: LogitsAll})
	require.NoError(t, err)
	return logits
}
