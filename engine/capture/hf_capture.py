#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the K, V and queries of a Hugging Face causal model over a text as a capture, which
`kvist compress` reads: kv-capture/1, or kv-capture/2 where layers have windows, soft caps, a scale of their
own, a RoPE of their own or none. Needs torch, transformers 4.48 or later and safetensors.

    python hf_capture.py MODEL TEXT -o OUT.safetensors --context 1024 --next 256

MODEL is a folder or a name that transformers loads. TEXT is a text file, or with --token-ids a JSON list
of token ids. The first --context tokens are the context to compress; the --next tokens after it are stored
apart and serve to measure the damage.

The model runs with an attention function of this script, registered in transformers' attention interface,
so what it stores is what attention got: q and K with RoPE applied. RoPE is taken from the cosines and
sines that layers are given. A model that does not use the interface, or whose layers differ in heads, is
refused with the reason.
"""
import argparse
import json
import math
import sys

import torch
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

FORMAT, FORMAT2 = "kv-capture/1", "kv-capture/2"
NAME = "kvist"  # of the attention function


class Unsupported(Exception):
    """The model does what the format, or this script, cannot say."""


class Recorder:
    """Keeps what the attention of each layer was given. bias, if set, is added to the scores of the first
    rows of a layer, [kv_heads, rows], before softmax; -inf drops a row."""

    def __init__(self):
        self.layers, self.ropes, self.bias, self.keep = {}, {}, {}, False
        self.residual, self.residual_tokens = {}, 0  # sums of squares, over so many first tokens

    def attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0,
               sliding_window=None, softcap=None, **kwargs):
        """The attention function: query [1, heads, n, head_dim], key and value [1, kv_heads, all, dim]."""
        if kwargs.get("s_aux") is not None:
            raise Unsupported("attention sinks")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.keep:
            self.record(module, query, key, value, scaling, sliding_window, softcap)
        ratio, n = query.shape[1] // key.shape[1], key.shape[2]
        k, v = key.repeat_interleave(ratio, 1), value.repeat_interleave(ratio, 1)
        scores = query @ k.transpose(2, 3) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if module.layer_idx in self.bias:
            bias = self.bias[module.layer_idx].to(scores).repeat_interleave(ratio, 0)
            scores[..., :bias.shape[1]] += bias[None, :, None]
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, :, :n]
        p = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        return (p @ v).transpose(1, 2).contiguous(), p

    def record(self, module, query, key, value, scaling, window, softcap):
        n = query.shape[2]
        part = self.layers.setdefault(module.layer_idx, dict(module=module, scaling=float(scaling),
                                      window=window, softcap=softcap, q=[], k=[], v=[]))
        part["q"].append(query[0].detach())
        part["k"].append(key[0, :, -n:].detach())
        part["v"].append(value[0, :, -n:].detach())

    def rope_hook(self, module, args, kwargs):
        """Before the forward of an attention module: the cosines and sines that it is given."""
        pair = kwargs.get("position_embeddings")
        if self.keep and pair is not None:
            self.ropes.setdefault(module.layer_idx, []).append(tuple(x[0].detach().float() for x in pair))

    def residual_hook(self, module, args, output):
        """After the forward of a layer: adds the squares of its output to the sums of its channels."""
        layer = module.self_attn.layer_idx
        x = (output[0] if isinstance(output, tuple) else output)[0].detach()
        total, seen = self.residual.get(layer, (0, 0))
        x = x[:max(0, self.residual_tokens - seen)].double()
        self.residual[layer] = (total + (x * x).sum(0), seen + len(x))

    def attach(self, model):
        """Makes model run with this recorder."""
        AttentionInterface.register(NAME, self.attend)
        AttentionMaskInterface.register(NAME, eager_mask)
        model.config._attn_implementation = NAME
        for m in model.modules():
            if hasattr(m, "layer_idx") and hasattr(m, "config"):
                m.config._attn_implementation = NAME
                if hasattr(m, "num_key_value_groups"):
                    m.register_forward_pre_hook(self.rope_hook, with_kwargs=True)
            if self.residual_tokens and hasattr(m, "self_attn"):
                m.register_forward_hook(self.residual_hook)


def rope_of(pairs, module):
    """The RoPE of a layer from its cosines and sines at positions 0, 1, ...: layout, inv_freq
    [rotary_dim/2], and the factor that both include."""
    if not getattr(module, "use_rope", True):
        return None
    if not pairs:
        raise Unsupported("layers that are given no cosines and sines, so their RoPE is not known")
    cos, sin = (torch.cat(x) for x in zip(*pairs))
    half = cos.shape[-1] // 2
    if torch.equal(cos[:, :half], cos[:, half:]):
        layout, c, s = "half", cos[:, :half], sin[:, :half]
    elif torch.equal(cos[:, 0::2], cos[:, 1::2]):
        layout, c, s = "interleaved", cos[:, 0::2], sin[:, 0::2]
    else:
        raise Unsupported("a RoPE whose pairs are neither half-split nor interleaved")
    scale = torch.hypot(c[1], s[1]).mean().item()
    freq = torch.atan2(s[1], c[1])
    angle = torch.arange(len(c), dtype=torch.float64)[:, None] * freq.double()
    if (torch.cos(angle) * scale - c).abs().max() > 1e-2:
        raise Unsupported("a RoPE whose angles do not grow evenly with the position")
    return dict(layout=layout, inv_freq=freq, scale=scale)


def layer_attention(recorder, layers, tokens):
    """How each layer attends: heads, kv_heads, dims, rope, window (None: all), scale, softcap.

    Raises Unsupported for layers that differ in heads or dims."""
    out = []
    for l in range(layers):
        if l not in recorder.layers:
            raise Unsupported(f"layer {l} does not use transformers' attention interface")
        x = recorder.layers[l]
        window = x["window"] if x["window"] is not None and x["window"] < tokens else None
        out.append(dict(heads=x["q"][0].shape[0], kv_heads=x["k"][0].shape[0], head_dim=x["k"][0].shape[2],
                        head_dim_v=x["v"][0].shape[2], rope=rope_of(recorder.ropes.get(l), x["module"]),
                        window=window, scale=x["scaling"], softcap=x["softcap"]))
        for key in ("heads", "kv_heads", "head_dim", "head_dim_v"):
            if out[l][key] != out[0][key]:
                raise Unsupported(f"layer {l} has {key} {out[l][key]}, others {out[0][key]}")
    return out


def same_rope(a, b):
    if a is None or b is None:
        return a is b
    return a["layout"] == b["layout"] and torch.equal(a["inv_freq"], b["inv_freq"])


def plain_scale(a):
    return math.isclose(a["scale"], a["head_dim"] ** -0.5, rel_tol=1e-6)


def is_plain(layers):
    """Whether kv-capture/1 says all there is: one RoPE, no window, no soft cap, scale 1/sqrt(head_dim)."""
    return all(a["window"] is None and a["softcap"] is None and plain_scale(a) and
               same_rope(a["rope"], layers[0]["rope"]) for a in layers)


def theta_of(model, freq):
    """The base, of those in the model's config, that frequencies come from; None if from none of them."""
    config = model.config.get_text_config()
    for key in ("rope_theta", "rope_local_base_freq"):
        theta = getattr(config, key, None)
        if theta is not None:
            plain = float(theta) ** (-torch.arange(len(freq), dtype=torch.float64) / len(freq))
            if torch.allclose(plain, freq.double(), rtol=1e-5, atol=0):
                return float(theta)
    return None


def metadata(model, name, layers, tensors):
    """The metadata of a capture. It adds rope_inv_freq to tensors where no base says the frequencies."""
    first = layers[0]
    m = dict(format=FORMAT, model=name, layers=str(len(layers)), heads=str(first["heads"]),
             kv_heads=str(first["kv_heads"]), head_dim=str(first["head_dim"]),
             head_dim_v=str(first["head_dim_v"]), first_position="0", rope_layout="none", rope_applied="false")
    ropes = [a["rope"] for a in layers if a["rope"] is not None]
    if ropes:
        widest = max(ropes, key=lambda r: len(r["inv_freq"]))
        m.update(rope_layout=widest["layout"], rope_applied="true",
                 rotary_dim=str(2 * len(widest["inv_freq"])))
    if is_plain(layers):
        if ropes:
            theta = theta_of(model, ropes[0]["inv_freq"])
            if theta is None:
                tensors["rope_inv_freq"] = ropes[0]["inv_freq"].float()
            else:
                m["rope_theta"] = repr(theta)
        return m
    m["format"] = FORMAT2
    m["layer_windows"] = ",".join(str(a["window"] or 0) for a in layers)
    m["layer_scale"] = ",".join("0" if plain_scale(a) else repr(a["scale"]) for a in layers)
    m["layer_softcap"] = ",".join(repr(float(a["softcap"] or 0)) for a in layers)
    if not ropes:
        return m
    m["layer_rope_layout"] = ",".join(a["rope"]["layout"] if a["rope"] else "none" for a in layers)
    m["layer_rotary_dim"] = ",".join(str(2 * len(a["rope"]["inv_freq"])) if a["rope"] else "0" for a in layers)
    thetas = [theta_of(model, a["rope"]["inv_freq"]) if a["rope"] else None for a in layers]
    m["layer_rope_theta"] = ",".join(repr(t or 0.0) for t in thetas)
    if any(a["rope"] and t is None for a, t in zip(layers, thetas)):
        table = torch.zeros(len(layers), len(widest["inv_freq"]))
        for l, (a, t) in enumerate(zip(layers, thetas)):
            if a["rope"] and t is None:
                table[l, :len(a["rope"]["inv_freq"])] = a["rope"]["inv_freq"]
        tensors["rope_inv_freq"] = table
    return m


@torch.no_grad()
def run(model, ids, chunk=512, residual_tokens=0):
    """Runs the model over ids, [tokens]. Returns the recorder and -log p of each token, 0 for the first."""
    recorder, cache = Recorder(), DynamicCache()
    recorder.keep, recorder.residual_tokens = True, residual_tokens
    recorder.attach(model)
    nats = [torch.zeros(1)]
    for lo in range(0, len(ids), chunk):
        part = ids[lo:lo + chunk]
        logits = model(part[None], past_key_values=cache, use_cache=True).logits[0].float()
        targets = ids[lo + 1:lo + 1 + len(part)]
        nats.append(torch.nn.functional.cross_entropy(logits[:len(targets)], targets, reduction="none").cpu())
    return recorder, torch.cat(nats)


def capture(model, ids, path, context, name="", layers=None, dtype=torch.float16, o_weight=False,
            queries=True, chunk=512, residual=False):
    """Runs model over ids, [tokens], and writes a capture of the first context tokens to path; the others
    are those after it.

    Raises Unsupported for a model that the format cannot describe."""
    recorder, nats = run(model, ids, chunk, context if residual else 0)
    count = model.config.get_text_config().num_hidden_layers
    attention = layer_attention(recorder, count, len(ids))
    tensors = {}
    for l in range(count) if layers is None else layers:
        x = recorder.layers[l]
        parts = {"k": x["k"], "v": x["v"], **({"q": x["q"]} if queries else {})}
        for part, rows in parts.items():
            rows = torch.cat(rows, 1).to(dtype).cpu()
            tensors[f"layers.{l}.{part}"] = rows[:, :context].contiguous()
            if context < len(ids):
                tensors[f"layers.{l}.{part}_next"] = rows[:, context:].contiguous()
        if o_weight:
            if not hasattr(x["module"], "o_proj"):
                raise Unsupported(f"layer {l} has no o_proj, whose weights --o-weight stores")
            tensors[f"layers.{l}.o_weight"] = x["module"].o_proj.weight.detach().half().cpu().contiguous()
        if residual:
            if l not in recorder.residual:
                raise Unsupported(f"layer {l} has no self_attn, by which --residual finds layers")
            total, n = recorder.residual[l]
            tensors[f"layers.{l}.residual_ms"] = (total / n).float().cpu().contiguous()
    for suffix, rows in (("", slice(0, context)), ("_next", slice(context, None))):
        if context < len(ids) or not suffix:
            tensors["tokens" + suffix] = ids[rows].to(torch.int32).cpu()
            tensors["surprisal" + suffix] = nats[rows].float().contiguous()
    meta = metadata(model, name, attention, tensors)
    for key, x in tensors.items():
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise Unsupported(f"{key} has values that are not finite in its element type")
    save_file(tensors, path, metadata=meta)


def read_ids(args, need):
    if args.token_ids:
        with open(args.text, encoding="utf8") as f:
            ids = json.load(f)
    else:
        with open(args.text, encoding="utf8") as f:
            ids = AutoTokenizer.from_pretrained(args.model)(f.read())["input_ids"]
    if len(ids) < need:
        raise SystemExit(f"{args.text} has {len(ids)} tokens, --context and --next ask for {need}")
    return torch.tensor(ids[:need], dtype=torch.long)


def main():
    p = argparse.ArgumentParser(description="Write a capture of a Hugging Face model.")
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("-o", "--output", required=True)
    p.add_argument("--token-ids", action="store_true", help="TEXT is a JSON list of token ids")
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--next", type=int, default=256)
    p.add_argument("--layers", help="numbers such as 0,9,19; default all")
    p.add_argument("--dtype", choices=("f16", "bf16", "f32"), default="f16", help="of K, V and queries")
    p.add_argument("--run-dtype", choices=("f16", "bf16", "f32"), default="f32", help="the model runs in")
    p.add_argument("--device", default="cpu")
    p.add_argument("--o-weight", action="store_true", help="store the output projection of each layer")
    p.add_argument("--residual", action="store_true",
                   help="store the mean square of each channel of the residual stream after each layer")
    p.add_argument("--no-q", action="store_true", help="do not store the queries")
    args = p.parse_args()
    types = dict(f16=torch.float16, bf16=torch.bfloat16, f32=torch.float32)
    if args.context < 1 or args.next < 0:
        p.error("--context must be 1 or more, --next 0 or more")
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=types[args.run_dtype]).eval().to(
        args.device)
    ids = read_ids(args, args.context + args.next).to(args.device)
    layers = [int(x) for x in args.layers.split(",")] if args.layers else None
    try:
        capture(model, ids, args.output, args.context, args.model.rstrip("/").rsplit("/", 1)[-1], layers,
                types[args.dtype], args.o_weight, not args.no_q, residual=args.residual)
    except Unsupported as e:
        raise SystemExit(f"hf_capture: {args.model}: not supported: {e}") from None


if __name__ == "__main__":
    sys.exit(main())
