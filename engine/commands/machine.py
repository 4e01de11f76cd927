"""``sparsec machine``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsec.commands.options import Json, Quiet
from sparsec.commands.output import console, print_json

if TYPE_CHECKING:
    from sparsec.targets.measured import Figures
    from sparsec.targets.target import Target


def machine_command(
    measure: Annotated[
        bool, typer.Option("--measure", help="measure it, in a few seconds, and keep what was found")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what is known of this machine, which predictions rest on, and where each figure comes from."""
    from sparsec.targets.measured import figures
    from sparsec.targets.named import level

    target = level()
    known = _measured(quiet or as_json) if measure else figures(target)
    if as_json:
        print_json(_described(target, known))
    elif not quiet:
        _show(_described(target, known))


def _measured(quiet: bool) -> Figures:
    """Anew, whatever was kept before."""
    from sparsec.commands.watch import watched
    from sparsec.targets.measured import keep, measure_facts, measured_figures
    from sparsec.targets.named import native

    machine = native()
    with watched(quiet) as progress:
        facts = measure_facts(machine, progress)
    if not keep(machine, facts):
        print("sparsec: not kept: SPARSEC_CACHE names no folder that can be written", file=sys.stderr)
    return measured_figures(facts)


def _described(target: Target, known: Figures) -> dict[str, Any]:
    from sparsec.targets.facts import known_as
    from sparsec.targets.processor import this_processor

    processor = this_processor()
    kind = known_as(processor)
    return {
        "processor": {
            "name": processor.name, "vendor": processor.vendor, "family": processor.family,
            "model": processor.model, "kind": kind.name if kind else None,
        },
        "target": target.name,
        "lanes": target.lanes,
        "peak_gflops": round(known.facts.gflops(target.lanes), 1),
        "facts": {
            name: {"value": getattr(known.facts, name), "from": origin}
            for name, origin in known.origins.items()
        },
    }  # fmt: skip


#: figure -> what it is, and how it is written
_WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "gigahertz": ("clock under vector code", lambda x: f"{x:.2f} GHz"),
    "fmas": ("vector multiply-adds", lambda x: f"{x:.0f} a cycle"),
    "l1": ("L1", lambda x: f"{x / 1024:.0f} KB"),
    "l2": ("L2", lambda x: f"{x / 1024:.0f} KB"),
    "l3": ("L3", lambda x: f"{x / 2**20:.0f} MB"),
    "l1_bytes": ("reads from L1", lambda x: f"{x:.1f} bytes a cycle"),
    "l2_bytes": ("reads from L2", lambda x: f"{x:.1f} bytes a cycle"),
    "l3_bytes": ("reads from L3", lambda x: f"{x:.1f} bytes a cycle"),
    "dram_bytes": ("reads from memory", lambda x: f"{x:.1f} bytes a cycle"),
    "gathers": ("elements gathered from L1", lambda x: f"{x:.2f} a cycle"),
    "mispredict": ("a loop's end not foreseen", lambda x: f"{x:.0f} cycles"),
}


def _show(about: dict[str, Any]) -> None:
    from rich.table import Table

    processor = about["processor"]
    kind = f": {processor['kind']}" if processor["kind"] else ""
    print(
        f"{processor['name'] or 'unknown processor'} (family {processor['family']}, "
        f"model {processor['model']}){kind}"
    )
    print(f"{about['target']}, vectors of {about['lanes']} floats, {about['peak_gflops']:.0f} GFLOP/s a core")
    table = Table("one core", "", "from")
    for name, fact in about["facts"].items():
        label, spelled = _WORDS[name]
        table.add_row(label, spelled(fact["value"]), fact["from"])
    console().print(table)
