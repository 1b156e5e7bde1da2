# SPDX-License-Identifier: Apache-2.0
"""Makes the states in this folder with llama.cpp, of tiny random models: those of engine/model/testdata, and one of
head_dim 128, whose quantized caches llama.cpp rotates. Run it with `make llama-states`, which builds llama.cpp.
"""
import ctypes
import os
import sys
import tempfile

import gguf
import llama_cpp as ll
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "..", "model", "testdata", "models")
SEED, VOCAB = 20261201, 64
F16, Q4_0, Q8_0 = 1, 2, 8


def turned(path):
    """A llama of one layer, one head of 128."""
    rng = np.random.default_rng(SEED)
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny turned")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(32)
    w.add_feed_forward_length(32)
    w.add_head_count(1)
    w.add_head_count_kv(1)
    w.add_key_length(128)
    w.add_value_length(128)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(128)
    w.add_tokenizer_model("llama")
    w.add_token_list([f"<{i}>".encode() for i in range(VOCAB)])
    w.add_token_scores([0.0] * VOCAB)
    w.add_token_types([3] + [1] * (VOCAB - 1))
    shapes = {"token_embd": (VOCAB, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.attn_q": (128, 32),
              "blk.0.attn_k": (128, 32), "blk.0.attn_v": (128, 32), "blk.0.attn_output": (32, 128),
              "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (32, 32), "blk.0.ffn_up": (32, 32), "blk.0.ffn_down": (32, 32)}
    for name, shape in shapes.items():
        scale = np.exp(rng.normal(size=shape[:1]))  # rows differ, so that a rotation shows
        x = rng.normal(size=shape) * (scale[:, None] if len(shape) == 2 else 1)
        w.add_tensor(name + ".weight", x.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def save(model_path, out, tokens, types=(F16, F16), flash=False, session=False):
    mp = ll.llama_model_default_params()
    model = ll.llama_model_load_from_file(model_path.encode(), mp)
    assert model, model_path
    cp = ll.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = 64, 64, 16, 1
    cp.n_threads = cp.n_threads_batch = 1
    cp.type_k, cp.type_v = types
    cp.flash_attn_type = 1 if flash else 0
    cp.swa_full = False
    ctx = ll.llama_init_from_model(model, cp)
    assert ctx, out
    array = (ll.llama_token * len(tokens))(*tokens)
    assert ll.llama_decode(ctx, ll.llama_batch_get_one(array, len(tokens))) == 0
    path = os.path.join(HERE, out)
    if session:
        assert ll.llama_state_save_file(ctx, path.encode(), array, len(tokens))
    else:
        assert ll.llama_state_seq_save_file(ctx, path.encode(), 0, array, len(tokens)) > 0
    print(out, os.path.getsize(path))
    ll.llama_free(ctx)
    ll.llama_model_free(model)


@ll.llama_log_callback
def quiet(level, text, data):
    pass


def main():
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    tokens = np.random.default_rng(SEED).integers(1, VOCAB, 40).tolist()
    llama, gemma = os.path.join(MODELS, "llama.gguf"), os.path.join(MODELS, "gemma3.gguf")
    save(llama, "llama-f16-transposed.bin", tokens)
    save(llama, "llama-f16.bin", tokens, flash=True)
    save(llama, "llama-f16-session.bin", tokens, session=True)
    save(gemma, "gemma3-f16-transposed.bin", tokens[:30])
    save(gemma, "gemma3-f16.bin", tokens[:30], flash=True)
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "turned.gguf")
        turned(model)
        save(model, "turned-f16.bin", tokens[:24], flash=True)
        save(model, "turned-q8_0.bin", tokens[:24], (Q8_0, Q8_0), flash=True)
        save(model, "turned-q4_0.bin", tokens[:24], (Q4_0, Q4_0), flash=True)
        save(model, "turned-f16-q8_0.bin", tokens[:24], (F16, Q8_0), flash=True)


if __name__ == "__main__":
    main()
