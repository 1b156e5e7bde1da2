# SPDX-License-Identifier: Apache-2.0
"""Random tiny models through hf_capture.py, kvist and hf_restore.py; run by TestHuggingFace of cmd/kvist:

    python hf_roundtrip.py KVIST FOLDER

Prints "passed" at the end, or fails.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import torch
import transformers
from hf_capture import capture
from hf_restore import continued, restore
from transformers import AutoModelForCausalLM

BASE = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
            eos_token_id=2)
KVIST, FOLDER = sys.argv[1:]
CONTEXT, NEXT = 80, 24


def kvist(*args):
    subprocess.run([KVIST, *args], check=True, stdout=subprocess.DEVNULL)


def tiny(config):
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def roundtrip(name, config):
    model = tiny(config)
    ids = torch.randint(0, 96, (CONTEXT + NEXT,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = model(ids[None], use_cache=False).logits[0, CONTEXT - 1:]
    path = lambda suffix: os.path.join(FOLDER, name + suffix)
    capture(model, ids, path(".safetensors"), CONTEXT, name, dtype=torch.float32, o_weight=True, chunk=50,
            residual=True)
    kvist("compress", path(".safetensors"), "-o", path(".kvist"), "--lossless")
    kvist("verify", path(".kvist"), "--against", path(".safetensors"))
    kvist("decompress", path(".kvist"), "-o", path("-back.safetensors"))
    again = tiny(config)
    cache, tokens = restore(again, path("-back.safetensors"))
    assert torch.equal(tokens, ids[:CONTEXT])
    got = continued(again, cache, tokens[-1], ids[CONTEXT:])
    d = ((got - want).abs().max() / want.abs().max()).item()
    print(f"{name}: lossless, logits differ by {d:.2g} of the largest")
    assert d < 1e-5, d

    # A lossy file with dropped and merged rows runs as well, and is worse but not wild.
    kvist("compress", path(".safetensors"), "-o", path("-hot.kvist"), "--form", "hot", "--bits", "4",
          "--segment", "64")
    kvist("decompress", path("-hot.kvist"), "-o", path("-hot.safetensors"))
    again = tiny(config)
    cache, tokens = restore(again, path("-hot.safetensors"))
    lossy = continued(again, cache, tokens[-1], ids[CONTEXT:])
    e = ((lossy - want).norm() / want.norm()).item()
    print(f"{name}: 4 bits, logits differ by {e:.2g}")
    assert 1e-6 < e < 0.5, e


roundtrip("llama", transformers.LlamaConfig(**BASE))
roundtrip("llama3", transformers.LlamaConfig(**BASE, rope_scaling=dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32)))
roundtrip("qwen3", transformers.Qwen3Config(**BASE, head_dim=32))
roundtrip("mistral", transformers.MistralConfig(**BASE, sliding_window=30))
roundtrip("gemma2", transformers.Gemma2Config(**BASE, head_dim=16, query_pre_attn_scalar=64, sliding_window=30))
roundtrip("gemma3", transformers.Gemma3TextConfig(**{**BASE, "num_hidden_layers": 6}, head_dim=16,
                                                  sliding_window=30, query_pre_attn_scalar=16))
roundtrip("granite", transformers.GraniteConfig(**BASE, attention_multiplier=0.3))
roundtrip("smollm3", transformers.SmolLM3Config(**{**BASE, "num_hidden_layers": 4}, use_sliding_window=False))
print("passed")
