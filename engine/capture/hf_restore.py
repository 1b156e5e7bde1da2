#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts a capture, as `kvist decompress` writes it, back into a Hugging Face model and continues.

    python hf_restore.py MODEL CAPTURE.safetensors --generate 64

Without --generate it prints the mean surprisal of --next-ids, a JSON list of the tokens after the context.
From Python, restore(model, path) returns a DynamicCache to call the model with. Rows that were dropped,
and biases of rows that stand for several tokens, are kept by an attention function that restore gives
the model; a cache alone could not say them.
"""
import argparse
import json
import sys

import torch
from hf_capture import FORMAT, FORMAT2, Recorder, Unsupported
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def restore(model, path):
    """Returns a DynamicCache with the rows of a capture, and its tokens, [tokens]. The model then runs with
    the row biases of the capture.

    Raises Unsupported for a capture of another format, shape or position, or with layers left out."""
    cache, recorder = DynamicCache(), Recorder()
    layers = model.config.get_text_config().num_hidden_layers
    with safe_open(path, "pt") as f:
        names, meta = set(f.keys()), f.metadata() or {}
        if meta.get("format") not in (FORMAT, FORMAT2):
            raise Unsupported(f"format {meta.get('format')!r}, want {FORMAT!r} or {FORMAT2!r}")
        if meta.get("first_position", "0") != "0":
            raise Unsupported(f"a context from position {meta['first_position']}, want 0")
        if meta.get("layers") != str(layers):
            raise Unsupported(f"{meta.get('layers')} layers, the model has {layers}")
        tokens = f.get_tensor("tokens").long() if "tokens" in names else None
        for l in range(layers):
            if f"layers.{l}.k" not in names:
                raise Unsupported(f"layer {l} is not in the capture")
            k, v = (f.get_tensor(f"layers.{l}.{part}").to(model.device, model.dtype) for part in "kv")
            cache.update(k[None], v[None], l)
            bias = torch.zeros(k.shape[:2])
            if f"layers.{l}.bias" in names:
                bias = f.get_tensor(f"layers.{l}.bias").float()
            if f"layers.{l}.kept" in names:
                bias = bias.masked_fill(f.get_tensor(f"layers.{l}.kept") == 0, float("-inf"))
            if bias.any():
                recorder.bias[l] = bias.to(model.device)
    recorder.attach(model)
    return cache, tokens


@torch.no_grad()
def continued(model, cache, last, ids):
    """The logits after each of ids, [n], behind the last token of a restored context, which is run again
    for its own logits: [n + 1, vocab]."""
    cache.crop(cache.get_seq_length() - 1)
    ids = torch.cat([last.view(1), ids]).to(model.device)
    return model(ids[None], past_key_values=cache, use_cache=True).logits[0].float()


def main():
    p = argparse.ArgumentParser(description="Continue from a capture.")
    p.add_argument("model")
    p.add_argument("capture")
    p.add_argument("--next-ids", help="JSON list of the token ids after the context")
    p.add_argument("--generate", type=int, default=0, help="tokens to generate greedily")
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=torch.float32).eval().to(args.device)
    try:
        cache, tokens = restore(model, args.capture)
    except Unsupported as e:
        raise SystemExit(f"hf_restore: {args.capture}: not supported: {e}") from None
    if tokens is None:
        raise SystemExit(f"hf_restore: {args.capture} has no tokens, so none can follow")
    ids = torch.tensor([], dtype=torch.long)
    if args.next_ids:
        with open(args.next_ids, encoding="utf8") as f:
            ids = torch.tensor(json.load(f), dtype=torch.long)
    logits = continued(model, cache, tokens[-1], ids)
    if len(ids):
        nats = torch.nn.functional.cross_entropy(logits[:-1].cpu(), ids)
        print(f"{len(ids)} tokens, {nats:.4f} nats each, perplexity {nats.exp():.3f}")
    if args.generate:
        out = []
        for _ in range(args.generate):
            out.append(int(logits[-1].argmax()))
            with torch.no_grad():
                logits = model(torch.tensor([[out[-1]]], device=model.device), past_key_values=cache,
                               use_cache=True).logits[0]
        print(AutoTokenizer.from_pretrained(args.model).decode(out))


if __name__ == "__main__":
    sys.exit(main())
