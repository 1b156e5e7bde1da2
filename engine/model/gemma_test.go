// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/stretchr/testify/require"
)

func TestGemma_Greedy(t *testing.T) {
	m := modeltest.Gemma(t)
	tok := m.Tokenizer()
	require.True(t, tok.AddBOS)
	tokens, err := tok.Start("France: Paris\nItaly: Rome\nGermany:", false)
	require.NoError(t, err)
	require.Equal(t, tok.BOS, tokens[0])
	logits := forward(t, m, tokens, newKV(t, m, model.KVOptions{}), 0, model.ForwardOptions{})
	text, err := tok.Decode([]int32{model.Argmax(logits)})
	require.NoError(t, err)
	require.Equal(t, " Berlin", string(text))
}

func TestGemma_Attention(t *testing.T) {
	m := modeltest.Gemma(t)
	require.Equal(t, 18, m.Layers)
	for l, a := range m.Attention() {
		window, theta := 512, 1e4
		if l%6 == 5 {
			window, theta = 0, 1e6
		}
		require.Equal(t, window, a.Window, "layer %d", l)
		require.Equal(t, theta, a.Rope.Theta, "layer %d", l)
		require.Equal(t, 1.0/16, a.Scale)
	}
	what, ok := m.Uniform()
	require.False(t, ok)
	require.Contains(t, what, "window of 512")
}

// TestGemma_Reference compares tokens with those of llama.cpp, and surprisals with those that
// transformers computes in float32 from the same weights, dequantized by the Python package gguf.
func TestGemma_Reference(t *testing.T) {
	m := modeltest.Gemma(t)
	var ref struct {
		Text      string
		Tokens    []int32
		Surprisal []float64
	}
	readJSON(t, "testdata/gemma.json", &ref)
	body, err := os.ReadFile(filepath.Join("..", "..", "bench", "quality", "texts", ref.Text))
	require.NoError(t, err)
	tokens, err := m.Tokenizer().Start(string(body), false)
	require.NoError(t, err)
	require.Greater(t, len(ref.Tokens), 512) // the window
	require.Equal(t, ref.Tokens, tokens[:len(ref.Tokens)])

	n := len(ref.Tokens)
	var sum, want, worst float64
	_, err = m.Forward(ref.Tokens, newKV(t, m, model.KVOptions{}), 0, model.ForwardOptions{
		Logits: model.LogitsRange, To: n - 1, OnLogits: func(i int, logits []float32) error {
			s := model.Surprisal(logits, ref.Tokens[i+1])
			worst = math.Max(worst, math.Abs(s-ref.Surprisal[i]))
			sum, want = sum+s, want+ref.Surprisal[i]
			return nil
		}})
	require.NoError(t, err)
	got, exact := math.Exp(sum/float64(n-1)), math.Exp(want/float64(n-1))
	t.Logf("perplexity %.4f, reference %.4f, largest difference of a surprisal %.2g nats", got, exact, worst)
	require.InEpsilon(t, exact, got, 1e-3)
	require.Less(t, worst, 0.02)
}
