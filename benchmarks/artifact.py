"""What a compiled file costs: time to load it, memory it takes, bytes of its weights, bytes when compressed.

    python benchmarks/artifact.py                 about five minutes; needs 1.5 GB of disk
    python benchmarks/artifact.py --models bert_u90,resnet50_u90

A file of 400 MB, one dense layer of random weights, is loaded many times in one process and in two at
once.  The models of workloads.py are compiled, loaded and run in processes of their own, which say
what that made resident; it is compared with the weights and the most memory that temporary values
take at a time.  Results go to ``benchmarks/results/artifact-<cpu>.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import described, slug
from table import machine_line
from workloads import WORKLOADS

import sparsec
from sparsec.explain.summary import totals_of
from sparsec.runtime import shipping
from sparsec.runtime.tables import Section
from sparsec.runtime.verify import verify
from sparsec.sparsity.bound import times_bound

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).resolve().parents[1] / "tests"
MODELS = ("bert_u90", "resnet50_u90", "mobilenet_u90", "ffn_1_u90", "ffn_128_u90")
#: outputs and inputs of the layer of 400 MB
LARGE = (10240, 10240)
LOADS = 21
#: what size expressions of a plan compute
OPERATORS = {2: int.__add__, 3: int.__mul__, 4: lambda a, b: -(-a // b), 5: max}

#: run in a process of its own: loads a file, runs it, and says what that took
PROBE = (
    f"import sys; sys.path.append({str(TESTS)!r})"
    + """
import json, resource, time
import numpy as np
from own_memory import bytes_read, mapping
from sparsec.runtime import Program

def status():
    rows = (x.split(":") for x in open("/proc/self/status") if x.startswith("Rss"))
    return {name: int(value.split()[0]) * 1024 for name, value in rows}

def faults():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt

path, loads, runs, waits = sys.argv[1], *map(int, sys.argv[2:5])
Program.load(path)
before, at, lines = status(), faults(), bytes_read()
times = []
for _ in range(loads):
    started = time.perf_counter()
    program = Program.load(path)
    times.append(time.perf_counter() - started)
said = {"seconds": times, "faults": (faults() - at) / loads, "read": (bytes_read() - lines) / loads}
if runs:
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.standard_normal(i.shape, np.float32) for i in program.inputs}
    before = status()
    before["RssFile"] -= 1024 * mapping(path).get("Rss", 0)
    for _ in range(runs):
        program.run(None, feeds)
    after = status()
    said["resident"] = sum(after[k] - before[k] for k in after)
    said["ports"] = sum(a.nbytes for a in (*feeds.values(), *program.run(None, feeds)))
if waits:
    np.frombuffer(program._model, np.uint8)[::4096].sum()
    print("ready", flush=True)
    sys.stdin.readline()
    said["mapping"] = {kind: 1024 * size for kind, size in mapping(path).items()}
print(json.dumps(said), flush=True)
sys.stdin.readline() if waits else None
"""
)


def probed(path: Path, loads: int, runs: int = 0) -> dict[str, Any]:
    """What one process says."""
    command = [sys.executable, "-c", PROBE, str(path), str(loads), str(runs), "0"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def shared(path: Path) -> list[dict[str, int]]:
    """Two processes that have all of a file in memory at once: kinds of pages in each."""
    command = [sys.executable, "-c", PROBE, str(path), "1", "0", "1"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for one in both:
        one.stdout.readline()
    found = []
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
        found.append(json.loads(one.stdout.readline())["mapping"])
    for one in both:
        one.communicate("\n")
    return found


def large(folder: Path) -> dict[str, Any]:
    """The file of 400 MB."""
    weight = np.random.default_rng(0).standard_normal(LARGE, np.float32)
    path = folder / "large.sparsec"
    sparsec.compile(weight, target="x86-64-v3", records=False).save(path)
    del weight
    single, both = probed(path, LOADS), shared(path)
    return {
        "bytes": path.stat().st_size, "load_ms": 1e3 * median(single["seconds"]),
        "slowest_ms": 1e3 * max(single["seconds"]), "faults": single["faults"], "read": single["read"],
        "resident": [kinds["Rss"] for kinds in both], "proportional": [kinds["Pss"] for kinds in both],
        "private_dirty": [kinds["Private_Dirty"] for kinds in both],
    }  # fmt: skip


def most_alive(path: Path) -> int:
    """The most bytes that temporary values of a file take at a time; sizes must all be known."""
    data = path.read_bytes()
    places = {kind: (start, size) for kind, start, size in _sections(data)}

    def rows(kind: Section, dtype: Any) -> Any:
        start, size = places[kind]
        return np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, start)

    sizes: list[int] = []
    for operator, _, a, b in rows(Section.EXPRESSIONS, "<u4,<u4,<i8,<i8"):
        sizes.append(int(a) if operator == 0 else OPERATORS[int(operator)](sizes[a], sizes[b]))
    buffers = rows(Section.BUFFERS, "<u4,<u4,<i8,<u4,<u4")
    temporary = [(first, last, sizes[nbytes]) for kind, nbytes, _, first, last in buffers if kind == 3]
    steps = max((int(last) for _, last, _ in temporary), default=0) + 1
    return max(sum(n for first, last, n in temporary if first <= step <= last) for step in range(steps))


def _sections(data: bytes) -> list[tuple[int, int, int]]:
    count = int.from_bytes(data[12:16], "little")
    table = np.frombuffer(data, "<u4,<u4,<u8,<u8,<u8", count, 64)
    return [(int(kind), int(start), int(size)) for kind, _, start, size, _ in table]


def model(name: str, folder: Path) -> dict[str, Any]:
    """One of workloads.py."""
    workload = next(w for w in WORKLOADS if w.name == name)
    path, small = folder / f"{name}.sparsec", folder / f"{name}.sparsec.zst"
    program = sparsec.compile(
        workload.write(folder), shapes=workload.shapes, target="x86-64-v3", records=False
    )
    program.save(path)
    totals = totals_of(program.report)
    started = time.perf_counter()
    shipping.compress(path, small)
    compressing = time.perf_counter() - started
    found, weights = probed(path, LOADS, runs=3), verify(path).sections[-1].nbytes
    arena = most_alive(path)
    return {
        "name": name, "about": workload.about, "bytes": path.stat().st_size, "weights": weights,
        "layers": totals.bytes, "bound": totals.bound_bytes, "dense": totals.dense_bytes,
        "most_times_bound": max(filter(None, map(times_bound, program.report["layers"]))),
        "compressed": small.stat().st_size, "compress_s": compressing,
        "load_ms": 1e3 * median(found["seconds"]), "arena": arena, "ports": found["ports"],
        "resident": found["resident"], "of_planned": found["resident"] / (weights + arena + found["ports"]),
    }  # fmt: skip


def megabytes(count: float) -> str:
    """10^6 bytes."""
    return f"{count / 1e6:.1f} MB"


def table(found: dict[str, Any]) -> str:
    """The results for people."""
    big, rows = found["large"], found["files"]
    proportional = " and ".join(megabytes(count) for count in big["proportional"])
    lines = [
        machine_line(found["machine"]),
        "",
        f"A file of {megabytes(big['bytes'])} loads in {big['load_ms']:.2f} ms (median of {LOADS}, slowest "
        f"{big['slowest_ms']:.2f} ms) with {big['faults']:.0f} page faults and {big['read']:.0f} bytes read. "
        f"Two processes that touched all of it have {megabytes(big['resident'][0])} of it resident each; "
        f"{proportional} are counted to them (Pss), {megabytes(max(big['private_dirty']))} is their own.",
        "",
        "| model | file | load | layers' weights | bound | times | dense | compressed | resident after runs "
        "| of weights, arena, inputs and outputs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        cells = (
            r["about"], megabytes(r["bytes"]), f"{r['load_ms']:.2f} ms", megabytes(r["layers"]),
            megabytes(r["bound"]), f"{r['layers'] / r['bound']:.2f}x", megabytes(r["dense"]),
            f"{megabytes(r['compressed'])} ({r['compressed'] / r['bytes']:.0%})", megabytes(r["resident"]),
            f"{r['of_planned']:.0%}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names of workloads.py")
    names = parser.parse_args(arguments).models.split(",")
    machine = described()
    with tempfile.TemporaryDirectory() as folder:
        models = [model(name, Path(folder)) for name in names]
        found = {"machine": machine, "large": large(Path(folder)), "files": models}
    path = RESULTS / f"artifact-{slug(machine)}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(found), encoding="utf-8")
    print(table(found), end="")


if __name__ == "__main__":
    main()
