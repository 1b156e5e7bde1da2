// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/quant"
)

// captured captures a text with the model.
func captured(t *testing.T, m *model.Model, tokens []int32, next int) *capture.Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cap.safetensors")
	require.NoError(t, m.WriteCapture(path, tokens, model.CaptureOptions{Next: next,
		DType: quant.Float32}))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	st, err := f.Stat()
	require.NoError(t, err)
	src, err := capture.New(path, f, st.Size(), capture.Limits{})
	require.NoError(t, err)
	return src
}

// packed compresses a capture and opens the file.
func packed(t *testing.T, be *cpu.Backend, src *capture.Source, config string) *container.Reader {
	t.Helper()
	cfg, err := kvfile.ParseConfig(config)
	require.NoError(t, err)
	var file bytes.Buffer
	_, err = kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: be})
	require.NoError(t, err)
	r, err := container.Open("test.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	require.NoError(t, err)
	return r
}

// restored decompresses a file into a cache.
func restored(t *testing.T, g quant.Geometry, r *container.Reader) *model.ExactKV {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored.safetensors")
	out, err := os.Create(path)
	require.NoError(t, err)
	_, err = kvfile.Decompress(context.Background(), r, out, kvfile.Options{})
	require.NoError(t, err)
	require.NoError(t, out.Close())
	src, err := capture.Open(path, capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	kv, err := model.NewExactKV(g, model.KVOptions{})
	require.NoError(t, err)
	n := int(r.Header().Tokens)
	for l := range g.Layers {
		rows := model.ContextRows{K: allRows(t, src, l, capture.K), V: allRows(t, src, l, capture.V)}
		for h := range g.KVHeads {
			if holds(src, l, "kept") {
				marks := make([]uint8, n)
				require.NoError(t, src.ReadKept(l, h, 0, marks))
				for _, m := range marks {
					rows.Keep = append(rows.Keep, m != 0)
				}
			}
			if holds(src, l, "bias") {
				bias := make([]float32, n)
				require.NoError(t, src.ReadBias(l, h, 0, bias))
				rows.Bias = append(rows.Bias, bias...)
			}
		}
		require.NoError(t, kv.AppendRows(l, n, rows))
	}
	return kv
}

// allRows reads one tensor of a layer, [kv_heads, tokens, dim].
func allRows(t *testing.T, src *capture.Source, layer int, p capture.Part) []float32 {
	t.Helper()
	x, ok := src.KV(layer, p)
	require.True(t, ok)
	n := x.Rows() * x.Dim()
	out := make([]float32, x.Heads()*n)
	for h := range x.Heads() {
		require.NoError(t, x.ReadF32(h, 0, x.Rows(), out[h*n:(h+1)*n]))
	}
	return out
}

// continued scores the continuation over a store that holds the context.
func continued(t *testing.T, m *model.Model, ref *reference, tokens []int32, pos int,
	kv model.KVStore) Score {
	t.Helper()
	s := scorer{ref: ref}
	_, err := m.Forward(tokens, kv, pos, model.ForwardOptions{Logits: model.LogitsAll,
		OnLogits: s.add})
	require.NoError(t, err)
	score, err := s.score()
	require.NoError(t, err)
	return score
}

// handmade is a file of two layers and 40 tokens in segments of 16 with blocks of every level.
func handmade(t *testing.T) (*container.Reader, quant.Geometry) {
	t.Helper()
	g := quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 8,
		Rope: quant.Rope{Layout: quant.RopeNone}}
	cfg := kvfile.DefaultConfig()
	cfg.Bits, cfg.RowBias, cfg.Segment = 3, "false", 32
	h := &container.Header{Kind: container.KindCache, Layers: []int{0, 1}, Tokens: 40,
		SegmentTokens: 16, Geometry: g, KType: quant.Float32, VType: quant.Float32, Seed: 3,
		Config: cfg.String()}
	rng := rand.New(rand.NewPCG(1, 1))
	side := func(c quant.Coding, rows, dim int) []byte {
		x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
		for i := range x.Data {
			x.Data[i] = float32(rng.NormFloat64())
		}
		b := make([]byte, c.PackedBytes(rows, dim))
		require.NoError(t, quant.Encode(b, c, x, h.Seed))
		return b
	}
	block := func(l quant.Level, k, v quant.Format, tokens, counts []uint16) container.Block {
		b := container.Block{Level: l, Tokens: tokens, Counts: counts}
		if l == quant.Dropped {
			return b
		}
		b.K, b.V = quant.Coding{Format: k}, quant.Coding{Format: v}
		b.KData, b.VData = side(b.K, b.Rows(), g.HeadDim), side(b.V, b.Rows(), g.HeadDimV)
		return b
	}
	var file bytes.Buffer
	w, err := container.NewWriter(&file, h)
	require.NoError(t, err)
	for layer := range 2 {
		for seg := range 3 {
			rec := &container.Record{Layer: layer, Segment: seg}
			for head := range g.KVHeads {
				last := []uint16{2, 4, 7}
				if seg < 2 {
					last = append(last, 8, 9, 10, 11, 12, 13, 14, 15)
				}
				blocks := []container.Block{
					block(quant.Full, quant.F16, quant.U8, []uint16{0, 3}, nil),
					block(quant.Chunks, quant.LM4, quant.LM3, []uint16{1, 5, 6}, []uint16{1, 2}),
					block(quant.Full, quant.LM3, quant.LM2, last, nil),
				}
				if head == 1 {
					blocks[2] = block(quant.Dropped, 0, 0, last, nil)
				}
				rec.Heads = append(rec.Heads, container.Head{Blocks: blocks})
			}
			require.NoError(t, w.WriteRecord(rec))
		}
	}
	require.NoError(t, w.Close())
	r, err := container.Open("hand.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	require.NoError(t, err)
	return r, g
}

// Merged and dropped rows, mixed codings, a tail and causality, without a model.
func TestBlockStore_EveryLevel(t *testing.T) {
	r, g := handmade(t)
	flat := restored(t, g, r)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	s, err := NewBlockStore(context.Background(), be, r, g, BlockOptions{Tail: 8})
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(2, 2))
	random := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rng.NormFloat64()) * 1.5
		}
		return x
	}
	pos := 40
	for _, n := range []int{1, 5, 2} {
		for layer := range g.Layers {
			k, v := random(n*g.KVHeads*g.HeadDim), random(n*g.KVHeads*g.HeadDimV)
			q := random(n * g.Heads * g.HeadDim)
			want := make([]float32, n*g.Heads*g.HeadDimV)
			got := make([]float32, len(want))
			for _, kv := range []model.KVStore{flat, s} {
				require.NoError(t, kv.Append(layer, pos, k, v, n))
			}
			require.NoError(t, flat.Attend(layer, pos, q, n, want))
			require.NoError(t, s.Attend(layer, pos, q, n, got))
			for i := range want {
				require.InDelta(t, want[i], got[i], 2e-5, "layer %d value %d", layer, i)
			}
		}
		pos += n
	}
	require.Equal(t, 48, s.Len())
	err = s.Append(0, 48, make([]float32, 32), make([]float32, 16), 1)
	require.ErrorIs(t, err, quant.ErrTooLarge)
	require.NoError(t, s.Close())
	require.Zero(t, be.LiveBytes())
}

// Attention to packed blocks equals attention to the decompressed cache.
func TestBlockStore_IsTheDecompressedCache(t *testing.T) {
	m := modeltest.SmolLM2(t)
	const length, next = 150, 24
	in := evalInput(t, m, 1, Options{Context: length, Next: next})
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	after := in.Tokens[length:]
	src := captured(t, m, in.Tokens, next)
	for _, c := range []struct {
		name, config string
	}{
		{"lm2 without row bias", "k=lm2+len+s8 v=lm2+len+s8 sinks=4 segment=64 row-bias=false"},
		{"mixed without row bias", "bits=3.4 sinks=4 segment=128 row-bias=false"},
		{"ggml", "k=ggml-q8_0 v=ggml-q4_0 row-bias=false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := packed(t, be, src, c.config)
			flat := restored(t, m.Geometry(), r)
			// The decompressed cache is the reference.
			ref := newReference(m.Vocab, after)
			_, err := m.Forward(after, flat, length,
				model.ForwardOptions{Logits: model.LogitsAll, OnLogits: ref.add})
			require.NoError(t, err)
			s, err := NewBlockStore(context.Background(), be, r, m.Geometry(),
				BlockOptions{Tail: next})
			require.NoError(t, err)
			defer func() { require.NoError(t, s.Close()) }()
			require.Equal(t, length, s.Len())
			got := continued(t, m, ref, after, length, s)
			// Rounding of products and sums only: the divergence of float32 runs is near 1e-8.
			require.Less(t, got.KLMax, 1e-5)
			require.Equal(t, 1.0, got.Top1)
			positions := int64(2 * length * m.KVHeads * m.Layers)
			require.Less(t, s.PackedBytes(), r.Size()+positions)
			// In two parts after a truncation, to test the position of the tail.
			require.NoError(t, s.Truncate(length))
			part := scorer{ref: ref}
			for lo := 0; lo < next; lo += next / 2 {
				fo := model.ForwardOptions{Logits: model.LogitsAll,
					OnLogits: func(i int, x []float32) error { return part.add(lo+i, x) }}
				_, err = m.Forward(after[lo:lo+next/2], s, length+lo, fo)
				require.NoError(t, err)
			}
			require.Less(t, part.klMax, 1e-5)
			require.ErrorIs(t, s.Truncate(length-1), quant.ErrShape)
			_, err = m.Forward(after[:1], s, s.Len(), model.ForwardOptions{})
			require.ErrorIs(t, err, quant.ErrTooLarge, "the tail is full")
		})
	}
}

// The row bias of the store depends on each query, that of the decompressed cache on the mean query of
// the head. The results differ a little.
func TestBlockStore_RowBias(t *testing.T) {
	m := modeltest.SmolLM2(t)
	const length, next = 256, 32
	in := evalInput(t, m, 2, Options{Context: length, Next: next})
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	after := in.Tokens[length:]
	_, kv, err := Prefill(context.Background(), m, in.Tokens[:length], false)
	require.NoError(t, err)
	ref := newReference(m.Vocab, after)
	_, err = m.Forward(after, kv, length, model.ForwardOptions{Logits: model.LogitsAll,
		OnLogits: ref.add})
	require.NoError(t, err)
	r := packed(t, be, captured(t, m, in.Tokens, next), "k=lm2+len+s8 v=lm2+len+s8 sinks=4 row-bias=true")
	kl := map[bool]float64{}
	for _, on := range []bool{false, true} {
		s, err := NewBlockStore(context.Background(), be, r, m.Geometry(),
			BlockOptions{RowBias: on})
		require.NoError(t, err)
		kl[on] = continued(t, m, ref, after, length, s).KL
		require.NoError(t, s.Close())
	}
	flat := continued(t, m, ref, after, length, restored(t, m.Geometry(), r)).KL
	t.Logf("KL at 2 bits: %.4f without row bias, %.4f with it, %.4f decompressed", kl[false],
		kl[true], flat)
	require.Greater(t, kl[true], 0.0)
	require.InEpsilon(t, flat, kl[true], 0.5)
}

func TestNewBlockStore_RefusesOtherGeometries(t *testing.T) {
	m := modeltest.SmolLM2(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	in := evalInput(t, m, 0, Options{Context: 64, Next: 2})
	r := packed(t, be, captured(t, m, in.Tokens, 2), "k=lm4 v=lm4")
	g := m.Geometry()
	g.Layers++
	_, err = NewBlockStore(context.Background(), be, r, g, BlockOptions{})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = NewBlockStore(context.Background(), be, r, m.Geometry(), BlockOptions{Tail: -1})
	require.ErrorIs(t, err, quant.ErrShape)
	s, err := NewBlockStore(context.Background(), be, r, m.Geometry(), BlockOptions{Tail: 4})
	require.NoError(t, err)
	require.ErrorIs(t, s.Append(0, 63, nil, nil, 0), quant.ErrShape)
	require.ErrorIs(t, s.Append(99, 64, nil, nil, 0), quant.ErrShape)
	require.ErrorIs(t, s.Attend(0, 64, nil, 1, nil), quant.ErrShape)
	before := be.LiveBytes()
	require.Positive(t, before)
	require.NoError(t, s.Close())
	require.Zero(t, be.LiveBytes(), "nothing leaks")
}

// holds reports whether a capture has a tensor of a layer.
func holds(src *capture.Source, layer int, name string) bool {
	_, ok := src.Lookup(fmt.Sprintf("layers.%d.%s", layer, name))
	return ok
}
