# SPDX-License-Identifier: Apache-2.0
"""Counts machine instructions of the integer kernels: what nvdisasm shows of an assembled PTX.

The hot loops of kvist_attend_int8_d128 take K, then V, of 32 rows: 128 values a lane each. A loop holds a
body for every width and code that most sub-tiles skip. What is counted is the shortest path from its
first block to its last that passes the body of a width, a copy of planes, and, for K, the terms of rows:
no window that cuts a sub-tile, no bias, soft cap or new mean. A round is what lies between the loops,
once in 4 sub-tiles.
"""
import collections
import os
import re
import subprocess
import sys
import tempfile

ENTRY = "kvist_attend_int8_d128"
VALUES, ROUND = 128, 4  # of a lane and side in a sub-tile; sub-tiles in a round

PIPES = {  # by the part of a multiprocessor that executes them; what is not here is counted as other
    "alu": "LOP3 SHF PRMT IADD3 ISETP SEL LEA VIADD VIADDMNMX IMNMX VIMNMX MOV IADD FMNMX FSETP FSEL "
           "PLOP3 BREV IABS SGXT BMSK VOTE POPC R2P P2R I2FP",
    "fma": "IMAD FFMA FMUL FADD HADD2 HFMA2 HMUL2 CS2R FSWZADD",
    "tensor": "IMMA HMMA",
    "memory": "LD LDS LDG LDSM LDC ST STS STG LDGSTS SHFL LDGDEPBAR DEPBAR ATOM",
    "function": "MUFU I2F F2I FRND F2F FCHK",
}
PIPE_OF = {op: pipe for pipe, ops in PIPES.items() for op in ops.split()}

Instruction = collections.namedtuple("Instruction", "op rest")


class Code:
    """The instructions of an entry, in basic blocks with their successors."""

    def __init__(self, lines):
        self.ins, labels = [], {}
        for line in lines:
            m = re.match(r"(\.L_\w+):", line.strip())
            if m:
                labels[m.group(1)] = len(self.ins)
            m = re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)", line)
            if m and not line.strip().startswith(".L_"):
                guarded = re.search(r"\*/\s+@", line) is not None
                self.ins.append((Instruction(m.group(1), m.group(2)), guarded))
        ends = {i + 1 for i, (x, _) in enumerate(self.ins) if x.op.startswith(("BRA", "BRX", "EXIT", "RET"))}
        starts = sorted(s for s in {0} | set(labels.values()) | ends if s < len(self.ins))
        self.blocks = list(zip(starts, starts[1:] + [len(self.ins)]))
        at = {start: i for i, (start, _) in enumerate(self.blocks)}
        self.next = []
        for i, (_, end) in enumerate(self.blocks):
            x, guarded = self.ins[end - 1]
            target = re.search(r"(\.L_\w+)", x.rest)
            after = []
            if x.op == "BRX":  # of a switch: to any block that follows, up to the end of the switch
                after = [("switch", i)]
            elif x.op.startswith("BRA") and "." in x.op and x.op.split(".")[1] in ("DIV", "CONV"):
                after = [i + 1]  # taken only where the lanes of a warp are apart
            elif x.op.startswith("BRA"):
                if target and labels.get(target.group(1)) in at:
                    after.append(at[labels[target.group(1)]])
                if guarded or not x.rest.strip().startswith(("`", "(", ".L")):
                    after.append(i + 1)
            elif not (x.op in ("EXIT", "RET") and not guarded):
                after = [i + 1]
            self.next.append(after)
        for i, after in enumerate(self.next):  # the cases of a switch: blocks that end with one jump
            if after and isinstance(after[0], tuple):
                self.next[i] = [j for j in range(i + 1, min(i + 40, len(self.blocks)))
                                if j == i + 1 or self.next[j - 1] == [] or i + 1 not in self.next[j - 1]
                                and j not in self.next[j - 1]]

    def count(self, block, prefix):
        a, b = self.blocks[block]
        return sum(x.op.startswith(prefix) for x, _ in self.ins[a:b])

    def loop(self, inside):
        """The smallest loop around some blocks: its first block, and its last."""
        found = [(t, i) for i, after in enumerate(self.next) for t in after
                 if t <= min(inside) and max(inside) <= i]
        if not found:
            sys.exit("no loop around the products")
        return min(found, key=lambda x: x[1] - x[0])

    def path(self, first, last):
        """The shortest way from a block to a later one, which is left out: {pipe: instructions}."""
        best = {first: (0, None)}
        for i in range(first, last):
            if i not in best:
                continue
            a, b = self.blocks[i]
            for j in self.next[i]:
                if i < j <= last and (j not in best or best[i][0] + b - a < best[j][0]):
                    best[j] = (best[i][0] + b - a, i)
        if last not in best:
            sys.exit(f"no way from block {first} to {last}")
        pipes, i = collections.Counter(), last
        while i != first:
            i = best[i][1]
            pipes += self.of_block(i)
        return pipes

    def of_block(self, i):
        a, b = self.blocks[i]
        return collections.Counter(PIPE_OF.get(x.op.split(".")[0], "other") for x, _ in self.ins[a:b])

    def through(self, stops):
        """Of a way along some blocks, the last one included."""
        pipes = self.of_block(stops[-1])
        for a, b in zip(stops, stops[1:]):
            pipes += self.path(a, b)
        return pipes


def disassemble(ptxas, nvdisasm, arch, ptx, entry):
    with tempfile.TemporaryDirectory() as folder:
        cubin = os.path.join(folder, "x.cubin")
        subprocess.run([ptxas, "-arch=" + arch, ptx, "-o", cubin], check=True)
        text = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout
    lines, inside = [], False
    for line in text.splitlines():
        m = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if m:
            inside = m.group(1) == entry
        if inside:
            lines.append(line)
    return Code(lines)


def counts(ptxas, nvdisasm, arch, ptx):
    """Returns {(side, bits): {pipe: instructions a value}}; side is K, V or tile, which is both."""
    code = disassemble(ptxas, nvdisasm, arch, ptx, ENTRY)
    n = range(len(code.blocks))
    products = [i for i in n if code.count(i, "IMMA")]
    bodies, loops = {}, {}
    for side, load in (("K", "LDSM.16.M88"), ("V", "LDSM.16.MT88")):
        of_side = [i for i in products if code.count(i, load)]
        bodies[side] = {code.count(i, "LDSM"): i for i in of_side}
        loops[side] = code.loop(of_side)
    outer = code.loop([loops["K"][0], loops["V"][1]] if loops["K"][0] != loops["V"][0] else products)
    out = {}
    between = code.path(outer[0], loops["K"][0]) + code.path(loops["K"][1] + 1, loops["V"][0])
    between += code.path(loops["V"][1] + 1, outer[1]) + code.of_block(outer[1])
    for bits in (2, 3, 4):
        sides = {}
        for side in "KV":
            first, last = loops[side]
            body = bodies[side][bits]
            inside = range(first, last + 1)
            stops = [first, body] + [i for i in inside if i > body and code.count(i, "LDGSTS")][:1] + [last]
            if side == "K":
                stops[1:1] = [i for i in inside if code.count(i, "MUFU.LG2") and i < body][:1]
            sides[side] = code.through(sorted(set(stops)))
        tile = sides["K"] + sides["V"]
        for pipe in set(tile) | set(between):
            tile[pipe] += between[pipe] / ROUND
        for name, pipes, values in (("K", sides["K"], VALUES), ("V", sides["V"], VALUES),
                                    ("tile", tile, 2 * VALUES)):
            out[name, bits] = {pipe: c / values for pipe, c in pipes.items()}
    return out


def total(pipes):
    return sum(pipes.values())
