// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

func TestLoad_Refuses(t *testing.T) {
	key := func(k string, v any) func(*tiny) { return func(m *tiny) { m.Set(k, v) } }
	tensor := func(name string) func(*tiny) {
		return func(m *tiny) { m.tensor(name, gguf.TensorF32, 1, 4) }
	}
	for _, c := range []struct {
		name  string
		setup func(*tiny)
		want  error
		text  string // the error must say what it is about
	}{
		{"arch", key("general.architecture", "mamba"), quant.ErrUnsupported, `"mamba"`},
		{"arch missing", func(m *tiny) { m.Drop("general.architecture") },
			quant.ErrUnsupported, "general.architecture"},
		{"arch type", key("general.architecture", uint32(1)), quant.ErrCorrupt, "general.architecture"},
		{"moe key", key("llama.expert_count", uint32(8)), quant.ErrUnsupported, "mixture of experts"},
		{"moe tensor", tensor("blk.0.ffn_gate_exps.weight"), quant.ErrUnsupported, "mixture of experts"},
		{"window", key("llama.attention.sliding_window", int32(-1)), quant.ErrCorrupt, "sliding_window"},
		{"soft cap", key("llama.attn_logit_softcapping", float32(50)),
			quant.ErrUnsupported, "capped attention scores"},
		{"attention scale", key("llama.attention.scale", float32(-1)), quant.ErrUnsupported, "attention.scale"},
		{"base of windows", key("llama.rope.freq_base_swa", float32(1e4)),
			quant.ErrUnsupported, "RoPE base of windowed layers"},
		{"residual scale", key("llama.residual_scale", float32(0.2)), quant.ErrUnsupported, "scaled residuals"},
		{"fused", tensor("blk.0.attn_qkv.weight"), quant.ErrUnsupported, "fused q, k and v"},
		{"qk norm", tensor("blk.0.attn_q_norm.weight"), quant.ErrUnsupported, "normalised queries"},
		{"post norm", tensor("blk.0.post_ffw_norm.weight"), quant.ErrUnsupported, "norms after"},
		{"longrope factors", tensor("rope_factors_long.weight"), quant.ErrUnsupported, "longrope"},
		{"bias shape", tensor("blk.1.attn_q.bias"), quant.ErrCorrupt, "dimensions [4], want [64]"},
		{"mla key", key("llama.attention.kv_lora_rank", uint32(512)), quant.ErrUnsupported, "latent"},
		{"mla tensor", tensor("blk.0.attn_kv_a_mqa.weight"), quant.ErrUnsupported, "latent"},
		{"sinks", tensor("blk.1.attn_sinks.weight"), quant.ErrUnsupported, "attention sinks"},
		{"bias", tensor("blk.1.ffn_up.bias"), quant.ErrUnsupported, "biases"},
		{"unknown tensor", tensor("blk.1.extra.weight"), quant.ErrUnsupported, "blk.1.extra.weight"},
		{"unknown key", key("llama.attention.new_thing", float32(2)), quant.ErrUnsupported, "new_thing"},
		{"not causal", key("llama.attention.causal", false), quant.ErrUnsupported, "causal"},
		{"longrope", key("llama.rope.scaling.type", "longrope"), quant.ErrUnsupported, "longrope"},
		{"log multiplier", key("llama.rope.scaling.yarn_log_multiplier", float32(0.1)),
			quant.ErrUnsupported, "yarn_log_multiplier"},
		{"factor", key("llama.rope.scaling.factor", float32(-1)), quant.ErrCorrupt, "factor"},
		{"theta", key("llama.rope.freq_base", float32(0)), quant.ErrCorrupt, "freq_base"},
		{"eps", key("llama.attention.layer_norm_rms_epsilon", float32(-1)), quant.ErrCorrupt, "epsilon"},
		{"rotary odd", key("llama.rope.dimension_count", uint32(7)),
			quant.ErrCorrupt, "dimension_count"},
		{"rotary large", key("llama.rope.dimension_count", uint32(18)),
			quant.ErrCorrupt, "dimension_count"},
		{"heads 0", key("llama.attention.head_count", uint32(0)), quant.ErrCorrupt, "head_count"},
		{"heads per layer", key("llama.attention.head_count", []int32{4, 4}),
			quant.ErrUnsupported, "head_count"},
		{"kv_heads", key("llama.attention.head_count_kv", uint32(3)), quant.ErrCorrupt, "kv_heads"},
		{"layers", key("llama.block_count", uint32(1<<31)), quant.ErrUnsupported, "block_count"},
		{"heads of each layer", key("llama.attention.head_count_kv", []int32{1, 2}),
			quant.ErrUnsupported, "not supported: array of 2 int32: a value for each layer"},
		{"context", key("llama.context_length", uint32(1<<30)), quant.ErrUnsupported, "at most"},
		{"theta too large", key("llama.rope.freq_base", float32(1e20)), quant.ErrUnsupported,
			"not supported: 1.00"},
		{"layer missing", key("llama.block_count", uint32(3)),
			quant.ErrCorrupt, "blk.2.attn_norm.weight"},
		{"context", func(m *tiny) { m.Drop("llama.context_length") },
			quant.ErrCorrupt, "context_length"},
		{"shape", key("llama.embedding_length", uint32(96)), quant.ErrCorrupt, "dimensions"},
		{"ffn", key("llama.feed_forward_length", uint32(95)), quant.ErrCorrupt, "ffn_gate"},
		{"freq factors", tensor("rope_freqs.weight"), quant.ErrCorrupt, "rope_freqs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newTiny(1)
			m.fill(false, gguf.TensorF32)
			c.setup(m)
			f, err := read(m.Bytes())
			require.NoError(t, err)
			_, err = model.Load(f, model.Options{})
			requireTyped(t, err)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}

func TestLoad_HarmlessKeys(t *testing.T) {
	m := newTiny(1)
	m.fill(false, gguf.TensorF32)
	m.Set("llama.vocab_size", uint32(48))
	m.Set("llama.expert_count", uint32(0))
	m.Set("llama.attention.sliding_window", uint32(0))
	m.Set("llama.attention.causal", true)
	m.Set("qwen2.expert_count", uint32(8)) // another architecture's key says nothing here
	lm := m.load(t, model.Options{})
	require.Equal(t, "tiny", lm.Name)
	require.Nil(t, lm.Tokenizer())
	w, err := lm.OutputWeight(1)
	require.NoError(t, err)
	require.Equal(t, float32(m.w["blk.1.attn_output.weight"][70]), w[70])
	_, err = lm.OutputWeight(2)
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestLoad_Options(t *testing.T) {
	m := newTiny(1)
	m.fill(false, gguf.TensorF32)
	f, err := read(m.Bytes())
	require.NoError(t, err)
	_, err = model.Load(f, model.Options{Workers: -1})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = model.Load(f, model.Options{ISA: "mmx"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	generic, err := model.Load(f, model.Options{ISA: "generic"})
	require.NoError(t, err)
	tokens := m.tokens(20)
	got := forward(t, generic, tokens, newKV(t, generic, model.KVOptions{}), 0,
		model.ForwardOptions{Logits: model.LogitsAll})
	requireLogits(t, m.forward(tokens, plainAngle(m)), got)
}

func TestOpen_VocabularyMustFit(t *testing.T) {
	for vocab, ok := range map[int]bool{300: true, 301: false} {
		m := newTiny(1)
		m.vocab = 300
		m.fill(false, gguf.TensorF32)
		addVocabulary(&m.Builder, vocab)
		path := filepath.Join(t.TempDir(), "m.gguf")
		require.NoError(t, os.WriteFile(path, m.Bytes(), 0o600))
		lm, err := model.Open(path, model.Options{})
		if !ok {
			require.ErrorIs(t, err, quant.ErrCorrupt)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 300, lm.Tokenizer().Vocab())
	}
}

func TestFindModel(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, model.DefaultFile)
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	for _, c := range []struct{ model, cache, want string }{
		{path, "", path}, {"", dir, path}, {path, "/nowhere", path},
		{path + "x", dir, ""}, {dir, "", ""}, {"", filepath.Join(dir, "none"), ""},
	} {
		t.Setenv("KVIST_MODEL", c.model)
		t.Setenv("KVIST_CACHE", c.cache)
		got, err := model.Find()
		require.Equal(t, c.want, got)
		if c.want == "" {
			require.ErrorIs(t, err, quant.ErrUnavailable)
		}
	}
}
