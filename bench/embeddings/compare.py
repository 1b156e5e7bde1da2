# SPDX-License-Identifier: Apache-2.0
"""Compares kvist's index of embeddings with turbovec and faiss in one run, on one thread.

    python compare.py KVIST-BENCH FOLDER [--rounds 9]

KVIST-BENCH is the command bench/embeddings, FOLDER what wordnet.py wrote. Every round takes all systems in
turn, so that what else the machine does hits all alike; figures are medians over rounds of processor time for
a query. Prints a table in Markdown.
"""

import argparse
import os
import statistics
import struct
import subprocess
import time

os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import turbovec  # noqa: E402

MODES = {"head": 1, "single": 1, "batch16": 16, "batch64": 64}


class Kvist:
    def __init__(self, name, command, folder, *flags):
        self.name = name
        self.p = subprocess.Popen(
            [command, "-folder", folder, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        return float(self.p.stdout.readline())

    def encode(self):
        return self.ask("encode")

    def recall(self, mode):
        return self.ask("recall " + mode)

    def time(self, mode, n):
        return self.ask(f"time {mode} {n}")


class Python:
    """An index with a function that searches a batch and returns row numbers."""

    def __init__(self, name, add, search, base, queries, truth):
        self.name, self.search, self.queries, self.truth, self.next = name, search, queries, truth, 0
        start = time.process_time()
        add(base)
        self.added = (time.process_time() - start) / len(base)

    def encode(self):
        return self.added

    def recall(self, mode):
        if mode == "head":
            return None
        hits = np.concatenate([self.search(self.queries[i : i + 50]) for i in range(0, len(self.queries), 50)])
        return sum(len(set(a) & set(b)) for a, b in zip(hits.tolist(), self.truth.tolist())) / self.truth.size

    def time(self, mode, n):
        if mode == "head":
            return None
        batch = MODES[mode]
        start = time.process_time()
        for _ in range(0, n, batch):
            if self.next + batch > len(self.queries):
                self.next = 0
            self.search(self.queries[self.next : self.next + batch])
            self.next += batch
        return (time.process_time() - start) / n


def turbo(bits, base, queries, truth):
    x = turbovec.TurboQuantIndex(base.shape[1], bits)
    x.calibrate(base[:2000])
    return Python(f"turbovec {turbovec.__version__} {bits} bits", x.add, lambda q: x.search(q, 10)[1], base, queries, truth)


def rabitq(base, queries, truth):
    x = faiss.IndexRaBitQFastScan(base.shape[1], faiss.METRIC_INNER_PRODUCT)
    x.train(base[:2000])
    return Python(f"faiss {faiss.__version__} RaBitQ fast scan", x.add, lambda q: x.search(q, 10)[1], base, queries, truth)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("command")
    p.add_argument("folder")
    p.add_argument("--rounds", type=int, default=9)
    a = p.parse_args()
    faiss.omp_set_num_threads(1)
    base, queries = np.load(a.folder + "/base.npy"), np.load(a.folder + "/queries.npy")
    exact = faiss.IndexFlatIP(base.shape[1])
    exact.add(base)
    truth = exact.search(queries, 10)[1].astype(np.int32)
    with open(a.folder + "/top10.ivecs", "wb") as f:
        for row in truth:
            f.write(struct.pack("<11i", 10, *row))
    systems = [
        Kvist("kvist 52 bytes", a.command, a.folder, "-bytes", "52"),
        Kvist("kvist 100 bytes", a.command, a.folder, "-bytes", "100"),
        Kvist("kvist 100 bytes, AVX2", a.command, a.folder, "-bytes", "100", "-isa", "avx2"),
        Kvist("kvist 196 bytes", a.command, a.folder, "-bytes", "196"),
        turbo(2, base, queries, truth),
        turbo(4, base, queries, truth),
        rabitq(base, queries, truth),
    ]
    recalls = {s.name: (s.recall("single"), s.recall("head")) for s in systems}
    times = {(s.name, m): [] for s in systems for m in MODES}
    for _ in range(a.rounds):
        for mode in MODES:
            for s in systems:
                times[s.name, mode].append(s.time(mode, 192))
    print("| index | recall@10 | head first | encode, M/s | head first/s | single/s | batches of 16/s | of 64/s |")
    print("|---|---|---|---|---|---|---|---|")
    for s in systems:
        cells = [f"{r:.4f}" if r is not None else "" for r in recalls[s.name]]
        cells.append(f"{1e-6 / s.encode():.2f}")
        for mode in MODES:
            t = times[s.name, mode]
            cells.append("" if t[0] is None else f"{1 / statistics.median(t):,.0f}")
        print(f"| {s.name} | " + " | ".join(cells) + " |")
    best = "kvist 100 bytes"
    rival = systems[4].name
    for mode in MODES:
        other = times[rival, "single" if mode == "head" else mode]
        ratios = sorted(b / k for k, b in zip(times[best, mode], other))
        print(f"\n{best}, {mode}, over {rival}: median ratio {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
