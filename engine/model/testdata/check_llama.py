# SPDX-License-Identifier: Apache-2.0
"""Holds the tiny models of testdata/models against llama.cpp: the largest difference of its logits from
those of transformers, over the largest logit. Run it with `make check-llama`.

llama.cpp knows no windows in llama and phi3 models, so those are compared over as many tokens as a
window has. It rounds contexts up to 256 positions, which is beyond the original context of the phi3
model, so that model is compared with its long factors only.
"""
import ctypes
import json
import os
import sys

import llama_cpp
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
WINDOWS = {"mistral": 8, "phi3-long": 16}
LIMIT = 2e-3


def logits(path, tokens, context):
    mp = llama_cpp.llama_model_default_params()
    mp.use_mmap = False
    model = llama_cpp.llama_model_load_from_file(path.encode(), mp)
    assert model, path
    cp = llama_cpp.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch = context, context, context
    cp.n_threads = cp.n_threads_batch = 1
    cp.type_k = cp.type_v = 0  # float32
    cp.flash_attn_type = 0  # off
    ctx = llama_cpp.llama_init_from_model(model, cp)
    assert ctx, path
    n, vocab = len(tokens), llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, t in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = t, i, 1, 0, 1
    assert llama_cpp.llama_decode(ctx, batch) == 0, path
    out = np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), (n, vocab)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return out


@llama_cpp.llama_log_callback
def quiet(level, text, data):
    pass


def main():
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    bad = 0
    folder = os.path.join(HERE, "models")
    with open(os.path.join(folder, "index.json")) as f:
        index = json.load(f)["models"]
    for m in index:
        if m["name"] == "phi3":
            continue
        n = WINDOWS.get(m["name"], len(m["tokens"]))
        want = np.fromfile(os.path.join(folder, m["logits"]), "<f4").reshape(len(m["tokens"]), -1)[:n]
        # More than the original context of a longrope model takes its long factors.
        got = logits(os.path.join(folder, m["model"]), m["tokens"][:n], 64)
        d = float(abs(got - want).max() / abs(want).max())
        print(f"{m['name']}: {d:.2g} over {n} tokens")
        bad += not d <= LIMIT
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
