// SPDX-License-Identifier: Apache-2.0

package llamastate_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// facts are those of a tiny model of engine/model.
func facts(t testing.TB, name string) (llamastate.Facts, string) {
	path := "../model/testdata/models/" + name + ".gguf"
	c, err := model.ReadConfig(path, 0)
	require.NoError(t, err)
	g, err := c.CacheGeometry()
	require.NoError(t, err)
	return llamastate.Facts{Geometry: g, Model: c.Name, Interleaved: c.Interleaved()}, path
}

// turned is the model of states that are turned (testdata/make_states.py).
func turned() llamastate.Facts {
	return llamastate.Facts{Interleaved: true, Geometry: quant.Geometry{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 128,
		HeadDimV: 128, Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 128, Theta: 10000}}}
}

// What llama.cpp has saved is what this module's runner computes for the same tokens: layers, heads, positions and
// the order of components are read as they are meant, in both layouts of V and with one and two caches.
func TestLlama_SameAsRunner(t *testing.T) {
	for file, name := range map[string]string{"llama-f16": "llama", "llama-f16-transposed": "llama", "llama-f16-session": "llama",
		"gemma3-f16": "gemma3", "gemma3-f16-transposed": "gemma3"} {
		t.Run(file, func(t *testing.T) {
			f, path := facts(t, name)
			raw := fixture(t, file+".bin")
			s := open(t, raw)
			src := captured(t, s, f)
			require.True(t, bytes.Equal(raw, restored(t, src)))
			m, err := model.Open(path, model.Options{Workers: 1})
			require.NoError(t, err)
			ran := through(t, func(w *atomicfile.Scratch) error {
				return m.Capture(context.Background(), w, s.Tokens(), model.CaptureOptions{})
			})
			for _, n := range src.Info().Layers {
				outside := f.Geometry.Outside(n, int64(src.Info().Tokens))
				for _, p := range []capture.Part{capture.K, capture.V} {
					got, want := rowsFrom(t, src, n, p, int(outside)), rowsFrom(t, ran, n, p, int(outside))
					require.Less(t, nmse(want, got), 1e-5, "layer %d %s", n, p) // f16 rounds to 2^-11, GELU of Gemma is a table
				}
			}
			q := through(t, func(w *atomicfile.Scratch) error { return s.Capture(context.Background(), w, f, ran) })
			require.Equal(t, rowsOf(t, ran, 1, capture.Q), rowsOf(t, q, 1, capture.Q))
		})
	}
}

// rowsFrom is rowsOf from a token on.
func rowsFrom(t testing.TB, src *capture.Source, layer int, p capture.Part, first int) (all []float32) {
	x, _ := src.KV(layer, p)
	all = rowsOf(t, src, layer, p)
	var some []float32
	for h := range x.Heads() {
		some = append(some, all[(h*x.Rows()+first)*x.Dim():(h+1)*x.Rows()*x.Dim()]...)
	}
	return some
}

// Quantized caches of llama.cpp, its rotation undone, hold what its f16 cache holds. Left rotated they do not.
func TestLlama_Turned(t *testing.T) {
	exact := captured(t, open(t, fixture(t, "turned-f16.bin")), turned())
	for _, c := range []struct {
		file string
		most [2]float64 // of K and V
	}{{"turned-q8_0", [2]float64{1e-4, 1e-4}}, {"turned-q4_0", [2]float64{2e-2, 2e-2}}, {"turned-f16-q8_0", [2]float64{0, 1e-4}}} {
		raw := fixture(t, c.file+".bin")
		src := captured(t, open(t, raw), turned())
		wrong := turned()
		wrong.Plain = true
		left := captured(t, open(t, raw), wrong)
		for i, p := range []capture.Part{capture.K, capture.V} {
			want := rowsOf(t, exact, 0, p)
			require.LessOrEqual(t, nmse(want, rowsOf(t, src, 0, p)), c.most[i], "%s %s", c.file, p)
			if c.most[i] > 0 {
				require.Greater(t, nmse(want, rowsOf(t, left, 0, p)), 0.5, "%s %s", c.file, p)
			}
		}
		// Turned back, and coded once more, it is what it was.
		again := captured(t, open(t, restored(t, src)), turned())
		require.Less(t, nmse(rowsOf(t, src, 0, capture.K), rowsOf(t, again, 0, capture.K)), 1e-4, c.file)
	}
}

// Through a .kvist file: every bit without a model, and what is near with one. Both restore to states of the same
// size, cells and tokens.
func TestLlama_ThroughKvist(t *testing.T) {
	for file, name := range map[string]string{"llama-f16-transposed": "llama", "llama-f16-session": "llama", "gemma3-f16": "gemma3",
		"gemma3-f16-transposed": "gemma3", "turned-q8_0": "", "turned-q4_0": "", "turned-f16-q8_0": ""} {
		t.Run(file, func(t *testing.T) {
			raw := fixture(t, file+".bin")
			s := open(t, raw)
			exact := through(t, func(w *atomicfile.Scratch) error { return s.Rows(context.Background(), w) })
			require.True(t, bytes.Equal(raw, restored(t, kvist(t, exact, kvfile.Options{Lossless: true}))))
			f := turned()
			if name != "" {
				f, _ = facts(t, name)
			}
			for _, o := range []kvfile.Options{{Bits: 20, Archive: true}, {Bits: 20}, {Lossless: true}} {
				cfg := kvfile.DefaultConfig()
				cfg.RowBias, cfg.Levels = "false", []quant.Level{quant.Full}
				o.Config = &cfg
				if o.Lossless && file == "turned-f16-q8_0" {
					continue
				}
				got := restored(t, kvist(t, captured(t, s, f), o))
				require.Len(t, got, len(raw))
				require.Equal(t, s.Info(), open(t, got).Info())
				require.Equal(t, s.Tokens(), open(t, got).Tokens())
				require.Less(t, nmse(values(t, s, f), values(t, open(t, got), f)), 1e-3)
			}
		})
	}
}

// kvist compresses a capture and restores it.
func kvist(t testing.TB, src *capture.Source, o kvfile.Options) *capture.Source {
	var file bytes.Buffer
	_, err := kvfile.Compress(context.Background(), src, &file, o)
	require.NoError(t, err)
	r, err := container.Open("x", bytes.NewReader(file.Bytes()), int64(file.Len()), container.Limits{})
	require.NoError(t, err)
	return through(t, func(w *atomicfile.Scratch) error {
		_, err := kvfile.Decompress(context.Background(), r, w, kvfile.Options{})
		return err
	})
}
