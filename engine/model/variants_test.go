// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

// rebuilt returns a builder with the keys and tensors of a reference model.
func rebuilt(t testing.TB, name string) *builder {
	t.Helper()
	f, err := gguf.Open(filepath.Join(referenceDir, name+".gguf"))
	require.NoError(t, err)
	defer f.Close()
	b := &builder{}
	for _, key := range f.Keys() {
		v, _ := f.Meta(key)
		if s, ok := v.Str(); ok {
			b.Set(key, s)
		} else if n, ok := v.Int(); ok {
			b.Set(key, uint32(n))
		} else if x, ok := v.Float(); ok {
			b.Set(key, float32(x))
		} else if list, ok := v.Strings(); ok {
			b.Set(key, list)
		} else if yes, ok := v.Bool(); ok {
			b.Set(key, yes)
		}
	}
	for _, tensor := range f.Tensors() {
		x, err := f.Floats(tensor)
		require.NoError(t, err)
		wide := make([]float64, len(x))
		for i, v := range x {
			wide[i] = float64(v)
		}
		data, _ := gguftest.Store(gguf.TensorF32, wide)
		dims := make([]uint64, len(tensor.Dims))
		for i, d := range tensor.Dims {
			dims[i] = uint64(d)
		}
		b.Add(tensor.Name, gguf.TensorF32, data, dims...)
	}
	return b
}

func loadBuilder(b *builder, o model.Options) (*model.Model, error) {
	f, err := read(b.Bytes())
	if err != nil {
		return nil, err
	}
	return model.Load(f, o)
}

func windows(m *model.Model) (list []int) {
	for _, a := range m.Attention() {
		list = append(list, a.Window)
	}
	return list
}

func bases(m *model.Model) (list []float64) {
	for _, a := range m.Attention() {
		list = append(list, a.Rope.Theta)
	}
	return list
}

// TestLoad_WindowPatterns: files say which layers have a window by a number, by a list, or not at all.
func TestLoad_WindowPatterns(t *testing.T) {
	const window, pattern = "gemma3.attention.sliding_window", "gemma3.attention.sliding_window_pattern"
	for _, c := range []struct {
		name    string
		change  func(b *builder)
		windows []int
		bases   []float64
	}{
		{"every third", func(*builder) {}, []int{8, 8, 0, 8}, []float64{1e4, 1e4, 1e6, 1e4}},
		{"default of six", func(b *builder) { b.Drop(pattern) }, []int{8, 8, 8, 8}, []float64{1e4, 1e4, 1e4, 1e4}},
		{"list", func(b *builder) { b.Set(pattern, []bool{true, false, true, false}) },
			[]int{8, 0, 8, 0}, []float64{1e4, 1e6, 1e4, 1e6}},
		{"list of integers", func(b *builder) { b.Set(pattern, []int32{0, 1, 0, 0}) },
			[]int{0, 8, 0, 0}, []float64{1e6, 1e4, 1e6, 1e6}},
		{"base of windows", func(b *builder) { b.Set("gemma3.rope.freq_base_swa", float32(500)) },
			[]int{8, 8, 0, 8}, []float64{500, 500, 1e6, 500}},
		{"no window", func(b *builder) { b.Drop(window) }, []int{0, 0, 0, 0}, []float64{1e6, 1e6, 1e6, 1e6}},
		{"a window of all positions", func(b *builder) { b.Set(window, uint32(64)) },
			[]int{0, 0, 0, 0}, []float64{1e4, 1e4, 1e6, 1e4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := rebuilt(t, "gemma3")
			c.change(b)
			m, err := loadBuilder(b, model.Options{})
			require.NoError(t, err)
			require.Equal(t, c.windows, windows(m))
			require.Equal(t, c.bases, bases(m))
		})
	}
	b := rebuilt(t, "gemma3")
	b.Set(pattern, []bool{true})
	_, err := loadBuilder(b, model.Options{})
	requireTyped(t, err)
	require.ErrorContains(t, err, "one for each of 4 layers")
}

// TestLoad_Longrope: the number of positions chooses the frequencies, and the model runs no more than
// those are for.
func TestLoad_Longrope(t *testing.T) {
	for positions, want := range map[int]struct {
		context int
		slowest float64
	}{0: {32, 0.01 / 1.25}, 32: {32, 0.01 / 1.25}, 33: {128, 0.01 / 4}, 1 << 20: {128, 0.01 / 4}} {
		m, err := loadBuilder(rebuilt(t, "phi3"), model.Options{Context: positions})
		require.NoError(t, err)
		require.Equal(t, want.context, m.Context)
		a := m.Attention()[1]
		require.InDelta(t, want.slowest, a.Rope.InvFreq[1], 1e-6)
		require.InDelta(t, 1.1832, a.RopeScale, 1e-4) // sqrt(1 + ln 4 / ln 32)
		_, err = m.Forward(make([]int32, want.context+1), newKV(t, m, model.KVOptions{}), 0, model.ForwardOptions{})
		require.ErrorIs(t, err, quant.ErrTooLarge)
	}
	_, err := loadBuilder(rebuilt(t, "phi3"), model.Options{Context: -1})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestLoad_ArchitecturesRefuse(t *testing.T) {
	for _, c := range []struct {
		model  string
		change func(b *builder)
		want   error
		text   string
	}{
		{"phi3", func(b *builder) { b.Set("phi3.rope.dimension_count", uint32(8)) }, quant.ErrCorrupt, "rope_factors_long"},
		{"qwen2", func(b *builder) { b.Set("qwen2.attention.sliding_window", uint32(8)) },
			quant.ErrUnsupported, "sliding-window"},
		{"qwen2", func(b *builder) { b.Set("qwen2.rope.scaling.type", "longrope") }, quant.ErrUnsupported, "longrope"},
		{"gemma2", func(b *builder) { b.Set("gemma2.attn_logit_softcapping", float32(-1)) },
			quant.ErrCorrupt, "attn_logit_softcapping"},
		{"gemma2", func(b *builder) { b.Set("gemma2.final_logit_softcapping", float32(1e-9)) },
			quant.ErrUnsupported, "final_logit_softcapping"},
		{"granite", func(b *builder) { b.Set("granite.logit_scale", float32(1e9)) }, quant.ErrUnsupported, "logit_scale"},
		{"granite", func(b *builder) { b.Set("granite.expert_count", uint32(2)) },
			quant.ErrUnsupported, "mixture of experts"},
		{"smollm3", func(b *builder) { b.Set("smollm3.embedding_scale", float32(2)) },
			quant.ErrUnsupported, "scaled embeddings"},
	} {
		b := rebuilt(t, c.model)
		c.change(b)
		_, err := loadBuilder(b, model.Options{})
		requireTyped(t, err, c.text)
		require.ErrorIs(t, err, c.want, c.text)
		require.ErrorContains(t, err, c.text)
	}
}

// TestLoad_GraniteWithoutRope: rope.scaling.finetuned false means that no layer knows positions.
func TestLoad_GraniteWithoutRope(t *testing.T) {
	b := rebuilt(t, "granite")
	b.Set("granite.rope.scaling.finetuned", false)
	m, err := loadBuilder(b, model.Options{})
	require.NoError(t, err)
	require.Equal(t, quant.RopeNone, m.Geometry().Rope.Layout)
	require.Equal(t, quant.RopeNone, m.Attention()[0].Rope.Layout)
	_, ok := m.Uniform()
	require.False(t, ok) // its attention scale
}

// TestWriteCapture_SaysHowLayersAttend: a capture has RoPE, window, soft cap and scale of each layer as
// the model has them, and says kv-capture/2 only where it must.
func TestWriteCapture_SaysHowLayersAttend(t *testing.T) {
	for name, format := range map[string]string{"gemma3": "kv-capture/2", "gemma2": "kv-capture/2",
		"mistral": "kv-capture/2", "smollm3": "kv-capture/2", "granite": "kv-capture/2",
		"llama": "kv-capture/1", "qwen2": "kv-capture/1", "qwen3": "kv-capture/1"} {
		m, err := loadBuilder(rebuilt(t, name), model.Options{})
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "c.safetensors")
		require.NoError(t, m.WriteCapture(path, make([]int32, 12), model.CaptureOptions{Next: 2}), name)
		src, err := capture.Open(path, capture.Limits{})
		require.NoError(t, err, name)
		require.Equal(t, format, src.Info().Metadata["format"], name)
		g := src.Info().Geometry
		for l, a := range m.Attention() {
			require.Equal(t, a.Rope, g.RopeOf(l), "%s layer %d", name, l)
			require.Equal(t, int64(a.Window), g.WindowOf(l), "%s layer %d", name, l)
			require.InDelta(t, a.Scale, g.ScaleOf(l), 1e-7, "%s layer %d", name, l)
			require.Equal(t, a.Softcap, g.SoftcapOf(l), "%s layer %d", name, l)
		}
		require.NoError(t, src.Close())
	}
}
