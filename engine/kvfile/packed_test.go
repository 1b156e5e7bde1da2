// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// cacheInMemory is a cache of two layers with queries.
func cacheInMemory(tokens int) *kvfile.Memory {
	g := quant.Geometry{Layers: 2, Heads: 6, KVHeads: 2, HeadDim: 32, HeadDimV: 16}
	m := &kvfile.Memory{Geometry: g, Model: "synthetic"}
	rng := rand.New(rand.NewPCG(9, uint64(tokens)))
	for range g.Layers {
		side := func(heads, dim int) []float32 {
			x := make([]float32, heads*tokens*dim)
			for i := range x {
				x[i] = float32(rng.NormFloat64())
			}
			return x
		}
		m.K, m.V = append(m.K, side(g.KVHeads, g.HeadDim)), append(m.V, side(g.KVHeads, g.HeadDimV))
		m.Q = append(m.Q, side(g.Heads, g.HeadDim))
	}
	return m
}

// exactAttention is attention over the rows of a layer in float64.
func exactAttention(m *kvfile.Memory, layer int, q []float32) []float64 {
	g := &m.Geometry
	tokens := len(m.K[layer]) / (g.KVHeads * g.HeadDim)
	out := make([]float64, len(q)/g.HeadDim*g.HeadDimV)
	for i := range len(q) / g.HeadDim {
		kv := i % g.Heads / g.GQARatio()
		score, most := make([]float64, tokens), math.Inf(-1)
		for t := range score {
			for d := range g.HeadDim {
				score[t] += float64(q[i*g.HeadDim+d]) * float64(m.K[layer][(kv*tokens+t)*g.HeadDim+d])
			}
			score[t] /= math.Sqrt(float64(g.HeadDim))
			most = max(most, score[t])
		}
		var sum float64
		for t := range score {
			score[t] = math.Exp(score[t] - most)
			sum += score[t]
		}
		for t, p := range score {
			for d := range g.HeadDimV {
				out[i*g.HeadDimV+d] += p / sum * float64(m.V[layer][(kv*tokens+t)*g.HeadDimV+d])
			}
		}
	}
	return out
}

// TestPack_Attends holds attention over a packed cache, and over the same cache written and opened, against that
// over the rows.
func TestPack_Attends(t *testing.T) {
	ctx := context.Background()
	for _, tokens := range []int{1, 5, 100, 700} {
		m := cacheInMemory(tokens)
		q := make([]float32, 3*m.Geometry.Heads*m.Geometry.HeadDim)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range q {
			q[i] = float32(rng.NormFloat64())
		}
		for _, x := range []struct {
			name string
			opts kvfile.Options
			most float64 // relative error
		}{
			{"default", kvfile.Options{}, 0.2}, {"8 bits", kvfile.Options{Bits: 9}, 0.03},
			{"exact", kvfile.Options{Budget: "300KiB", Archive: true}, 1e-6},
		} {
			if x.name == "8 bits" && tokens < 100 {
				continue // too small a file for what it is made of
			}
			kv, err := kvfile.Pack(ctx, m, x.opts)
			if x.name == "exact" && tokens == 700 {
				require.NoError(t, err) // not exact: the budget is less than that takes
				x.most = 0.2
			}
			require.NoError(t, err, "%d tokens, %s", tokens, x.name)
			require.Equal(t, tokens, kv.Tokens())
			path := filepath.Join(t.TempDir(), "cache.kvist")
			var file bytes.Buffer
			res, err := m.Write(ctx, &file, x.opts)
			require.NoError(t, err)
			require.Equal(t, kv.Bytes(), res.Bytes)
			require.NoError(t, os.WriteFile(path, file.Bytes(), 0o600))
			again, err := kvfile.Open(path, kvfile.Options{})
			require.NoError(t, err)
			for layer := range m.Geometry.Layers {
				want := exactAttention(m, layer, q)
				got, same := make([]float32, len(want)), make([]float32, len(want))
				require.NoError(t, kv.Attend(ctx, layer, q, got))
				require.NoError(t, again.Attend(ctx, layer, q, same))
				require.Equal(t, got, same)
				var e, ref float64
				for i := range want {
					e, ref = e+(float64(got[i])-want[i])*(float64(got[i])-want[i]), ref+want[i]*want[i]
				}
				require.Less(t, e/ref, x.most, "%d tokens, %s, layer %d", tokens, x.name, layer)
			}
			require.NoError(t, kv.Close())
			require.NoError(t, again.Close())
			require.NoError(t, again.Close(), "twice")
			require.ErrorIs(t, kv.Attend(ctx, 0, q, nil), quant.ErrClosed)
		}
	}
}

func TestPack_BadUse(t *testing.T) {
	ctx := context.Background()
	for name, spoil := range map[string]func(m *kvfile.Memory){
		"no layers":     func(m *kvfile.Memory) { m.K = nil },
		"K too short":   func(m *kvfile.Memory) { m.K[1] = m.K[1][1:] },
		"V of another":  func(m *kvfile.Memory) { m.V[0] = m.V[0][:64] },
		"Q too long":    func(m *kvfile.Memory) { m.Q[0] = append(m.Q[0], 1) },
		"no heads":      func(m *kvfile.Memory) { m.Geometry.KVHeads = 0 },
		"heads by five": func(m *kvfile.Memory) { m.Geometry.Heads = 5 },
	} {
		m := cacheInMemory(40)
		spoil(m)
		_, err := kvfile.Pack(ctx, m, kvfile.Options{})
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	m := cacheInMemory(40)
	m.K[0][7] = float32(math.NaN())
	_, err := kvfile.Pack(ctx, m, kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrRange)
	_, err = kvfile.Pack(ctx, cacheInMemory(40), kvfile.Options{Budget: "much"})
	require.ErrorIs(t, err, quant.ErrShape)

	kv, err := kvfile.Pack(ctx, cacheInMemory(40), kvfile.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, kv.Close()) }()
	g := kv.Geometry()
	q, out := make([]float32, g.Heads*g.HeadDim), make([]float32, g.Heads*g.HeadDimV)
	require.ErrorIs(t, kv.Attend(ctx, 2, q, out), quant.ErrShape)
	require.ErrorIs(t, kv.Attend(ctx, 0, q[1:], out), quant.ErrShape)
	require.ErrorIs(t, kv.Attend(ctx, 0, q, out[1:]), quant.ErrShape)
	require.NoError(t, kv.Attend(ctx, 0, nil, nil), "no queries")

	_, err = kvfile.Open("../../testdata/golden/v1/pass-rows.kvist", kvfile.Options{})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = kvfile.Open(filepath.Join(t.TempDir(), "none.kvist"), kvfile.Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestCompressFile_Whole holds that a failed call leaves nothing, and that an old file stays unless it may go.
func TestCompressFile_Whole(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	file := filepath.Join(dir, "cache.kvist")
	_, err := kvfile.CompressFile(ctx, exampleCapture, file, kvfile.Options{Bits: 0.001})
	require.ErrorIs(t, err, quant.ErrBudget)
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, list)
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o600))
	_, err = kvfile.CompressFile(ctx, exampleCapture, file, kvfile.Options{Budget: "15%"})
	require.ErrorIs(t, err, os.ErrExist)
	res, err := kvfile.CompressFile(ctx, exampleCapture, file, kvfile.Options{Budget: "15%", Overwrite: true})
	require.NoError(t, err)
	require.InDelta(t, 0.15*float64(res.OriginalBytes), float64(res.Bytes), 0.01*float64(res.Bytes))
	_, err = kvfile.DecompressFile(ctx, file, fmt.Sprintf("%s/back.safetensors", dir), kvfile.Options{})
	require.NoError(t, err)
}
