# SPDX-License-Identifier: Apache-2.0
"""Writes testdata/models: for each architecture a tiny random model as GGUF, and the logits that
transformers computes for it in float32 (eager attention, CPU).

Run it with `make model-fixtures`. The GGUF files are written by this script, tensor by tensor; nothing
of transformers' or llama.cpp's converters is used, so that a model is described twice, here and in the
package that reads it. References beside transformers would be blind to a mistake that both share:
`make check-llama` holds the same files against llama.cpp.
"""
import json
import math
import os
import sys

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

SEED = 20261130
VOCAB = 64
BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=24, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
            attn_implementation="eager", pad_token_id=0, bos_token_id=1, eos_token_id=2)


def models():
    """name, config, GGUF architecture, extra keys, tokens to run."""
    c = transformers
    yield "llama", c.LlamaConfig(**BASE, num_hidden_layers=2, head_dim=8, attention_bias=True,
        tie_word_embeddings=False, rope_theta=10000.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=16)), "llama", {}, 40
    yield "llama-yarn", c.LlamaConfig(**BASE, num_hidden_layers=1, head_dim=8, tie_word_embeddings=True,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)), "llama", {
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16}, 40
    yield "mistral", c.MistralConfig(**BASE, num_hidden_layers=2, head_dim=16, tie_word_embeddings=False,
        sliding_window=8), "llama", {"attention.sliding_window": 8}, 30
    yield "smollm3", c.SmolLM3Config(**BASE, num_hidden_layers=4, no_rope_layer_interval=4,
        rope_theta=50000.0, use_sliding_window=False, tie_word_embeddings=True), "smollm3", {}, 24
    yield "qwen2", c.Qwen2Config(**BASE, num_hidden_layers=2, rope_theta=1e6,
        tie_word_embeddings=True), "qwen2", {}, 24
    yield "qwen3", c.Qwen3Config(**BASE, num_hidden_layers=2, head_dim=16, rope_theta=1e6,
        tie_word_embeddings=True), "qwen3", {}, 24
    yield "gemma2", c.Gemma2Config(**BASE, num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=8, attn_logit_softcapping=4.0, final_logit_softcapping=3.0), "gemma2", {
            "attention.sliding_window": 8, "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 3.0}, 30
    yield "gemma3", c.Gemma3TextConfig(**BASE, num_hidden_layers=4, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=8, rope_theta=1e6, rope_local_base_freq=10000.0,
        rope_scaling=dict(rope_type="linear", factor=4.0),
        layer_types=["sliding_attention", "sliding_attention", "full_attention",
                     "sliding_attention"]), "gemma3", {
            "attention.sliding_window": 8, "attention.sliding_window_pattern": 3,
            "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 30
    phi3 = c.Phi3Config(**{**BASE, "max_position_embeddings": 128}, num_hidden_layers=2,
        partial_rotary_factor=0.5, tie_word_embeddings=False, sliding_window=16,
        original_max_position_embeddings=32,
        rope_scaling=dict(type="longrope", short_factor=[1.0, 1.25], long_factor=[1.5, 4.0]))
    attn = math.sqrt(1 + math.log(128 / 32) / math.log(32))
    keys = {"attention.sliding_window": 16, "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": attn}
    yield "phi3", phi3, "phi3", keys, 28
    yield "phi3:long", phi3, "phi3", keys, 48
    yield "granite", c.GraniteConfig(**BASE, num_hidden_layers=2, embedding_multiplier=12.0,
        attention_multiplier=0.2, residual_multiplier=0.22, logits_scaling=8.0,
        tie_word_embeddings=True), "granite", {
            "attention.scale": 0.2, "embedding_scale": 12.0, "residual_scale": 0.22,
            "logit_scale": 8.0}, 24


def randomise(model, rng):
    """Random values everywhere, norms and biases included, large enough that windows, caps and angles
    change the logits."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = rng.standard_normal(tuple(p.shape)).astype(np.float32)
            if name.endswith("norm.weight"):
                x *= 0.3
                if "Gemma" not in type(model).__name__:
                    x += 1
            elif name.endswith("bias"):
                x *= 0.5
            elif "embed_tokens" in name and "Granite" not in type(model).__name__:
                x *= 0.3
            else:
                x *= 1.6 / math.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(x))


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "mlp.gate_up_proj": "ffn_up", "input_layernorm": "attn_norm"}
GEMMA = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
         "post_feedforward_layernorm": "post_ffw_norm"}


def tensor_name(name, gemma):
    name = name.removeprefix("model.")
    for hf, ours in (("embed_tokens", "token_embd"), ("lm_head", "output"), ("norm", "output_norm")):
        if name.startswith(hf + "."):
            return name.replace(hf, ours, 1)
    _, layer, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    table = {**NAMES, **(GEMMA if gemma else {"post_attention_layernorm": "ffn_norm"})}
    return f"blk.{layer}.{table[part]}.{kind}"


def interleave(x, heads):
    """From the half-split order of transformers to the order of GGUF's llama models: component i and
    i + head_dim/2 of a head become neighbours."""
    rows = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
    return np.ascontiguousarray(np.swapaxes(rows, 1, 2).reshape(x.shape))


def llama3_factors(config):
    """The divisors of the frequencies, [head_dim/2], from the description of Llama 3.1."""
    s, dim = config.rope_scaling, config.head_dim
    out = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * i / dim)
        turns = s["original_max_position_embeddings"] / wavelength
        if turns > s["high_freq_factor"]:
            out.append(1.0)
        elif turns < s["low_freq_factor"]:
            out.append(s["factor"])
        else:
            mix = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
            out.append(1 / ((1 - mix) / s["factor"] + mix))
    return np.array(out, np.float32)


def write_gguf(path, name, model, config, arch, keys):
    w = gguf.GGUFWriter(path, arch)
    gemma = arch.startswith("gemma")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w.add_name("tiny " + name.replace("phi3", "phi 3"))  # llama.cpp asks a "phi3" for tokens that it lacks
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_theta)
    w.add_rope_dimension_count(int(head_dim * getattr(config, "partial_rotary_factor", 1.0)))
    # A vocabulary without text, so that tools which ask for one accept the file.
    w.add_tokenizer_model("llama")
    w.add_token_list([f"<{i}>".encode() for i in range(VOCAB)])
    w.add_token_scores([0.0] * VOCAB)
    w.add_token_types([3] + [1] * (VOCAB - 1))
    for k, v in keys.items():
        key = f"{arch}.{k}"
        if isinstance(v, str):
            w.add_string(key, v)
        elif isinstance(v, int):
            w.add_uint32(key, v)
        else:
            w.add_float32(key, v)
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(config))
    if scaling.get("type", scaling.get("rope_type")) == "longrope":
        for kind in ("long", "short"):
            w.add_tensor(f"rope_factors_{kind}.weight",
                         np.array(scaling[kind + "_factor"], np.float32))
    for hf, p in model.named_parameters():
        x = p.detach().numpy().astype(np.float32)
        if gemma and hf.endswith("norm.weight"):
            x = x + 1
        if arch in ("llama", "smollm3", "granite"):
            if "q_proj" in hf:
                x = interleave(x, config.num_attention_heads)
            elif "k_proj" in hf:
                x = interleave(x, config.num_key_value_heads)
        w.add_tensor(tensor_name(hf, gemma), x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main(out):
    os.makedirs(out, exist_ok=True)
    index = []
    for name, config, arch, keys, n in models():
        rng = np.random.default_rng([SEED, *name.split(":")[0].encode()])
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        randomise(model, rng)
        file, _, variant = name.partition(":")
        tokens = np.random.default_rng([SEED, n]).integers(0, VOCAB, n).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
        stem = name.replace(":", "-")
        if not variant:
            write_gguf(os.path.join(out, file + ".gguf"), file, model, config, arch, keys)
        logits.astype("<f4").tofile(os.path.join(out, stem + ".logits"))
        index.append(dict(name=stem, model=file + ".gguf", logits=stem + ".logits", tokens=tokens,
                          context=64 if variant else 0))
        print(f"{stem}: largest logit {abs(logits).max():.3f}, spread {logits.std():.3f}")
    with open(os.path.join(out, "index.json"), "w") as f:
        made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
        rows = ",\n".join(json.dumps(m) for m in index)
        f.write(f'{{"made_by": "{made_by}", "models": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "models"))
