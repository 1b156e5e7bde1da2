// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/quant"
)

// committed is a capture of the same model by an independent runner in numpy.
const committed = "../../testdata/smollm2-sqlite-1k.safetensors"

func newKV(t testing.TB, m *model.Model, o model.KVOptions) *model.ExactKV {
	t.Helper()
	kv, err := m.NewKV(o)
	require.NoError(t, err)
	return kv
}

func forward(t testing.TB, m *model.Model, tokens []int32, kv model.KVStore, pos int,
	o model.ForwardOptions) []float32 {
	t.Helper()
	logits, err := m.Forward(tokens, kv, pos, o)
	require.NoError(t, err)
	return logits
}

func TestModel_Config(t *testing.T) {
	m := modeltest.SmolLM2(t)
	require.Equal(t, quant.Geometry{Layers: 30, Heads: 9, KVHeads: 3, HeadDim: 64, HeadDimV: 64,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 64, Theta: 100000}}, m.Geometry())
	require.Equal(t, 8192, m.Context)
	require.Equal(t, 49152, m.Vocab)
}

func TestModel_Greedy(t *testing.T) {
	m := modeltest.SmolLM2(t)
	tokens, err := m.Tokenizer().Encode("The capital of Germany is", false)
	require.NoError(t, err)
	kv := newKV(t, m, model.KVOptions{})
	logits := forward(t, m, tokens, kv, 0, model.ForwardOptions{})
	next := model.Argmax(logits)
	text, err := m.Tokenizer().Decode([]int32{next})
	require.NoError(t, err)
	require.Equal(t, " Berlin", string(text))

	// Decoding one token at a time continues the same sequence.
	for range 6 {
		logits = forward(t, m, []int32{next}, kv, kv.Len(), model.ForwardOptions{})
		tokens = append(tokens, next)
		next = model.Argmax(logits)
	}
	whole := forward(t, m, tokens, newKV(t, m, model.KVOptions{}), 0, model.ForwardOptions{})
	require.Equal(t, next, model.Argmax(whole))
}

func sourceTokens(t testing.TB, n int) []int32 {
	t.Helper()
	s, err := capture.Open(committed, capture.Limits{})
	require.NoError(t, err)
	defer s.Close()
	tokens := make([]int32, n)
	require.NoError(t, s.ReadTokens(false, 0, tokens))
	return tokens
}

func TestModel_ChunkedPrefill(t *testing.T) {
	m := modeltest.SmolLM2(t)
	tokens := sourceTokens(t, 300)
	var rows [2][]float32
	for i, chunk := range []int{300, 37} {
		rows[i] = forward(t, m, tokens, newKV(t, m, model.KVOptions{}), 0,
			model.ForwardOptions{Chunk: chunk, Logits: model.LogitsRange, From: 280, To: 300})
	}
	require.Len(t, rows[0], 20*m.Vocab)
	for i := range rows[0] {
		if d := math.Abs(float64(rows[0][i] - rows[1][i])); !(d <= 1e-3) {
			t.Fatalf("logit %d: %v in one chunk, %v in chunks of 37", i, rows[0][i], rows[1][i])
		}
	}
}

// relError returns the root of sum((a-b)^2) / sum(b^2).
func relError(a, b []float32) float64 {
	var num, den float64
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		num += d * d
		den += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(num / den)
}

// TestModel_ReproducesCapture pins the whole forward pass: q, k and v of four layers and the
// surprisal against those that the numpy runner wrote.
func TestModel_ReproducesCapture(t *testing.T) {
	m := modeltest.SmolLM2(t)
	want, err := capture.Open(committed, capture.Limits{})
	require.NoError(t, err)
	defer want.Close()
	n, next := want.Info().Tokens, want.Info().TokensNext
	tokens := make([]int32, n+next)
	require.NoError(t, want.ReadTokens(false, 0, tokens[:n]))
	require.NoError(t, want.ReadTokens(true, 0, tokens[n:]))

	path := filepath.Join(t.TempDir(), "out.safetensors")
	require.NoError(t, m.WriteCapture(path, tokens, model.CaptureOptions{
		Next: next, Layers: want.Info().Layers, OWeight: true, Model: "SmolLM2-135M-Instruct"}))
	got, err := capture.Open(path, capture.Limits{})
	require.NoError(t, err)
	defer got.Close()
	require.Equal(t, want.Info().Geometry, got.Info().Geometry)
	require.Equal(t, want.Info().Layers, got.Info().Layers)
	require.Equal(t, want.Info().Model, got.Info().Model)

	for _, layer := range want.Info().Layers {
		for p := capture.K; p <= capture.QNext; p++ {
			a, ok := got.KV(layer, p)
			require.True(t, ok, "layer %d %s", layer, p)
			b, _ := want.KV(layer, p)
			require.Equal(t, b.Rows(), a.Rows())
			x, y := make([]float32, a.Rows()*a.Dim()), make([]float32, a.Rows()*a.Dim())
			for h := range a.Heads() {
				require.NoError(t, a.ReadF32(h, 0, a.Rows(), x))
				require.NoError(t, b.ReadF32(h, 0, b.Rows(), y))
				// Both round to f16. Where two float32 runners that sum in different orders fall on
				// different sides, values differ by 2^-11: rare, 4e-5 over a head was measured.
				require.Less(t, relError(x, y), 1e-4, "layer %d %s head %d", layer, p, h)
			}
		}
		w, ok := got.OWeight(layer)
		require.True(t, ok)
		require.Equal(t, m.Hidden, w.Rows())
	}
	for _, nx := range []bool{false, true} {
		rows := n
		if nx {
			rows = next
		}
		x, y := make([]float32, rows), make([]float32, rows)
		require.NoError(t, got.ReadSurprisal(nx, 0, x))
		require.NoError(t, want.ReadSurprisal(nx, 0, y))
		for i := range x {
			require.InDelta(t, y[i], x[i], 2e-3, "surprisal of token %d, next %v", i, nx)
		}
	}
}

// perplexity runs tokens through a cache and returns exp(mean surprisal).
func perplexity(t testing.TB, m *model.Model, tokens []int32, kv model.KVStore) float64 {
	t.Helper()
	var sum float64
	n := len(tokens) - 1
	_, err := m.Forward(tokens, kv, 0, model.ForwardOptions{Logits: model.LogitsRange, To: n,
		OnLogits: func(i int, logits []float32) error {
			sum += model.Surprisal(logits, tokens[i+1])
			return nil
		}})
	require.NoError(t, err)
	return math.Exp(sum / float64(n))
}

func TestModel_F16Perplexity(t *testing.T) {
	m := modeltest.SmolLM2(t)
	tokens := sourceTokens(t, 384)
	exact := perplexity(t, m, tokens, newKV(t, m, model.KVOptions{}))
	f16 := perplexity(t, m, tokens, newKV(t, m, model.KVOptions{F16: true}))
	require.NotEqual(t, exact, f16) // the rounding did take place
	require.InEpsilon(t, exact, f16, 1e-3)
	require.Less(t, exact, 100.0) // of 49152: the model does predict this text
}

func TestModel_Fast(t *testing.T) {
	m := modeltest.SmolLM2(t)
	path, err := model.Find()
	require.NoError(t, err)
	fast, err := model.Open(path, model.Options{Fast: true})
	require.NoError(t, err)
	tokens := sourceTokens(t, 128)
	a := perplexity(t, m, tokens, newKV(t, m, model.KVOptions{}))
	b := perplexity(t, fast, tokens, newKV(t, fast, model.KVOptions{}))
	require.NotEqual(t, a, b)
	require.InEpsilon(t, a, b, 0.05)
}

type vector struct {
	Text    string  `json:"text"`
	Special bool    `json:"special"`
	Tokens  []int32 `json:"tokens"`
}

// TestModel_TokenizerVectors compares with vectors made by the Hugging Face package tokenizers
// from the same vocabulary (testdata/README.md).
func TestModel_TokenizerVectors(t *testing.T) {
	tok := modeltest.SmolLM2(t).Tokenizer()
	b, err := os.ReadFile("testdata/tokens-smollm.json")
	require.NoError(t, err)
	var vectors []vector
	require.NoError(t, json.Unmarshal(b, &vectors))
	require.GreaterOrEqual(t, len(vectors), 40)
	for _, v := range vectors {
		t.Run(fmt.Sprintf("%.20q/special=%v", v.Text, v.Special), func(t *testing.T) {
			got, err := tok.Encode(v.Text, v.Special)
			require.NoError(t, err)
			require.Equal(t, v.Tokens, append([]int32{}, got...))
			text, err := tok.Decode(got)
			require.NoError(t, err)
			require.Equal(t, v.Text, string(text))
		})
	}
	_, err = tok.Encode("a\xffb", false)
	require.ErrorIs(t, err, quant.ErrRange)
	require.ErrorContains(t, err, "0xff")
}

// benchModes runs a benchmark with float32 and with int8 activations.
func benchModes(b *testing.B, run func(b *testing.B, m *model.Model)) {
	modeltest.SmolLM2(b)
	path, err := model.Find()
	require.NoError(b, err)
	for _, mode := range []string{"exact", "fast"} {
		m, err := model.Open(path, model.Options{Fast: mode == "fast"})
		require.NoError(b, err)
		b.Run("mode="+mode, func(b *testing.B) { run(b, m) })
	}
}

func BenchmarkPrefill(b *testing.B) {
	tokens := sourceTokens(b, 1024)
	benchModes(b, func(b *testing.B, m *model.Model) {
		for _, n := range []int{128, 1024} {
			b.Run(fmt.Sprintf("tokens=%d", n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					kv := newKV(b, m, model.KVOptions{})
					forward(b, m, tokens[:n], kv, 0, model.ForwardOptions{})
				}
				b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "tok/s")
			})
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	tokens := sourceTokens(b, 1024)
	benchModes(b, func(b *testing.B, m *model.Model) {
		for _, n := range []int{16, 1000} {
			b.Run(fmt.Sprintf("context=%d", n), func(b *testing.B) {
				kv := newKV(b, m, model.KVOptions{})
				forward(b, m, tokens[:n], kv, 0, model.ForwardOptions{})
				b.ReportAllocs()
				for b.Loop() {
					forward(b, m, tokens[n:n+1], kv, n, model.ForwardOptions{})
					require.NoError(b, kv.Truncate(n))
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tok/s")
			})
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	modeltest.SmolLM2(b)
	path, err := model.Find()
	require.NoError(b, err)
	for b.Loop() {
		_, err := model.Open(path, model.Options{})
		require.NoError(b, err)
	}
}
