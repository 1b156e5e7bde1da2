#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decode attention of PyTorch in BF16 on the shapes of cuda/bench_test.go: the baseline.

One query token a sequence; every back end of scaled_dot_product_attention that takes the shape is
timed with CUDA events, and the best is kept. Prints a JSON object a line.
"""
import json

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
# (batch, kv_heads, gqa ratio, head_dim, tokens)
SHAPES = [(1, 8, g, 128, t << 10) for t in (8, 32, 128, 512) for g in (1, 4, 8)]
SHAPES += [(b, 8, 4, 128, 8 << 10) for b in (8, 64)] + [(1, 8, 4, 64, 128 << 10)]


def time_ms(run, times=20):
    for _ in range(3):
        run()
    spans = []
    for _ in range(times):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        run()
        b.record()
        b.synchronize()
        spans.append(a.elapsed_time(b))
    return sorted(spans)[len(spans) // 2]


def main():
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name()}))
    for batch, kv_heads, group, dim, tokens in SHAPES:
        shape = {"batch": batch, "kv_heads": kv_heads, "gqa": group, "head_dim": dim, "tokens": tokens}
        try:
            make = lambda heads, n: torch.randn(batch, heads, n, dim, device="cuda",
                                                dtype=torch.bfloat16)
            q, k, v = make(kv_heads * group, 1), make(kv_heads, tokens), make(kv_heads, tokens)
        except torch.cuda.OutOfMemoryError:
            print(json.dumps(shape | {"skipped": "out of memory"}))
            continue
        best = None
        # GQA as the library does it, and as more query tokens of one head, which reads K/V once.
        folded = q.view(batch, kv_heads, group, dim)
        for name, run in (("gqa", lambda: scaled_dot_product_attention(q, k, v, enable_gqa=group > 1)),
                          ("folded", lambda: scaled_dot_product_attention(folded, k, v))):
            for backend in BACKENDS:
                try:
                    with sdpa_kernel(backend):
                        ms = time_ms(run)
                except RuntimeError:
                    continue
                if best is None or ms < best[0]:
                    best = (ms, name + " " + backend.name)
        if best is None:
            print(json.dumps(shape | {"skipped": "no back end takes it"}))
            continue
        read = k.numel() * 2 * 2
        print(json.dumps(shape | {"ms": best[0], "how": best[1], "GB/s": read / best[0] / 1e6}),
              flush=True)


if __name__ == "__main__":
    main()
