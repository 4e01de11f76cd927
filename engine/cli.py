"""The command line: ``sparsec compile | run | explain | bench``."""

from __future__ import annotations

import sys
import warnings
from typing import Any, cast

import typer

from sparsec.commands.bench import bench_command
from sparsec.commands.compile import compile_command
from sparsec.commands.explain import explain_command
from sparsec.commands.machine import machine_command
from sparsec.commands.run import run_command
from sparsec.commands.ship import compress_command, decompress_command, verify_command
from sparsec.commands.tune import tune_command
from sparsec.config import settings
from sparsec.errors import ConfigError, SparsecError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compile pruned neural networks into kernels that skip the zeros.",
)
app.command("compile")(compile_command)
app.command("run")(run_command)
app.command("explain")(explain_command)
app.command("bench")(bench_command)
app.command("tune")(tune_command)
app.command("machine")(machine_command)
app.command("verify")(verify_command)
app.command("compress")(compress_command)
app.command("decompress")(decompress_command)


def main() -> None:
    """The console script: exits with 2 after one line on standard error when sparsec refuses."""
    _keep_torch_out()
    warnings.formatwarning = _in_one_line
    try:
        app()
    except SparsecError as error:
        if _debugging():
            raise
        print(f"sparsec: {error}", file=sys.stderr)
        sys.exit(2)


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as users of a command read it."""
    return f"sparsec: {message}\n"


def _keep_torch_out() -> None:
    """Make ``import torch`` fail: tvm_ffi imports it wherever it is installed, which takes seconds.

    Nothing here reads a torch module, and the process is the command's own.
    """
    sys.modules.setdefault("torch", cast(Any, None))


def _debugging() -> bool:
    try:
        return settings().debug >= 1
    except ConfigError:
        return False
