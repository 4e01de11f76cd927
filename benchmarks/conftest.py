"""What pytest-benchmark writes: the machine without its name, medians without every sample."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Benchmarks share modules that importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))

from machine import described


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Only what decides a result."""
    machine_info.clear()
    machine_info.update(described())
    # pytest-benchmark prints these two when it compares
    machine_info["cpu"] = {"brand_raw": machine_info["cpu"]}
    machine_info["system"] = "Linux"


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Samples make megabytes; quartiles stay."""
    output_json.pop("commit_info", None)
    for one in output_json["benchmarks"]:
        one["stats"].pop("data", None)
        one["params"] = {"layer": one["param"]}
