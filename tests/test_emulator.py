# SPDX-License-Identifier: Apache-2.0
"""The emulator that runs AVX-512 code for tests runs it, and runs it right."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

_FOLDER = Path(__file__).parent / "emulator"


def _load_emulator() -> ModuleType:
    """Import the module by its file: tests are no package and not on the path."""
    spec = importlib.util.spec_from_file_location("sparsec_emulator", _FOLDER / "emulator.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


emulator = _load_emulator()
_REASON = emulator.available()
needs_emulator = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


def _build(source: Path, target: Path) -> Path:
    command = ("gcc", "-O2", "-static", "-mavx512f", "-mavx512vbmi", "-o", str(target))
    subprocess.run((*command, str(source)), check=True)
    return target


def _build_text(text: str, folder: Path) -> Path:
    source = folder / "program.c"
    source.write_text(text)
    return _build(source, folder / "program")


def _expected(numbers: list[float]) -> list[list[float]]:
    """Compute harness.c's first six results; every number is exact in float32."""
    low, high = numbers[:16], numbers[16:]
    permuted = [numbers[31 - 2 * i] for i in range(16)]
    greater = [a > b for a, b in zip(low, high, strict=True)]
    chosen = [a for a, flag in zip(low, greater, strict=True) if flag]
    source = iter(low)
    return [
        permuted,
        permuted,
        [a * b + a for a, b in zip(low, high, strict=True)],
        chosen + [0.0] * (16 - len(chosen)),
        [next(source) if flag else 0.0 for flag in greater],
        permuted,
    ]


@needs_emulator
def test_avx512_instructions_give_the_right_numbers(tmp_path: Path) -> None:
    numbers = [float((7 * i + 3) % 32) - 11.5 for i in range(32)]
    program = _build(_FOLDER / "harness.c", tmp_path / "harness")
    output = emulator.run(program, {"input.bin": struct.pack("<32f", *numbers)})
    floats, reversed_bytes = output[:-64], output[-64:]
    results = struct.unpack("<96f", floats)
    assert [list(results[i : i + 16]) for i in range(0, 96, 16)] == _expected(numbers)
    assert reversed_bytes == struct.pack("<16f", *numbers[:16])[::-1]


@needs_emulator
def test_large_binary_output_comes_back_whole(tmp_path: Path) -> None:
    text = """
        #include <stdio.h>
        int main(void) {
          FILE* file = fopen("folder/data.bin", "rb");
          for (int c; (c = getc(file)) != EOF;) putchar(c);
          fputs("not part of the output", stderr);
        }
    """
    data = bytes(i * i % 251 for i in range(1 << 20)) + b"end"
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    assert emulator.run(_build_text(text, tmp_path), {"folder/data.bin": path}) == data


@needs_emulator
def test_failing_program_is_reported_with_its_message(tmp_path: Path) -> None:
    text = '#include <stdio.h>\nint main(void) { fputs("no luck", stderr); return 3; }'
    with pytest.raises(emulator.EmulatorError, match="exited with status 3\nno luck"):
        emulator.run(_build_text(text, tmp_path), {})


@needs_emulator
def test_illegal_instruction_is_reported_as_a_signal(tmp_path: Path) -> None:
    text = "int main(void) { __builtin_trap(); }"
    with pytest.raises(emulator.EmulatorError, match="killed by signal 4"):
        emulator.run(_build_text(text, tmp_path), {})


@needs_emulator
def test_program_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(emulator.EmulatorError, match="not done after 3 s"):
        emulator.run(_build_text("int main(void) { for (;;) {} }", tmp_path), {}, timeout=3)
