// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/stretchr/testify/require"
)

// reference is a tiny model of testdata/models with the logits that transformers computes for it.
type reference struct {
	Name    string  `json:"name"`
	Model   string  `json:"model"`
	Logits  string  `json:"logits"`
	Tokens  []int32 `json:"tokens"`
	Context int     `json:"context"`
}

const referenceDir = "testdata/models"

func references(t testing.TB) []reference {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(referenceDir, "index.json"))
	require.NoError(t, err)
	var index struct {
		Models []reference `json:"models"`
	}
	require.NoError(t, json.Unmarshal(b, &index))
	require.NotEmpty(t, index.Models)
	return index.Models
}

func (r reference) load(t testing.TB, o model.Options) *model.Model {
	t.Helper()
	f, err := gguf.Open(filepath.Join(referenceDir, r.Model))
	require.NoError(t, err)
	defer f.Close()
	o.Context = r.Context
	m, err := model.Load(f, o)
	require.NoError(t, err)
	return m
}

func (r reference) logits(t testing.TB) []float32 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(referenceDir, r.Logits))
	require.NoError(t, err)
	x := make([]float32, len(b)/4)
	for i := range x {
		x[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return x
}

// farthest returns the largest difference of two rows of logits over the largest logit.
func farthest(t testing.TB, want, got []float32) float64 {
	t.Helper()
	require.Len(t, got, len(want))
	var top, diff float64
	for i, w := range want {
		top = math.Max(top, math.Abs(float64(w)))
		d := math.Abs(float64(got[i]) - float64(w))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		diff = math.Max(diff, d)
	}
	return diff / top
}

// TestReference_Logits holds every architecture against an independent implementation. Both compute in
// float32; 1e-4 of the largest logit is far above their roundings and far below what the least of the
// features changes (TestReference_FeaturesMatter).
func TestReference_Logits(t *testing.T) {
	for _, r := range references(t) {
		t.Run(r.Name, func(t *testing.T) {
			m := r.load(t, model.Options{})
			want := r.logits(t)
			for _, chunk := range []int{len(r.Tokens), 5, 1} {
				got := forward(t, m, r.Tokens, newKV(t, m, model.KVOptions{}), 0,
					model.ForwardOptions{Logits: model.LogitsAll, Chunk: chunk})
				d := farthest(t, want, got)
				t.Logf("chunk %d: largest difference %.2g of the largest logit", chunk, d)
				require.Less(t, d, 1e-4, "chunk %d", chunk)
			}
		})
	}
}
