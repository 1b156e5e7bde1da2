# SPDX-License-Identifier: Apache-2.0
"""Writes the fixtures of package gguf with the Python package gguf, which is an implementation of its own:

types.gguf                  for every quantized type a tensor of stored bytes (name: the type) and what
                            the package dequantizes them to (name: the type + ".f32")
split-0000?-of-0000?.gguf   a model of five tensors in several files

Usage: make.py FOLDER
"""

import os
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES

# Offsets of the binary16 fields of a block.
F16 = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
    T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.MXFP4: [],
}
# Scales that are hard to get right: zeros, the least and largest subnormal and normal numbers, ones
# that no float represents shortly, infinities and a NaN.
HARD = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00,
                 0x3555, 0x2E66, 0x7C00, 0xFC00, 0x7E00], dtype=np.uint16)
VALUES = 256  # of a row
ROWS = 20


def blocks(rng, typ):
    """Random bytes as rows of a type: scales hard for the first rows, then ordinary ones."""
    values, size = GGML_QUANT_SIZES[typ]
    n = ROWS * VALUES // values
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)
    per = VALUES // values
    for f, off in enumerate(F16[typ]):
        # The second field walks through the list at another pace, so that pairs vary.
        hard = HARD[(np.arange(n) // per * (1 + 2 * f) + np.arange(n) % per) % len(HARD)]
        usual = rng.normal(0, 0.02, n).astype(np.float16).view(np.uint16)
        s = np.where(np.arange(n) < n * 3 // 4, hard, usual)
        b[:, off:off + 2] = s.astype("<u2")[:, None].view(np.uint8)
    if typ == T.MXFP4:
        b[:, 0] = np.concatenate([[0, 1, 2, 3, 253, 254, 255], rng.integers(100, 140, n - 7)])
        b[:min(n, 4), 1:] = np.arange(16) * 17  # every code
    return b.reshape(ROWS, -1)


def main(folder):
    rng = np.random.default_rng(1)
    w = GGUFWriter(os.path.join(folder, "types.gguf"), "test")
    np.seterr(all="ignore")
    for typ in F16:
        b = blocks(rng, typ)
        try:  # what a quantizer makes, where the package has one
            made = quants.quantize(rng.normal(0, 1, (2, VALUES)).astype(np.float32), typ)
            b = np.concatenate([b, made.reshape(2, -1)])
        except NotImplementedError:
            pass
        w.add_tensor(typ.name, b, raw_dtype=typ)
        w.add_tensor(typ.name + ".f32", quants.dequantize(b, typ).astype(np.float32))
    x = rng.normal(0, 1, (4, VALUES)).astype(np.float32)
    bf = quants.quantize(x, T.BF16)
    w.add_tensor("BF16", bf, raw_dtype=T.BF16)
    w.add_tensor("BF16.f32", quants.dequantize(bf, T.BF16))
    w.add_tensor("F16", x.astype(np.float16))
    w.add_tensor("F16.f32", x.astype(np.float16).astype(np.float32))
    finish(w)

    for old in os.listdir(folder):
        if old.startswith("split-"):
            os.remove(os.path.join(folder, old))
    w = GGUFWriter(os.path.join(folder, "split.gguf"), "test", split_max_tensors=2)
    w.add_name("split sample")
    for i in range(5):
        w.add_tensor(f"t{i}", np.arange(8, dtype=np.float32) + 100 * i)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main(sys.argv[1])
