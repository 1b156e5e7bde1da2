// SPDX-License-Identifier: Apache-2.0

package model

import (
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/gguf"
)

// architecture is what the name of an architecture says that its file does not: which features a layer
// has, and the values of keys that are missing. The forward pass knows features only.
type architecture struct {
	interleaved bool // rows of q and k are permuted for interleaved RoPE
	fused       bool // q, k and v are one tensor; gate and up are one
	qkNorm      bool // heads of q and k are normalised before RoPE
	postNorm    bool // what attention and feed-forward network give is normalised before it is added
	gelu        bool // the gate is GELU in the tanh form; otherwise SiLU
	ropeFactors bool // rope_freqs.weight may divide the frequencies
	longrope    bool // rope_factors_long.weight and _short may divide them

	rootEmbed      bool // embeddings are multiplied by sqrt(hidden)
	scales         bool // embedding_scale, residual_scale and logit_scale
	attentionScale bool // attention.scale
	finetunedRope  bool // rope.scaling.finetuned false: no layer has RoPE
	noRopeEvery    int  // the last of every so many layers has no RoPE; 0: each has

	rootScaleLayers int // with so many layers, the attention scale is 1/sqrt(hidden/heads)

	scoreSoftcap    bool    // attn_logit_softcapping
	logitSoftcap    bool    // final_logit_softcapping
	defaultLogitCap float64 // where that key is missing

	window       bool    // attention.sliding_window
	windowOf     int     // where that key is missing; 0: no window
	windowEvery  int     // every so many layers the last one has no window; 0: each has
	windowedRope bool    // layers with a window have a RoPE base of their own, without scaling
	windowedBase float64 // where rope.freq_base_swa is missing; 0: that of the others
}

// defaultScoreCap and the defaults below are those of llama.cpp.
const defaultScoreCap = 50

// architectures that this package runs. gemma2 and gemma3 of 27B parameters are told by their layers.
var architectures = map[string]*architecture{
	"llama":   {interleaved: true, ropeFactors: true, attentionScale: true, window: true},
	"smollm3": {interleaved: true, attentionScale: true, noRopeEvery: 4},
	"qwen2":   {},
	"qwen3":   {qkNorm: true},
	"gemma2": {postNorm: true, gelu: true, rootEmbed: true, rootScaleLayers: 46, scoreSoftcap: true,
		logitSoftcap: true, defaultLogitCap: 30, window: true, windowOf: 4096, windowEvery: 2},
	"gemma3": {qkNorm: true, postNorm: true, gelu: true, rootEmbed: true, rootScaleLayers: 62,
		logitSoftcap: true, window: true, windowEvery: 6, windowedRope: true, windowedBase: 10000},
	"phi3": {fused: true, longrope: true, window: true},
	"granite": {interleaved: true, ropeFactors: true, scales: true, attentionScale: true,
		finetunedRope: true},
}

// findArchitecture returns the architecture of a file and its name.
func findArchitecture(f *gguf.File) (*architecture, string, error) {
	const key = "general.architecture"
	v, ok := f.Meta(key)
	name, isString := v.Str()
	if ok && !isString {
		return nil, "", f.KeyError(key, corruptf("%s of type %s, want a string", v, v.Type))
	}
	if a := architectures[name]; a != nil {
		return a, name, nil
	}
	var names []string
	for n := range architectures {
		names = append(names, n)
	}
	slices.Sort(names)
	return nil, "", f.KeyError(key, unsupportedf("%q; this version runs models of %s", name,
		strings.Join(names, ", ")))
}

// windows returns the window of each layer, 0 for none. A window of all positions is none.
func (a *architecture) windows(m *metaReader, layers, context int) ([]int, error) {
	const key, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
	out := make([]int, layers)
	if !a.window {
		return out, nil
	}
	w := m.int(key, a.windowOf, 0, maxContext)
	if m.err != nil || w == 0 || w >= context {
		return out, m.err
	}
	every := a.windowEvery
	if v, ok := m.meta(pattern); ok {
		if has, isList := v.Bools(); isList {
			if len(has) != layers {
				return nil, m.wrong(pattern, corruptf("%d values, want one for each of %d layers", len(has), layers))
			}
			for l, yes := range has {
				if yes {
					out[l] = w
				}
			}
			return out, nil
		}
		every = m.int(pattern, every, 0, layers)
	}
	for l := range out {
		if every == 0 || l%every != every-1 {
			out[l] = w
		}
	}
	return out, m.err
}

// hasRope reports whether a layer has RoPE.
func (a *architecture) hasRope(layer int) bool {
	return a.noRopeEvery == 0 || layer%a.noRopeEvery != a.noRopeEvery-1
}

// features names the feature that a key switches on. Where the architecture does not have it, a model
// with it is refused; error messages give the name.
var features = map[string]string{
	"expert_count":                     "mixture of experts",
	"expert_used_count":                "mixture of experts",
	"expert_shared_count":              "mixture of experts",
	"attention.sliding_window":         "sliding-window attention",
	"attention.sliding_window_pattern": "sliding-window attention",
	"attention.q_lora_rank":            "multi-head latent attention",
	"attention.kv_lora_rank":           "multi-head latent attention",
	"attention.key_length_mla":         "multi-head latent attention",
	"attention.value_length_mla":       "multi-head latent attention",
	"attention.max_alibi_bias":         "ALiBi",
	"attention.clamp_kqv":              "clamped q, k and v",
	"attention.scale":                  "an attention scale of its own",
	"attn_logit_softcapping":           "capped attention scores",
	"final_logit_softcapping":          "capped logits",
	"use_parallel_residual":            "parallel residual",
	"attention.temperature_length":     "attention temperature",
	"attention.temperature_scale":      "attention temperature",
	"embedding_scale":                  "scaled embeddings",
	"residual_scale":                   "scaled residuals",
	"logit_scale":                      "scaled logits",
	"swin_norm":                        "swin norm",
	"rope.dimension_sections":          "multi-axis RoPE",
	"rope.freq_base_swa":               "a RoPE base of windowed layers",
	"attention.group_norm_groups":      "group norm",
	"interleave_moe_layer_step":        "mixture of experts",
	"nextn_predict_layers":             "multi-token prediction",
	"attention.indexer.head_count":     "sparse attention",
	"attention.chunk_size":             "chunked attention",
	"attention.shared_kv_layers":       "KV shared between layers",
}

// understood lists the keys that every architecture has. Some are of no use here: vocab_size, which
// token_embd.weight says too, and keys that only tools read.
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

// understands reports whether readConfig uses a key, or can ignore it.
func (a *architecture) understands(name string) bool {
	if slices.Contains(understood, name) {
		return true
	}
	switch name {
	case "attention.sliding_window", "attention.sliding_window_pattern":
		return a.window
	case "rope.freq_base_swa":
		return a.windowedRope
	case "attention.scale":
		return a.attentionScale
	case "embedding_scale", "residual_scale", "logit_scale":
		return a.scales
	case "attn_logit_softcapping":
		return a.scoreSoftcap
	case "final_logit_softcapping":
		return a.logitSoftcap
	}
	return false
}

// refuseKeys rejects a model with a key that changes the computation in a way that this package
// does not implement. Running it would give wrong numbers.
func refuseKeys(f *gguf.File, arch string, a *architecture) error {
	for _, key := range f.Keys() {
		name, ok := strings.CutPrefix(key, arch+".")
		if !ok || a.understands(name) {
			continue
		}
		v, _ := f.Meta(key)
		if name == "attention.causal" {
			if v.IsZero() {
				return f.KeyError(key, unsupportedf("attention that is not causal"))
			}
			continue
		}
		if v.IsZero() {
			continue
		}
		if what, ok := features[name]; ok {
			return f.KeyError(key, unsupportedf("%s (%s)", what, v))
		}
		return f.KeyError(key, unsupportedf("%s, a key that this version does not know", v))
	}
	return nil
}

// tensorFeature names the feature that a tensor belongs to. refused reports whether it is one that
// this package does not run, or that models of the architecture do not have.
func (a *architecture) tensorFeature(name string) (what string, refused bool) {
	for _, p := range []struct {
		part, what string
		has        bool
	}{
		{"sinks", "attention sinks", false}, {"_exps", "mixture of experts", false},
		{"_shexp", "mixture of experts", false}, {"ffn_gate_inp", "mixture of experts", false},
		{"attn_kv_a", "multi-head latent attention", false},
		{"attn_q_a", "multi-head latent attention", false},
		{"attn_q_norm", "normalised queries", a.qkNorm}, {"attn_k_norm", "normalised keys", a.qkNorm},
		{"post_attention_norm", "norms after attention", a.postNorm},
		{"post_ffw_norm", "norms after the feed-forward network", a.postNorm},
		{"rope_factors", "longrope factors", a.longrope},
		{"rope_freqs", "RoPE factors", a.ropeFactors},
		{"attn_qkv", "fused q, k and v", a.fused},
		{".bias", "biases other than those of attention", attentionBias(name)},
	} {
		if strings.Contains(name, p.part) {
			return p.what, !p.has
		}
	}
	return "", false
}

func attentionBias(name string) bool {
	for _, s := range []string{"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias", "attn_output.bias"} {
		if strings.HasSuffix(name, "."+s) {
			return true
		}
	}
	return false
}
