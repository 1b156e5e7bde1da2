// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// npyWords returns the 32-bit elements of an .npy file of known shape.
func npyWords(t *testing.T, name string, n int) []uint32 {
	t.Helper()
	text, err := os.ReadFile("../testdata/" + name)
	require.NoError(t, err)
	text = text[10+int(binary.LittleEndian.Uint16(text[8:])):]
	require.Len(t, text, 4*n)
	words := make([]uint32, n)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(text[4*i:])
	}
	return words
}

func npyRows(t *testing.T, name string, rows, dim int) quant.Rows {
	t.Helper()
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	for i, w := range npyWords(t, name, rows*dim) {
		x.Data[i] = math.Float32frombits(w)
	}
	return x
}

// The ten nearest of 4096 embeddings of MiniLM, computed exactly, are found again in packed rows:
// nearly all of them with 4 bits per value.
func TestSearch_RecallOfEmbeddings(t *testing.T) {
	const rows, dim, k = 4096, 384, 10
	queries := 64
	if testing.Short() {
		queries = 8
	}
	x := npyRows(t, "minilm-base-4096x384.npy", rows, dim)
	q := npyRows(t, "minilm-queries-256x384.npy", 256, dim)
	truth := npyWords(t, "minilm-top10-256x10.npy", 256*k)
	b, err := Open(Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	for _, want := range []struct {
		format quant.Format
		recall float64
	}{{quant.F16, 0.99}, {quant.LM4, 0.9}, {quant.LM1, 0.7}} {
		c := quant.Coding{Format: want.format}
		packed := make([]byte, c.PackedBytes(rows, dim))
		require.NoError(t, quant.Encode(packed, c, x, 1))
		buf, err := b.Alloc(int64(len(packed)))
		require.NoError(t, err)
		require.NoError(t, buf.Upload(0, packed))
		side := backend.Side{Coding: c, Seed: 1, Data: backend.Span{Buf: buf, Len: int64(len(packed))}}
		hits := make([]backend.Hit, queries*k)
		require.NoError(t, b.Search(context.Background(), &backend.Search{Q: q.Data[:queries*dim],
			Dim: dim, TopK: k, Rows: []backend.SearchRows{{Side: side, Rows: rows}}}, hits))
		found := 0
		for i := range queries {
			right := map[int64]bool{}
			for _, r := range truth[i*k : (i+1)*k] {
				right[int64(r)] = true
			}
			for _, h := range hits[i*k : (i+1)*k] {
				if right[h.Row] {
					found++
				}
			}
		}
		recall := float64(found) / float64(queries*k)
		t.Logf("%s: recall@%d %.3f", c, k, recall)
		require.GreaterOrEqual(t, recall, want.recall, c.String())
	}
}
