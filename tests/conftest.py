"""Fixtures every test may use, and the line that says which tiers ran."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from runtime_alone import RuntimeAlone

# Tests share modules (corpus, kernel_harness) that importlib mode does not put on the path.
sys.path.insert(0, str(Path(__file__).parent))

# What was measured on this machine must not decide what is tested.
os.environ["SPARSEC_FACTS"] = "shipped"

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
EMULATOR = Path(__file__).parent / "emulator" / "emulator.py"
GOLDEN = Path(__file__).parent / "golden"
#: files whose tests compile many kernels, a case each
SLOW = (
    "test_conv.py",
    "test_conv_images.py",
    "test_depthwise_pool.py",
    "test_kernels.py",
    "test_recurrent.py",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and matrices beside the repository; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared/data folder is not beside this clone")
    return SHARED_DATA


@pytest.fixture(scope="session")
def runtime_alone(tmp_path_factory: pytest.TempPathFactory) -> RuntimeAlone:
    """An environment with sparsec-runtime and NumPy; one for all workers."""
    from runtime_alone import runtime_alone

    base = tmp_path_factory.getbasetemp()
    return runtime_alone((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runtime_alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m cuda`` runs where there is neither TVM nor ONNX: other files are not even imported."""
    if config.option.markexpr == "cuda" and collection_path.suffix == ".py":
        return collection_path.name != "test_cuda_device.py"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the many cases of a slow test, the first, the last and some others, unless all are asked for.

    A compiler is slow, and the same code makes them all.  Which cases are run depends on their names
    alone, so that no kind of them is left out as a whole; none of the slow ones for a GPU.
    """
    if os.environ.get("SPARSEC_EVERY_CASE"):
        return
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if _one_of(item.path.name) > 1:
            cases.setdefault((item.path.name, getattr(item, "originalname", item.name)), []).append(item)
    left_out = pytest.mark.skip(reason="not every case of a slow test: SPARSEC_EVERY_CASE=1 runs them")
    for (file, _), several in cases.items():
        for item in several[1:-1]:
            if crc32(item.name.encode()) % _one_of(file):
                item.add_marker(left_out)
        for item in several:
            if item.get_closest_marker("slow"):
                item.add_marker(left_out)


def _one_of(file: str) -> int:
    """Of how many cases one is run, on average."""
    if file.startswith("test_cuda_") and file != "test_cuda_device.py":
        return 8
    return 3 if file in SLOW else 1


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "emulated: runs AVX-512 code in the emulator (about a minute)")


def pytest_report_header() -> str:
    """Which tiers this run has, so that nobody takes a skipped one for a passed one."""
    import qemu_arm
    from browser import browser

    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8").split() if cpu.is_file() else []
    emulator = importlib.util.spec_from_file_location("tiers_emulator", EMULATOR)
    assert emulator is not None and emulator.loader is not None
    module = importlib.util.module_from_spec(emulator)
    emulator.loader.exec_module(module)
    tiers = {
        "tvm": importlib.util.find_spec("tvm"),
        "torch": importlib.util.find_spec("torch"),
        "onnxruntime": importlib.util.find_spec("onnxruntime"),
        "AVX-512 on this CPU": "avx512f" in flags,
        "AVX-512 emulated": module.available() is None,
        "ARM emulated": qemu_arm.missing() is None,
        "shared/data": SHARED_DATA.is_dir(),
        "chromium": browser(),
    }
    return "tiers: numpy, " + ", ".join(name if there else f"no {name}" for name, there in tiers.items())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares text with ``tests/golden/name``, or writes it on request."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no golden text {name}: run pytest --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8"), "differs: pytest --update-golden if that is meant"

    return check
