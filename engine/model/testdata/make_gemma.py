# SPDX-License-Identifier: Apache-2.0
"""Writes testdata/gemma.json: for a text of the repository, the tokens of Gemma 3 270M and the surprisal
of each, computed by transformers in float32 from the weights of the GGUF file, dequantized by the package
gguf. The tokens come from llama.cpp where the package llama_cpp is there; without it, the tokens that are
in the file stay.

Run it with `make model-fixtures` after `make model-gemma`.
"""
import ctypes
import json
import os
import sys

import gguf
import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = os.path.join(HERE, *[".."] * 3, "bench", "quality", "texts", "eval-essay.txt")
OUT = os.path.join(HERE, "gemma.json")
TOKENS = 800  # beyond the window of 512


def tokens_of(path):
    try:
        import llama_cpp
    except ImportError:
        with open(OUT) as f:
            return json.load(f)["tokens"]
    mp = llama_cpp.llama_model_default_params()
    mp.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), mp)
    text = open(TEXT, "rb").read()
    buf = (llama_cpp.llama_token * len(text))()
    n = llama_cpp.llama_tokenize(llama_cpp.llama_model_get_vocab(model), text, len(text), buf, len(text),
                                 True, False)
    return list(buf[:n])


def model_of(path):
    reader = gguf.GGUFReader(path)
    get = lambda key: reader.fields["gemma3." + key].contents()
    layers = get("block_count")
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=get("embedding_length"), intermediate_size=get("feed_forward_length"),
        num_hidden_layers=layers, num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"), head_dim=get("attention.key_length"),
        query_pre_attn_scalar=get("attention.key_length"), sliding_window=get("attention.sliding_window"),
        rope_theta=get("rope.freq_base"), rope_local_base_freq=10000.0,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"), attn_implementation="eager",
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)])
    model = Gemma3ForCausalLM(config).float().eval()
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
             "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
             "post_ffw_norm": "post_feedforward_layernorm"}
    state = {}
    for t in reader.tensors:
        x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        if t.name.endswith("norm.weight"):
            x = x - 1
        if t.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif t.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = t.name.split(".")
            name = f"model.layers.{layer}.{names[part]}.weight"
        state[name] = torch.from_numpy(x.reshape(tuple(reversed(t.shape.tolist()))))
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and set(missing) <= {"lm_head.weight"}, (missing, extra)
    model.tie_weights()
    return model


def main(path):
    tokens = tokens_of(path)[:TOKENS]
    with torch.no_grad():
        logits = model_of(path)(torch.tensor([tokens])).logits[0]
        nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none")
    with open(OUT, "w") as f:
        json.dump(dict(text=os.path.basename(TEXT), tokens=tokens,
                       surprisal=[round(x, 4) for x in nats.tolist()]), f)
        f.write("\n")
    print(f"{len(tokens)} tokens, perplexity {float(nats.mean().exp()):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
