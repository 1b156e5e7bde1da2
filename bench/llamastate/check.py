# SPDX-License-Identifier: Apache-2.0
"""Saves states with llama.cpp, compresses them with kvist, restores them into llama.cpp and measures what was lost.

check.py --kvist BIN --page PAGE MODEL... [--tokens 1024 --next 256 --texts 3]

For each model and text: the first tokens are the context, whose state is saved. The tokens behind it are given to
llama.cpp after the restored state, all at once, and its next-token distributions are compared with those after the
f16 state: mean KL divergence in nats, and top-1 agreement. 64 tokens are then decoded greedily from the state. The
caches of llama.cpp in q8_0 and q4_0 are filled by llama.cpp itself, which also codes the tokens behind the context.
make check-llama-state gives the arguments.
"""
import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile

import llama_cpp as ll
import numpy as np

F16, Q4_0, Q8_0 = 1, 2, 8
GREEDY = 64


class Context:
    """A context of one sequence."""

    def __init__(self, model, n, types=(F16, F16), threads=1):
        cp = ll.llama_context_default_params()
        cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = n, 512, 512, 1
        cp.n_threads = cp.n_threads_batch = threads
        cp.type_k, cp.type_v = types
        cp.flash_attn_type = 1
        cp.swa_full = False
        self.ctx = ll.llama_init_from_model(model, cp)
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        self.batch = ll.llama_batch_init(512, 0, 1)

    def decode(self, tokens, first, logits):
        """Runs tokens from position first; logits [tokens, vocab] of all, of the last, or none."""
        out = []
        for lo in range(0, len(tokens), 512):
            part = tokens[lo:lo + 512]
            b = self.batch
            b.n_tokens = len(part)
            for i, t in enumerate(part):
                b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = t, first + lo + i, 1, 0
                b.logits[i] = logits == "all" or logits == "last" and lo + i == len(tokens) - 1
            if ll.llama_decode(self.ctx, b) != 0:
                sys.exit("llama.cpp: decode failed")
            if logits == "all":
                out.append(np.ctypeslib.as_array(ll.llama_get_logits(self.ctx), (len(part), self.vocab)).copy())
            elif logits == "last" and lo + len(part) == len(tokens):
                out.append(np.ctypeslib.as_array(ll.llama_get_logits(self.ctx), (1, self.vocab)).copy())
        return np.concatenate(out) if out else None

    def save(self, path, tokens):
        array = (ll.llama_token * len(tokens))(*tokens)
        if not ll.llama_state_seq_save_file(self.ctx, path.encode(), 0, array, len(tokens)):
            sys.exit("llama.cpp: the state was not saved")

    def load(self, path, tokens):
        self.clear()
        array, n = (ll.llama_token * len(tokens))(), ctypes.c_size_t()
        if not ll.llama_state_seq_load_file(self.ctx, path.encode(), 0, array, len(tokens), ctypes.byref(n)):
            sys.exit(f"llama.cpp: {path} was not restored")
        if list(array) != tokens:
            sys.exit(f"{path}: other tokens")

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.ctx), True)

    def free(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.ctx)


def measure(ctx, restore, n, after, greedy=True):
    """Returns the logits of the tokens after a state, and what is decoded greedily from it."""
    restore()
    logits = ctx.decode(after, n, "all")
    if not greedy:
        return logits, None
    restore()
    out, token = [], after[0]
    for i in range(GREEDY):
        token = int(ctx.decode([token], n + i, "last")[0].argmax())
        out.append(token)
    return logits, out


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def compare(want, got):
    p, q = log_softmax(want[0]), log_softmax(got[0])
    same = None
    if got[1]:
        same = next((i for i, (a, b) in enumerate(zip(want[1], got[1])) if a != b), GREEDY)
    return dict(kl=float((np.exp(p) * (p - q)).sum(axis=1).mean()),
                top1=float((p.argmax(axis=1) == q.argmax(axis=1)).mean()), greedy=same)


def kvist(args, *command):
    done = subprocess.run([args.kvist, *command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"kvist {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def tokenize(model, text):
    vocab = ll.llama_model_get_vocab(model)
    raw = text.encode()
    out = (ll.llama_token * (len(raw) + 8))()
    n = ll.llama_tokenize(vocab, raw, len(raw), out, len(out), True, False)
    return list(out[:n])


def variants(args, name):
    """The ways of compression: label, flags."""
    profile = os.path.join(os.path.dirname(__file__), "..", "..", "testdata", "smollm2.kvprofile")
    for bits in (8, 4, 2):
        yield f"kvist {bits} bits, queries of a run", ["--bits", str(bits)]
    for bits in (4, 2):
        yield f"kvist {bits} bits, no queries", ["--bits", str(bits), "--run-model=false"]
    for recipe in args.recipe:
        yield f"kvist 2 bits, no queries, {recipe}", ["--bits", "2", "--run-model=false", "--importance", recipe]
    if "smollm2" in name.lower():
        yield "kvist 2 bits, queries of a run, profile", ["--bits", "2", "--profile", profile, "--run-model"]
        for bits in (4, 2, 1):
            yield f"kvist {bits} bits, profile's queries", ["--bits", str(bits), "--profile", profile]


def one(args, path, model, text, folder):
    """Measures a text: rows of label, bits a value and what was lost."""
    tokens = tokenize(model, text)
    n = args.tokens
    context, after = tokens[:n], tokens[n:n + args.next]
    if len(after) < args.next:
        sys.exit(f"the text has {len(tokens)} tokens")
    size = n + args.next + GREEDY
    rows = []
    state = os.path.join(folder, "slot.bin")
    ctx = Context(model, size, threads=args.threads)
    ctx.decode(context, 0, None)
    ctx.save(state, context)
    want = measure(ctx, lambda: ctx.load(state, context), n, after)
    values = None
    ctx.clear()
    for label, flags in [("kvist, every bit", ["--lossless"])] + list(variants(args, os.path.basename(path))):
        small, back = os.path.join(folder, "slot.kvist"), os.path.join(folder, "back.bin")
        model_flags = [] if "--lossless" in flags else ["--model", path]
        profile = flags[flags.index("--profile"):][:2] if "--profile" in flags else []
        if "--bits" in flags:  # of what the state holds: of layers with windows it lacks most tokens
            at = flags.index("--bits")
            flags = flags[:at] + ["--budget", str(int(float(flags[at + 1]) * values / 8))] + flags[at + 2:]
        made = json.loads(kvist(args, "compress", state, "-o", small, "--force", "--json", *flags, *model_flags))
        kvist(args, "decompress", small, "-o", back, "--force", *profile)
        row = dict(label=label, bytes=made["bytes"])
        if "--lossless" in flags:
            row.update(same=content(state) == content(back), kl=0.0, top1=1.0, greedy=GREEDY)
            values = made["values"]  # of the rows that the state holds
        else:
            got = measure(ctx, lambda: ctx.load(back, context), n, after, "8 bits" in label)
            row.update(compare(want, got))
        rows.append(row)
        print(os.path.basename(path), row, file=sys.stderr, flush=True)
    ctx.clear()
    # The same cache filled in other pieces: what rounding alone does to llama.cpp's distributions.
    for lo in range(0, n, 100):
        ctx.decode(context[lo:lo + 100], lo, None)
    ctx.save(state + "100", context)
    got = measure(ctx, lambda: ctx.load(state + "100", context), n, after)
    rows.insert(0, dict(label="llama.cpp f16, filled 100 tokens at a time", bytes=os.path.getsize(state), **compare(want, got)))
    print(os.path.basename(path), rows[0], file=sys.stderr, flush=True)
    ctx.free()
    rows.insert(0, dict(label="llama.cpp f16", bytes=os.path.getsize(state), kl=0.0, top1=1.0, greedy=GREEDY))
    for label, typ in (("llama.cpp q8_0", Q8_0), ("llama.cpp q4_0", Q4_0)):
        ctx = Context(model, size, (typ, typ), args.threads)
        ctx.decode(context, 0, None)
        ctx.save(state, context)
        got = measure(ctx, lambda: ctx.load(state, context), n, after)
        rows.append(dict(label=label, bytes=os.path.getsize(state), **compare(want, got)))
        print(os.path.basename(path), rows[-1], file=sys.stderr, flush=True)
        ctx.free()
    for r in rows:
        r["bits"] = 8 * r["bytes"] / values
    return rows


def content(path):
    with open(path, "rb") as f:
        return f.read()


def cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def page(args, results):
    text = ["# States of llama.cpp", "",
            f"Made by `make check-llama-state`: llama.cpp of llama-cpp-python 0.3.36, {cpu()}. {args.tokens} tokens of context in a",
            f"state, {args.next} tokens after it; the first {args.texts} of bench/quality/texts/eval-*. Means over texts (worst text).",
            "KL: divergence of llama.cpp's next-token distributions from those after its f16 state, nats. Greedy: how many of",
            f"{GREEDY} tokens are those of the f16 state, least over texts. Bits: all bytes of the file over the values that the state",
            "holds, token list and cells included. llama.cpp rounds activations to 8 bits, so any change moves its distributions:",
            "what filling the same f16 cache in other pieces does is the least that can be measured.", ""]
    for name, texts in results.items():
        text += [f"## {name}", "", "| cache | bits/value | x vs f16 | KL, nats | top-1 | greedy |", "|---|---|---|---|---|---|"]
        for i, first in enumerate(texts[0]):
            rows = [t[i] for t in texts]
            mean = lambda k: sum(r[k] for r in rows) / len(rows)
            f16 = sum(t[0]["bytes"] for t in texts) / sum(r["bytes"] for r in rows)
            worst = f" ({max(r['kl'] for r in rows):.2g})" if len(rows) > 1 else ""
            kl = f"{mean('kl'):.2g}{worst}" if mean("kl") else "0"
            same = ", the same bytes" if all(r.get("same") for r in rows) else ""
            greedy = "" if first["greedy"] is None else min(r["greedy"] for r in rows)
            text.append(f"| {first['label']}{same} | {mean('bits'):.2f} | {f16:.2f} | {kl} | {mean('top1'):.3f} | {greedy} |")
        text.append("")
    with open(args.page, "w", encoding="utf-8") as f:
        f.write("\n".join(text))
    with open(os.path.splitext(args.page)[0] + ".json", "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)
        f.write("\n")


@ll.llama_log_callback
def quiet(level, text, data):
    pass


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+")
    p.add_argument("--kvist", required=True)
    p.add_argument("--page", required=True)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--next", type=int, default=256)
    p.add_argument("--texts", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--recipe", action="append", default=[], help="an importance that needs no queries")
    args = p.parse_args()
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    folder = os.path.join(os.path.dirname(__file__), "..", "quality", "texts")
    names = sorted(f for f in os.listdir(folder) if f.startswith("eval-"))[:args.texts]
    results = {}
    for path in args.models:
        mp = ll.llama_model_default_params()
        mp.n_gpu_layers = 0
        model = ll.llama_model_load_from_file(path.encode(), mp)
        if not model:
            sys.exit("llama.cpp could not load " + path)
        found = []
        for name in names:
            with open(os.path.join(folder, name), encoding="utf-8") as f, tempfile.TemporaryDirectory() as tmp:
                found.append(one(args, path, model, f.read(), tmp))
        results[os.path.basename(path)] = found
        ll.llama_model_free(model)
    page(args, results)
    bad = [(m, r["label"]) for m, texts in results.items() for t in texts for r in t
           if r["label"].startswith("kvist 8 bits, queries") and r["greedy"] < GREEDY or r.get("same") is False]
    if bad:
        sys.exit(f"not what they should be: {bad}")


main()
