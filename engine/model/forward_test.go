// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

func plainAngle(m *tiny) angleFunc {
	return func(pos, i int) (float64, float64) {
		return float64(pos) * math.Pow(m.theta, -2*float64(i)/float64(m.rotary)), 1
	}
}

// requireLogits compares with the naive pass. Float32 sums of some hundred products over two
// layers leave relative errors of about 1e-6; 1e-4 of the largest logit is far above them and far
// below the effect of any mistake.
func requireLogits(t *testing.T, want [][]float64, got []float32) {
	t.Helper()
	var top float64
	for _, row := range want {
		for _, v := range row {
			top = math.Max(top, math.Abs(v))
		}
	}
	require.Equal(t, len(want)*len(want[0]), len(got))
	for i, row := range want {
		for j, v := range row {
			if g := float64(got[i*len(row)+j]); !(math.Abs(g-v) <= 1e-4*top) {
				t.Fatalf("token %d, logit %d: got %v, want %v", i, j, g, v)
			}
		}
	}
}

func TestForward_MatchesNaive(t *testing.T) {
	mixed := []gguf.TensorType{gguf.TensorF32, gguf.TensorF16, gguf.TensorQ8_0, gguf.TensorBF16,
		gguf.TensorQ4_0, gguf.TensorQ4_1, gguf.TensorQ8_0}
	for _, c := range []struct {
		name  string
		types []gguf.TensorType
	}{
		{"F32", mixed[:1]}, {"F16", mixed[1:2]}, {"Q8_0", mixed[2:3]}, {"BF16", mixed[3:4]},
		{"Q4_0", mixed[4:5]}, {"Q4_1", mixed[5:6]}, {"mixed", mixed},
	} {
		for _, untied := range []bool{false, true} {
			t.Run(fmt.Sprintf("type=%s/untied=%v", c.name, untied), func(t *testing.T) {
				m := newTiny(7)
				m.fill(untied, c.types...)
				tokens := m.tokens(150) // more than a block of the cache
				want := m.forward(tokens, plainAngle(m))
				lm := m.load(t, model.Options{})
				got := forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0,
					model.ForwardOptions{Logits: model.LogitsAll})
				requireLogits(t, want, got)
			})
		}
	}
}

func TestForward_RopeVariants(t *testing.T) {
	factors := []float64{1, 1, 1.5, 2, 4, 8, 8, 8}
	freq := func(m *tiny, i int) float64 { return math.Pow(m.theta, -2*float64(i)/float64(m.rotary)) }
	for _, c := range []struct {
		name  string
		setup func(m *tiny)
		angle func(m *tiny) angleFunc
	}{
		{"partial", func(m *tiny) {
			m.rotary = 8
			m.Set("llama.rope.dimension_count", uint32(8))
		}, plainAngle},
		{"linear", func(m *tiny) {
			m.Set("llama.rope.scaling.type", "linear")
			m.Set("llama.rope.scaling.factor", float32(4))
		}, func(m *tiny) angleFunc {
			return func(pos, i int) (float64, float64) { return float64(pos) / 4 * freq(m, i), 1 }
		}},
		{"scale_linear", func(m *tiny) { m.Set("llama.rope.scale_linear", float32(2)) },
			func(m *tiny) angleFunc {
				return func(pos, i int) (float64, float64) { return float64(pos) / 2 * freq(m, i), 1 }
			}},
		{"none ignores the factor", func(m *tiny) {
			m.Set("llama.rope.scaling.type", "none")
			m.Set("llama.rope.scaling.factor", float32(4))
		}, plainAngle},
		{"freq factors", func(m *tiny) {
			data, _ := gguftest.Store(gguf.TensorF32, factors)
			m.Add("rope_freqs.weight", gguf.TensorF32, data, 8)
		}, func(m *tiny) angleFunc {
			return func(pos, i int) (float64, float64) { return float64(pos) * freq(m, i) / factors[i], 1 }
		}},
		{"yarn", func(m *tiny) {
			m.Set("llama.rope.scaling.type", "yarn")
			m.Set("llama.rope.scaling.factor", float32(8))
			m.Set("llama.rope.scaling.original_context_length", uint32(64))
		}, func(m *tiny) angleFunc {
			// YaRN in the form of its paper: pairs that turn more than beta_fast = 32 times over 64
			// positions keep their frequency, those that turn less than once are divided by 8. The
			// pair that turns r times is 16*ln(64/(2*pi*r))/(2*ln 10000): -0.99... and 2.01..., so
			// ggml's floor and ceiling put the ramp between pairs 0 and 3.
			return func(pos, i int) (float64, float64) {
				keep := 1 - math.Min(1, float64(i)/3)
				f := freq(m, i) * (keep + (1-keep)/8)
				return float64(pos) * f, 1 + 0.1*math.Log(8)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newTiny(11)
			c.setup(m)
			m.fill(false, gguf.TensorF32)
			tokens := m.tokens(60)
			lm := m.load(t, model.Options{})
			got := forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0,
				model.ForwardOptions{Logits: model.LogitsAll})
			requireLogits(t, m.forward(tokens, c.angle(m)), got)

			// The frequencies in the geometry are those that were applied.
			angle := c.angle(m)
			for i, f := range lm.Geometry().Rope.Frequencies() {
				a, _ := angle(1, i)
				require.InEpsilon(t, a, f, 1e-6)
			}
		})
	}
}

func TestForward_ChunksAndWorkersAgree(t *testing.T) {
	m := newTiny(3)
	m.fill(true, gguf.TensorQ8_0, gguf.TensorQ4_1)
	tokens := m.tokens(300)
	run := func(o model.Options, chunk int) []float32 {
		lm := m.load(t, o)
		return forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0,
			model.ForwardOptions{Logits: model.LogitsAll, Chunk: chunk})
	}
	want := run(model.Options{Workers: 1}, 300)
	for _, chunk := range []int{1, 33, 128, 299} {
		require.Equal(t, want, run(model.Options{Workers: 4}, chunk), "chunk %d", chunk)
	}
}

func TestForward_Concurrent(t *testing.T) {
	m := newTiny(3)
	m.fill(false, gguf.TensorQ8_0)
	lm := m.load(t, model.Options{Workers: 2})
	tokens := m.tokens(70)
	want := forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0, model.ForwardOptions{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			kv, err := lm.NewKV(model.KVOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			got, err := lm.Forward(tokens, kv, 0, model.ForwardOptions{Chunk: 10 + i})
			if err != nil || !slices.Equal(want, got) {
				t.Errorf("goroutine %d: other logits, error %v", i, err)
			}
		})
	}
	wg.Wait()
}

func TestForward_LogitsModes(t *testing.T) {
	m := newTiny(5)
	m.fill(false, gguf.TensorF32)
	lm := m.load(t, model.Options{})
	tokens := m.tokens(90)
	run := func(o model.ForwardOptions) []float32 {
		o.Chunk = 40
		return forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0, o)
	}
	all := run(model.ForwardOptions{Logits: model.LogitsAll})
	require.Len(t, all, 90*m.vocab)
	require.Equal(t, all[89*m.vocab:], run(model.ForwardOptions{}))
	require.Empty(t, run(model.ForwardOptions{Logits: model.LogitsNone}))
	require.Equal(t, all[35*m.vocab:85*m.vocab],
		run(model.ForwardOptions{Logits: model.LogitsRange, From: 35, To: 85}))
	seen := 3
	require.Nil(t, run(model.ForwardOptions{Logits: model.LogitsRange, From: 3, To: 90,
		OnLogits: func(i int, row []float32) error {
			require.Equal(t, seen, i)
			require.Equal(t, all[i*m.vocab:(i+1)*m.vocab], row)
			seen++
			return nil
		}}))
	require.Equal(t, 90, seen)
}

func TestForward_Errors(t *testing.T) {
	m := newTiny(5)
	m.fill(false, gguf.TensorF32)
	lm := m.load(t, model.Options{})
	boom := errors.New("boom")
	for _, c := range []struct {
		name   string
		tokens []int32
		pos    int
		o      model.ForwardOptions
		want   error
	}{
		{"empty", nil, 0, model.ForwardOptions{}, quant.ErrShape},
		{"token too large", []int32{1, 48}, 0, model.ForwardOptions{}, quant.ErrShape},
		{"token negative", []int32{-1}, 0, model.ForwardOptions{}, quant.ErrShape},
		{"negative position", []int32{1}, -1, model.ForwardOptions{}, quant.ErrShape},
		{"position not next", []int32{1}, 4, model.ForwardOptions{}, quant.ErrShape},
		{"context", make([]int32, 513), 0, model.ForwardOptions{}, quant.ErrTooLarge},
		{"context at end", []int32{1}, 512, model.ForwardOptions{}, quant.ErrTooLarge},
		{"chunk", []int32{1}, 0, model.ForwardOptions{Chunk: -1}, quant.ErrShape},
		{"range", []int32{1}, 0, model.ForwardOptions{Logits: model.LogitsRange, To: 2}, quant.ErrShape},
		{"mode", []int32{1}, 0, model.ForwardOptions{Logits: 9}, quant.ErrShape},
		{"observer", []int32{1}, 0, model.ForwardOptions{
			Observer: func(int, int, int, []float32, []float32, []float32) error { return boom }}, boom},
		{"logits", []int32{1}, 0, model.ForwardOptions{
			OnLogits: func(int, []float32) error { return boom }}, boom},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := lm.Forward(c.tokens, newKV(t, lm, model.KVOptions{}), c.pos, c.o)
			require.ErrorIs(t, err, c.want)
		})
	}
}

func TestForward_ObserverSeesCacheRows(t *testing.T) {
	m := newTiny(9)
	m.fill(false, gguf.TensorF32)
	lm := m.load(t, model.Options{})
	kv := newKV(t, lm, model.KVOptions{})
	const n, dim = 20, 16
	k := make([][]float32, m.layers)
	for l := range k {
		k[l] = make([]float32, n*2*dim)
	}
	forward(t, lm, m.tokens(n), kv, 0, model.ForwardOptions{Chunk: 7,
		Observer: func(layer, pos, rows int, q, kRows, v []float32) error {
			require.Len(t, q, rows*4*dim)
			require.Len(t, v, rows*2*dim)
			copy(k[layer][pos*2*dim:], kRows)
			return nil
		}})
	for l := range k {
		got, _, err := kv.Rows(l, 0, n)
		require.NoError(t, err)
		for i := range n {
			for h := range 2 {
				require.Equal(t, k[l][(i*2+h)*dim:(i*2+h+1)*dim], got[(h*n+i)*dim:(h*n+i+1)*dim])
			}
		}
	}
}

func TestWriteCapture_Tiny(t *testing.T) {
	m := newTiny(13)
	m.Set("llama.rope.scaling.type", "linear")
	m.Set("llama.rope.scaling.factor", float32(2))
	m.fill(false, gguf.TensorF32)
	lm := m.load(t, model.Options{})
	tokens := m.tokens(30)
	dir := t.TempDir()
	path := filepath.Join(dir, "c.safetensors")
	require.NoError(t, lm.WriteCapture(path, tokens, model.CaptureOptions{
		Next: 10, DType: quant.Float32, Layers: []int{1}, Chunk: 7}))

	kv := newKV(t, lm, model.KVOptions{})
	all := forward(t, lm, tokens, kv, 0, model.ForwardOptions{Logits: model.LogitsAll})
	k, v, err := kv.Rows(1, 20, 30)
	require.NoError(t, err)
	s, err := capture.Open(path, capture.Limits{})
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, lm.Geometry(), s.Info().Geometry)
	require.Equal(t, []int{1}, s.Info().Layers)
	require.Equal(t, []int{20, 10}, []int{s.Info().Tokens, s.Info().TokensNext})
	for p, want := range map[capture.Part][]float32{capture.KNext: k, capture.VNext: v} {
		h, ok := s.KV(1, p)
		require.True(t, ok)
		got := make([]float32, 10*16)
		for head := range 2 {
			require.NoError(t, h.ReadF32(head, 0, 10, got))
			require.Equal(t, want[head*160:(head+1)*160], got)
		}
	}
	sur := make([]float32, 20)
	require.NoError(t, s.ReadSurprisal(false, 0, sur))
	require.Zero(t, sur[0])
	for i := 1; i < 20; i++ {
		want := model.Surprisal(all[(i-1)*m.vocab:i*m.vocab], tokens[i])
		require.InDelta(t, want, sur[i], 1e-6)
	}

	for _, o := range []model.CaptureOptions{{Next: 30}, {Next: -1}, {Layers: []int{2}},
		{Layers: []int{1, 1}}, {Layers: []int{}}} {
		require.ErrorIs(t, lm.WriteCapture(filepath.Join(dir, "x"), tokens, o), quant.ErrShape)
	}
	err = lm.WriteCapture(filepath.Join(dir, "x"), tokens, model.CaptureOptions{DType: 9})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	require.ErrorIs(t, lm.WriteCapture(filepath.Join(dir, "x"), append(tokens, 99),
		model.CaptureOptions{}), quant.ErrShape)
	require.ErrorIs(t, lm.WriteCapture(path, tokens, model.CaptureOptions{}), fs.ErrExist)
	require.NoError(t, lm.WriteCapture(path, tokens, model.CaptureOptions{Force: true}))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1) // what failed left nothing behind
}
