# SPDX-License-Identifier: Apache-2.0
"""What bounds attention on paper: bytes, and the instructions that sass.py counts, pipe by pipe."""
import sass

HEAD_DIM, BLOCK_ROWS = 128, 32
BITS = (4, 3, 2)

# The vendor's figures: bytes/s of memory, multiprocessors, clock in Hz, 8-bit integer operations/s of the
# tensor cores without sparsity; lanes a clock of a multiprocessor that work on integers and bits, on
# multiplications and float32; the architecture.
DEVICES = {
    "L4": (300e9, 58, 2.04e9, 242e12, 64, 64, "sm_89"),
    "A100 80GB": (2.039e12, 108, 1.41e9, 624e12, 64, 64, "sm_80"),
    "H100 SXM": (3.35e12, 132, 1.755e9, 1979e12, 64, 64, "sm_90"),
    "H200": (4.8e12, 132, 1.755e9, 1979e12, 64, 64, "sm_90"),
}
ISSUE = 128  # lanes a clock that a multiprocessor starts instructions for: 4 warps
FUNCTION = 16  # lanes a clock of the special functions
PRODUCT = 2 * 16 * 8 * 32  # operations of an instruction of the tensor cores


def stored(bits):
    """Bytes a value of lm<bits>+s8: codes, an 8-bit scale a row, a float32 a block."""
    return (bits + 8 / HEAD_DIM + 32 / (HEAD_DIM * BLOCK_ROWS)) / 8


def times(device, pipes, bits):
    """Picoseconds a value, if each were the only limit and met fully."""
    memory, units, clock, tensor, alu, fma, _ = DEVICES[device]
    rate = units * clock / 1e12
    return {
        "bytes": stored(bits) / memory * 1e12,
        "issue": sass.total(pipes) / ISSUE / rate,
        "ALU": pipes["alu"] / alu / rate,
        "FMA": pipes["fma"] / fma / rate,
        "functions": pipes["function"] / FUNCTION / rate,
        "tensor": pipes["tensor"] / 32 * PRODUCT / tensor * 1e12,
    }


def lines_of_report(counts):
    """The table of cuda-ptx.md: {arch: sass.counts}."""
    lines = ["## Machine instructions a value, 8 heads, head_dim 128", "",
             f"Of {sass.ENTRY}, counted by kernels/sass.py, which says what is left out. A tile is K, the",
             "weights and V of 32 rows, with a quarter of what a round adds; ALU is its share for integers",
             "and bits.", "",
             "| architecture | " + " | ".join(f"{b} bits: K / V / tile / ALU" for b in (2, 3, 4)) + " |",
             "|---|---|---|---|"]
    for arch, c in counts.items():
        cells = [" / ".join(f"{x:.2f}" for x in (sass.total(c["K", b]), sass.total(c["V", b]),
                                                 sass.total(c["tile", b]), c["tile", b]["alu"]))
                 for b in (2, 3, 4)]
        lines.append(f"| {arch} | " + " | ".join(cells) + " |")
    return lines + [""]


def write(path, counts, older):
    """counts: {arch: sass.counts}; older: {kernel: {bits: PTX instructions a value}}."""
    lines = ["# Attention on paper", "",
             "Arithmetic from vendors' figures and from counted instructions (cuda-ptx.md); written by",
             "`make check-ptx`. No GPU has run these kernels: nothing here is a measurement, and no speed is",
             "claimed.", "",
             "Decode attention reads every packed byte of K and V once, whatever the number of query heads",
             f"that share them. At head_dim {HEAD_DIM} in blocks of {BLOCK_ROWS} rows, lm<b>+s8 takes "
             + ", ".join(f"{8 * stored(b):.2f}" for b in BITS) + " bits a value",
             "(4, 3, 2 bits), BF16 16. Below is the time of a value in picoseconds, of the integer kernel with up",
             "to 8 heads a KV head, if each part of a device were the only limit and met fully: bytes; starting",
             "4 instructions a clock; integers and bits (ALU), and multiplications and float32 (FMA), of 64 lanes",
             "a clock each; special functions, of 16; the tensor cores' 8-bit products.", "",
             "| device | bits | bytes | issue | ALU | FMA | functions | tensor | the limit | over BF16's bytes |",
             "|---" * 10 + "|"]
    for name, d in DEVICES.items():
        for b in BITS:
            t = times(name, counts[d[-1]]["tile", b], b)
            worst = max(t, key=t.get)
            lines.append(f"| {name} | {b} | " + " | ".join(f"{x:.3f}" for x in t.values())
                         + f" | {worst} | {2 / d[0] * 1e12 / t[worst]:.1f}x |")
    lines += ["",
              "The last column is what BF16 would take at full memory speed, over the limit. Loads that wait,",
              "parts that cannot overlap, and the preparation of queries come on top; only a GPU can show them.",
              "", "The other kernels, in PTX instructions a value (cuda-ptx.md), mean of K and V, and their time on",
              "H200 if starting instructions were the limit:", "",
              "| kernel | " + " | ".join(f"{b} bits" for b in BITS) + " |", "|---|---|---|---|"]
    rate = DEVICES["H200"][1] * DEVICES["H200"][2] / 1e12
    for name, by_bits in older.items():
        lines.append(f"| {name} | " + " | ".join(
            f"{by_bits[b]:.1f}: {by_bits[b] / ISSUE / rate:.2f} ps" for b in BITS) + " |")
    h100 = 132 * 32 * 1.755e9
    lines += ["",
              "Encoding reads 2 bytes a value (f16) and writes under one. Its transform takes log2(head_dim)",
              "additions a value and as many passes through shared memory, which takes 32 lanes a clock: at",
              f"head_dim {HEAD_DIM}, 14 loads and stores for the butterflies and 12 for the sums, scaling and",
              f"codes: on an H100 some {h100 / 26 / 1e9:.0f} billion values/s, {h100 / 26 * 2 / 3.35e12:.0%}"
              " of memory speed at best. A transform in registers would",
              "more than halve that; it is not built."]
    with open(path, "w") as f:
        f.write("\n".join(lines).rstrip() + "\n")
    print(path)
