// SPDX-License-Identifier: Apache-2.0

package model

import (
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Config is the shape of a model as stored in its file.
type Config struct {
	Name     string  // general.name; the name of the file if there is none
	Layers   int     // transformer layers
	Hidden   int     // components of the residual stream
	FFN      int     // components within the feed-forward network
	Heads    int     // query heads
	KVHeads  int     // key/value heads
	HeadDim  int     // components of a query and of a row of K
	HeadDimV int     // components of a row of V
	Vocab    int     // tokens
	Context  int     // largest number of positions
	Eps      float64 // added to the mean square in RMS norms
	rope     *rope
}

// Bounds on a Config. Every matrix must be in the file, so these only keep products within an int.
const (
	maxHidden  = 1 << 20
	maxContext = 1 << 24
)

// readConfig reads the configuration. It rejects models that the forward pass cannot run.
//
// Errors: *gguf.FileError wrapping ErrUnsupported or ErrCorrupt.
func readConfig(f *gguf.File) (Config, error) {
	m := metaReader{f: f}
	var c Config
	arch := m.str("general.architecture", "")
	if m.err == nil && arch != "llama" {
		return c, f.KeyError("general.architecture",
			unsupportedf("%q; this version runs models of architecture \"llama\"", arch))
	}
	if err := refuseKeys(f); err != nil {
		return c, err
	}
	c.Name = m.str("general.name", f.Name)
	c.Layers = m.int("llama.block_count", -1, 1, quant.MaxLayers)
	c.Context = m.int("llama.context_length", -1, 1, maxContext)
	c.Hidden = m.int("llama.embedding_length", -1, 1, maxHidden)
	c.FFN = m.int("llama.feed_forward_length", -1, 1, maxHidden)
	c.Heads = m.int("llama.attention.head_count", -1, 1, quant.MaxHeads)
	c.KVHeads = m.int("llama.attention.head_count_kv", c.Heads, 1, quant.MaxHeads)
	c.Eps = m.float("llama.attention.layer_norm_rms_epsilon", 1e-5)
	if m.err != nil {
		return c, m.err
	}
	c.HeadDim = m.int("llama.attention.key_length", c.Hidden/c.Heads, 1, quant.MaxDim)
	c.HeadDimV = m.int("llama.attention.value_length", c.Hidden/c.Heads, 1, quant.MaxDim)
	dim := m.int("llama.rope.dimension_count", c.HeadDim, 2, quant.MaxDim)
	theta := m.float("llama.rope.freq_base", 10000)
	if m.err != nil {
		return c, m.err
	}
	if c.Heads%c.KVHeads != 0 {
		return c, f.KeyError("llama.attention.head_count_kv",
			corruptf("%d kv_heads, want a divisor of %d heads", c.KVHeads, c.Heads))
	}
	if !(theta > 0) {
		return c, f.KeyError("llama.rope.freq_base", corruptf("%v, want a positive number", theta))
	}
	if !(theta > 1 && theta < 1e15) {
		return c, f.KeyError("llama.rope.freq_base", unsupportedf("%v, want more than 1 and less than 1e15", theta))
	}
	if !(c.Eps >= 0) {
		return c, f.KeyError("llama.attention.layer_norm_rms_epsilon",
			corruptf("%v, want 0 or more", c.Eps))
	}
	if c.Eps >= 1 {
		return c, f.KeyError("llama.attention.layer_norm_rms_epsilon", unsupportedf("%v, want less than 1", c.Eps))
	}
	if dim%2 != 0 || dim > c.HeadDim {
		return c, f.KeyError("llama.rope.dimension_count",
			corruptf("%d, want an even number of [2, head_dim %d]", dim, c.HeadDim))
	}
	scaling, err := readScaling(f, dim, c.Context)
	if err != nil {
		return c, err
	}
	c.rope = newRope(dim, theta, scaling)
	emb, ok := f.Tensor("token_embd.weight")
	if !ok || len(emb.Dims) != 2 {
		return c, &gguf.FileError{File: f.Name, Section: `tensor "token_embd.weight"`, Offset: -1,
			Err: corruptf("missing, or not a matrix")}
	}
	if emb.Rows() > 1<<24 {
		return c, f.TensorError(emb, unsupportedf("%d rows, want at most 2^24", emb.Rows()))
	}
	c.Vocab = int(emb.Rows())
	return c, c.geometry().Validate()
}

func (c Config) geometry() quant.Geometry {
	return quant.Geometry{Layers: c.Layers, Heads: c.Heads, KVHeads: c.KVHeads,
		HeadDim: c.HeadDim, HeadDimV: c.HeadDimV, Rope: c.rope.geometry()}
}

// features names the feature that a key switches on. This package runs no model with one of them;
// error messages give the name.
var features = map[string]string{
	"llama.expert_count":                     "mixture of experts",
	"llama.expert_used_count":                "mixture of experts",
	"llama.expert_shared_count":              "mixture of experts",
	"llama.attention.sliding_window":         "sliding-window attention",
	"llama.attention.q_lora_rank":            "multi-head latent attention",
	"llama.attention.kv_lora_rank":           "multi-head latent attention",
	"llama.attention.key_length_mla":         "multi-head latent attention",
	"llama.attention.value_length_mla":       "multi-head latent attention",
	"llama.attention.max_alibi_bias":         "ALiBi",
	"llama.attention.clamp_kqv":              "clamped q, k and v",
	"llama.attention.scale":                  "an attention scale of its own",
	"llama.attn_logit_softcapping":           "capped attention scores",
	"llama.final_logit_softcapping":          "capped logits",
	"llama.use_parallel_residual":            "parallel residual",
	"llama.attention.temperature_length":     "attention temperature",
	"llama.attention.temperature_scale":      "attention temperature",
	"llama.embedding_scale":                  "scaled embeddings",
	"llama.residual_scale":                   "scaled residuals",
	"llama.logit_scale":                      "scaled logits",
	"llama.swin_norm":                        "swin norm",
	"llama.rope.dimension_sections":          "multi-axis RoPE",
	"llama.attention.group_norm_groups":      "group norm",
	"llama.interleave_moe_layer_step":        "mixture of experts",
	"llama.nextn_predict_layers":             "multi-token prediction",
	"llama.attention.indexer.head_count":     "sparse attention",
	"llama.attention.chunk_size":             "chunked attention",
	"llama.attention.shared_kv_layers":       "KV shared between layers",
	"llama.attention.sliding_window_pattern": "sliding-window attention",
}

// understood lists the keys of the architecture that readConfig uses or can ignore.
var understood = []string{
	"block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
	"attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
	"attention.layer_norm_epsilon", "attention.key_length", "attention.value_length",
	"rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type",
	"rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
	"rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
	"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
	"rope.scaling.yarn_log_multiplier", "tensor_data_layout",
}

// refuseKeys rejects a model with a key that changes the computation in a way that this package
// does not implement. Running it would give wrong numbers.
func refuseKeys(f *gguf.File) error {
	for _, key := range f.Keys() {
		name, ok := strings.CutPrefix(key, "llama.")
		if !ok || slices.Contains(understood, name) {
			continue
		}
		v, _ := f.Meta(key)
		if v.IsZero() {
			continue
		}
		if what, ok := features[key]; ok {
			return f.KeyError(key, unsupportedf("%s (%s)", what, v))
		}
		if key == "llama.attention.causal" {
			continue // true, as expected; false is rejected below
		}
		return f.KeyError(key, unsupportedf("%s, a key that this version does not know", v))
	}
	if v, ok := f.Meta("llama.attention.causal"); ok && v.IsZero() {
		return f.KeyError("llama.attention.causal", unsupportedf("attention that is not causal"))
	}
	return nil
}

// tensorFeature names the feature that a tensor belongs to. refused reports whether it is one that
// this package does not run.
func tensorFeature(name string) (what string, refused bool) {
	for _, p := range []struct{ part, what string }{
		{"sinks", "attention sinks"}, {"_exps", "mixture of experts"},
		{"_shexp", "mixture of experts"}, {"ffn_gate_inp", "mixture of experts"},
		{"attn_kv_a", "multi-head latent attention"}, {"attn_q_a", "multi-head latent attention"},
		{"attn_q_norm", "normalised queries"}, {"attn_k_norm", "normalised keys"},
		{".bias", "biases"}, {"rope_factors", "longrope factors"}, {"attn_qkv", "fused q, k and v"},
	} {
		if strings.Contains(name, p.part) {
			return p.what, true
		}
	}
	return "", false
}
