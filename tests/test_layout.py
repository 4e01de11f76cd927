"""Who may import whom, read from the syntax trees; and how light ``import sparsec`` is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: folder of the repository -> the package it installs as
FOLDERS = {
    "engine": "sparsec",
    "passes": "sparsec.passes",
    "runtime": "sparsec.runtime",
    "targets": "sparsec.targets",
}
#: what everyone may use: facts and words, no behaviour of any part
COMMON = ("errors", "config", "ir.dims", "ir.expr", "progress")

#: Parts of the package in the order in which imports run; a part names the parts it may import.
#: Anything under ``if TYPE_CHECKING`` is no import: it loads nothing.
ALLOWED: dict[str, tuple[str, ...]] = {
    "common": ("common",),
    "formats": ("common", "formats"),
    "measured": ("common", "formats", "measured"),
    "ir": ("common", "formats", "ir"),
    "meaning": ("common", "formats", "measured", "ir", "meaning"),
    "runtime": ("common", "formats", "ir", "runtime"),
    "target": ("common", "formats", "measured", "ir", "runtime", "target"),
    "kernels": ("common", "formats", "measured", "ir", "meaning", "runtime", "target", "kernels"),
    "passes": ("common", "formats", "measured", "ir", "meaning", "target", "kernels", "passes"),
    "frontends": ("common", "formats", "ir", "frontends"),
    "pictures": ("common", "measured"),
}
#: Where each module belongs, the longest prefix decides.  Others (compiler, planner ...) may import
#: everything but what is shown to people, and that may import everything.
PARTS = {
    **{f"sparsec.{name}": "common" for name in COMMON},
    "sparsec.formats": "formats",
    "sparsec.sparsity": "measured",
    "sparsec.sparsity.bound": "meaning",
    "sparsec.sparsity.picture": "pictures",
    "sparsec.sparsity.prune": "meaning",
    "sparsec.ir": "ir",
    "sparsec.ir.printer": "meaning",
    "sparsec.reference": "meaning",
    "sparsec.runtime": "runtime",
    "sparsec.feeds": "runtime",
    "sparsec.targets.target": "target",
    "sparsec.targets.geometry": "target",
    "sparsec.targets": "kernels",
    "sparsec.passes": "passes",
    "sparsec.frontends": "frontends",
    "sparsec.__main__": "shown",
    "sparsec.cli": "shown",
    "sparsec.commands": "shown",
    "sparsec.explain.html": "shown",
    "sparsec.explain.text": "shown",
    "sparsec.bench.compare": "shown",
    "sparsec.bench.engines": "engines",
    "sparsec.bench.show": "shown",
}
#: library -> the parts that may import it
HEAVY = {
    "tvm": ("frontends", "kernels"),
    "onnx": ("frontends",),
    "torch": ("frontends", "engines"),
    "rich": ("shown", "pictures"),
    "typer": ("shown",),
    "jinja2": ("shown",),
    "matplotlib": ("shown",),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by name, with its file."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            inner = [p for p in parts if p != "__init__"]
            yield ".".join([package, *inner]), path


MODULES = dict(modules())


def part_of(module: str) -> str | None:
    """The part a module belongs to; None where anything goes."""
    while module:
        if module in PARTS:
            return PARTS[module]
        module = module.rpartition(".")[0]
    return None


def may_import(part: str | None, other: str | None) -> bool:
    """Whether modules of one part may import those of another."""
    if part in ALLOWED:
        return other in ALLOWED[part]
    return part == "shown" or other != "shown"


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports at run time, also inside functions."""
    tree = ast.parse(path.read_text())
    skipped = {id(inner) for node in ast.walk(tree) if _only_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, _target(module, alias.name)) for alias in node.names)


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _target(module: str, name: str) -> str:
    """``from sparsec import ir`` imports sparsec.ir, ``from sparsec.ir import Node`` too."""
    whole = f"{module}.{name}"
    return whole if whole in MODULES else module


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    part = part_of(module)
    wrong = [
        f"line {line}: {module} ({part}) imports {name}"
        for line, name in imported(MODULES[module])
        if name.split(".")[0] == "sparsec" and not may_import(part, part_of(name))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_stay_in_their_place(module: str) -> None:
    wrong = [
        f"line {line}: {module} imports {name}"
        for line, name in imported(MODULES[module])
        for heavy in [name.split(".")[0]]
        if heavy in HEAVY and part_of(module) not in HEAVY[heavy]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", MODULES)
def test_imports_name_the_whole_path(module: str) -> None:
    relative = [f"line {line}: {name}" for line, name in imported(MODULES[module]) if name.startswith(".")]
    assert not relative, "\n".join(relative)


def test_nobody_imports_the_folders_by_their_names() -> None:
    searched = [*MODULES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in searched
        for line, name in imported(path)
        if name.split(".")[0] in FOLDERS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_is_declared() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(declared) == found


def test_readme_shows_the_results_there_are() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python benchmarks/readme_table.py"


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import sparsec; took = time.perf_counter() - start; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules})); print(took)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, took = result.stdout.splitlines()
    assert not {"tvm", "torch", "onnx", "onnxruntime", "rich", "typer"} & set(loaded.split())
    print(f"import sparsec took {float(took) * 1e3:.0f} ms")
