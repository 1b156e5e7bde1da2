# SPDX-License-Identifier: Apache-2.0
"""Measures llama.cpp and the runner of engine/model with the same models and tokens, in turn.

llamacpp.py build VENV MODEL   build llama.cpp for this machine from the source package llama-cpp-python, and
                               see that it runs MODEL
llamacpp.py run ...            measure both and write a page; make model-speed gives the arguments
llamacpp.py peer MODEL ...     (for run) measure llama.cpp, in the Python that has the package

Where llama.cpp cannot be built, build says why and the page has the runner alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

PACKAGE = "llama-cpp-python==0.3.36"
CONTEXTS = (16, 1000)  # as in main.go


def tokens(n):
    """The tokens of main.go."""
    return [300 + i * 37 % 4000 for i in range(n)]


# How llama.cpp is built: for all that the processor has, or without AMX, which some virtual machines
# announce and do not run.
FLAGS = ("-DGGML_NATIVE=ON",
         "-DGGML_NATIVE=ON " + " ".join(f"-DCMAKE_{x}_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'"
                                        for x in ("C", "CXX")))


def build(args):
    python = os.path.join(args.venv, "bin", "python")
    if built(args.venv):
        return
    subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall",
               "--no-cache-dir", "--no-binary", "llama-cpp-python", PACKAGE]
    for flags in FLAGS:
        print(f"building {PACKAGE} with {flags}: some 15 minutes on two cores", file=sys.stderr)
        if subprocess.run(install, env=dict(os.environ, CMAKE_ARGS=flags), stdout=sys.stderr).returncode != 0:
            print("skipped: the build failed; it needs a C++ compiler and PyPI", file=sys.stderr)
            return
        probe = [python, __file__, "peer", args.model, "--steps=1"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            with open(os.path.join(args.venv, "flags.txt"), "w", encoding="utf-8") as f:
                f.write(flags)
            return
        print("it was built and does not run here", file=sys.stderr)


def built(venv):
    """The flags of a llama.cpp that runs; None where there is none."""
    try:
        with open(os.path.join(venv, "flags.txt"), encoding="utf-8") as f:
            return f.read()
    except OSError:
        return None


def peer(args):
    """Prints what main.go prints, of llama.cpp: its default cache (f16) and choice of attention."""
    import ctypes

    import llama_cpp as ll

    quiet = ll.llama_log_callback(lambda *a: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    mp = ll.llama_model_default_params()
    mp.n_gpu_layers = 0
    model = ll.llama_model_load_from_file(args.model.encode(), mp)
    cp = ll.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch = 2048, 512, 512
    cp.n_threads = cp.n_threads_batch = args.workers
    ctx = ll.llama_init_from_model(model, cp)
    if not model or not ctx:
        sys.exit("llama.cpp could not load " + args.model)
    memory = ll.llama_get_memory(ctx)
    ids = tokens(max(args.prompt, CONTEXTS[-1]) + args.steps)

    def decode(part):
        for lo in range(0, len(part), 512):
            piece = part[lo:lo + 512]
            array = (ll.llama_token * len(piece))(*piece)
            if ll.llama_decode(ctx, ll.llama_batch_get_one(array, len(piece))) != 0:
                sys.exit("llama.cpp: decode failed")
        ll.llama_synchronize(ctx)

    out = {"decode": {}}
    for _ in range(2):  # the first pass warms up
        ll.llama_memory_clear(memory, True)
        start = time.perf_counter()
        decode(ids[:args.prompt])
        out["prefill"] = args.prompt / (time.perf_counter() - start)
    for n in CONTEXTS:
        ll.llama_memory_clear(memory, True)
        decode(ids[:n])
        start = time.perf_counter()
        for i in range(args.steps):
            decode(ids[n + i:n + i + 1])
        out["decode"][str(n)] = args.steps / (time.perf_counter() - start)
    print(json.dumps(out))


def once(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def run(args):
    common = [f"--workers={args.workers}", f"--prompt={args.prompt}", f"--steps={args.steps}"]
    here = [args.ours] + [c.replace("--", "-", 1) for c in common]
    runners = {"kvist, float32 activations": lambda m: once(here + [m]),
               "kvist, int8 activations": lambda m: once(here + ["-fast", m])}
    python = os.path.join(args.venv, "bin", "python")
    why = ""
    flags = built(args.venv)
    if flags:
        why = f"llama.cpp was built with `{flags}`."
        runners = {"llama.cpp": lambda m: once([python, __file__, "peer", m] + common), **runners}
    else:
        why = f"llama.cpp was not measured: no {PACKAGE} could be built here."
    rows = []
    for model in args.models:
        got = {name: [] for name in runners}
        for _ in range(args.rounds):  # in turn, so that all meet the same machine
            for name, measure in runners.items():
                got[name].append(measure(model))
        rows += [(os.path.basename(model), name, values) for name, values in got.items()]
    page(args, rows, why)


def page(args, rows, why):
    def figures(values):
        middle = statistics.median(values)
        return f"{middle:.1f} ({min(values):.1f} to {max(values):.1f})"

    base, lines = {}, []
    for model, name, values in rows:
        parts = [[v["prefill"] for v in values]] + [[v["decode"][str(n)] for v in values] for n in CONTEXTS]
        if name == "llama.cpp":
            base[model] = [statistics.median(p) for p in parts]
        cells = []
        for i, p in enumerate(parts):
            ratio = f", {statistics.median(p) / base[model][i]:.2f}x" if model in base and name != "llama.cpp" else ""
            cells.append(figures(p) + ratio)
        lines.append(f"| {model} | {name} | " + " | ".join(cells) + " |")
    text = ["# Speed of the runner", "",
            f"Tokens a second, median of {args.rounds} rounds (least to most), {args.workers} threads, "
            f"{cpu()}. Runners take turns; x is against llama.cpp's median.",
            f"llama.cpp is that of {PACKAGE}, with its default cache in f16.",
            "kvist keeps K and V in float32. The prompt has "
            f"{args.prompt} tokens; {args.steps} tokens are decoded. Made by `make model-speed`.", ""]
    if why:
        text += [why, ""]
    text += ["| model | runner | prompt | " + " | ".join(f"decoding at {n}" for n in CONTEXTS) + " |",
             "|---|---|---|" + "---|" * len(CONTEXTS)] + lines
    with open(args.page, "w", encoding="utf-8") as f:
        f.write("\n".join(text) + "\n")


def cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="verb", required=True)
    b = sub.add_parser("build")
    b.add_argument("venv")
    b.add_argument("model")
    r = sub.add_parser("run")
    r.add_argument("models", nargs="+")
    r.add_argument("--ours", required=True, help="the program of main.go")
    r.add_argument("--venv", required=True)
    r.add_argument("--page", required=True)
    r.add_argument("--rounds", type=int, default=5)
    q = sub.add_parser("peer")
    q.add_argument("model")
    for s in (r, q):
        s.add_argument("--workers", type=int, default=os.cpu_count())
        s.add_argument("--prompt", type=int, default=128)
        s.add_argument("--steps", type=int, default=24)
    args = p.parse_args()
    {"build": build, "run": run, "peer": peer}[args.verb](args)


main()
