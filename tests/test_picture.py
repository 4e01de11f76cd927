"""Pictures of zeros: what a raster keeps, what is drawn where, and what reports hold."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsec.explain.text import FEW, render
from sparsec.sparsity.picture import (
    COLUMNS,
    ROWS,
    coloured,
    densities,
    in_colours,
    in_shades,
    pixels,
    raster,
    shaded,
)

RANDOM = np.random.default_rng(3)


def pruned(rows: int, columns: int, density: float) -> np.ndarray[Any, Any]:
    weight = RANDOM.standard_normal((rows, columns)).astype(np.float32)
    return np.where(RANDOM.random((rows, columns)) < density, weight, 0)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 100), (100, 1), (7, 13), (24, 64), (25, 65), (97, 101), (512, 4608)]
)
def test_a_raster_fits_and_tells_the_densities(shape: tuple[int, int]) -> None:
    weight = pruned(*shape, 0.2)
    rows = raster(weight)
    assert len(rows) == min(shape[0], ROWS) and {len(row) for row in rows} == {min(shape[1], COLUMNS)}
    down, across = (
        [np.arange(n)[i * n // k : (i + 1) * n // k] for i in range(k)]
        for n, k in zip(shape, (len(rows), len(rows[0])), strict=True)
    )
    exact = np.array([[np.mean(weight[np.ix_(d, a)] != 0) for a in across] for d in down])
    assert np.abs(np.sqrt(densities(rows)) - np.sqrt(exact)).max() <= 1 / 63 + 1e-9
    assert ((densities(rows) == 0) == (exact == 0)).all() and ((densities(rows) == 1) == (exact == 1)).all()


def test_neither_one_nonzero_nor_one_zero_is_lost() -> None:
    weight = np.zeros((2048, 4608), np.float32)
    weight[1000, 77] = 1e-30
    assert sorted({*"".join(raster(weight))}) == ["A", "B"]
    assert sorted({*"".join(raster(weight == 0))}) == ["+", "/"]


def test_a_matrix_without_elements_has_no_picture() -> None:
    for shape in ((0, 5), (5, 0), (0, 0)):
        assert raster(np.zeros(shape)) == [] == shaded([], 12, 64)
    assert coloured([], 12, 64).plain == ""


def test_structure_shows_where_it_is() -> None:
    weight = np.ones((48, 128), np.float32)
    weight[24:] = 0
    weight[:24, 96:] = 0
    lines = shaded(raster(weight), 12, 64)
    assert lines == ["█" * 48 + "·" * 16] * 6 + ["·" * 64] * 6
    assert shaded(raster(weight), 2, 4) == ["███·", "····"]
    assert shaded(raster(weight), 2, 4, ascii_only=True) == ["###.", "...."]
    text = coloured(raster(weight), 2, 4)
    assert text.plain == "▀▀▀▀\n▀▀▀▀"
    styles = [str(span.style) for span in text.spans]
    assert styles == ["#fde782 on #fde782"] * 3 + ["#1b1d28 on #1b1d28"] * 5


def test_an_odd_row_has_no_background() -> None:
    text = in_colours(np.ones((3, 1)))
    assert text.plain == "▀\n▀" and [" on " in str(span.style) for span in text.spans] == [True, False]


def test_shades_and_colours_grow_with_density() -> None:
    scale = np.array([[0, 0.01, 0.2, 0.5, 1.0]])
    assert in_shades(scale) == ["·░▒▓█"] and in_shades(scale, ascii_only=True) == [".-+*#"]
    greens = [int(str(span.style)[3:5], 16) for span in in_colours(scale).spans]
    assert greens == sorted(set(greens))


def test_pixels_have_the_colours_of_a_terminal() -> None:
    rows = raster(pruned(24, 64, 0.3))
    image = pixels(rows)
    assert image.shape == (24, 64, 3) and image.dtype == np.uint8
    hues = ["#" + bytes(pixel).hex() for row in image[::2] for pixel in row]
    assert [str(span.style).split(" on ")[0] for span in coloured(rows, 12, 64).spans] == hues


def layer(name: str, weight: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "node": name, "shape": list(weight.shape), "sparsity": float((weight == 0).mean()),
        "found": "90.0 % zero, unstructured", "format": "csr", "kernel": "csr_spmm",
        "reason": "csr_spmm: it is fastest", "bytes": 100, "dense_bytes": 1000, "raster": raster(weight),
    }  # fmt: skip


def printed(count: int, encoding: str = "utf-8", **settings: Any) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, width=100, legacy_windows=False, **settings)
    report = {"layers": [layer(f"layer{i}", pruned(60, 200, 0.1)) for i in range(count)]}
    render(report, console, pictures=True)
    file.seek(0)
    return file.read()


def test_a_pipe_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = printed(2)
    assert "\x1b" not in text and "▀" not in text and "░" in text
    assert "2 layer1: 60x200, 90.0 % zero, unstructured -> csr" in text
    drawn = [line for line in text.splitlines() if set(line.strip()) <= set("·░▒▓█") and line.strip()]
    assert len(drawn) == 2 * 12 and {len(line) for line in drawn} == {64}


def test_an_ascii_pipe_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert printed(1, encoding="ascii").isascii()


def test_a_terminal_gets_colours_if_it_has_them() -> None:
    terminal: dict[str, Any] = {"force_terminal": True, "_environ": {}}
    assert "\x1b[38;2;" in printed(1, color_system="truecolor", **terminal)
    assert "▀" in printed(1, color_system="256", **terminal)
    assert "▀" not in printed(1, color_system="standard", **terminal)
    assert "▀" not in printed(1, color_system="truecolor", no_color=True, **terminal)


def test_many_layers_are_thumbnails_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = printed(FEW + 1)
    first = next(line for line in text.splitlines() if "layer0" in line)
    assert "1 layer0" in first and "4 layer3" in first
    assert max(map(len, text.splitlines())) <= 100


def test_old_reports_have_no_pictures() -> None:
    console = Console(file=io.StringIO(), width=100)
    old = layer("x", np.ones((4, 4)))
    del old["raster"]
    render({"layers": [old]}, console, pictures=True)
    render({"layers": [old] * (FEW + 1)}, console, pictures=True)
    assert "csr_spmm" in console.file.getvalue()  # type: ignore[attr-defined]


def test_reports_hold_every_weight_as_outputs_by_inputs() -> None:
    pytest.importorskip("tvm")
    onnx = pytest.importorskip("onnx")
    import sparsec

    convolution, linear = pruned(40, 6 * 9, 0.3).reshape(40, 6, 3, 3), pruned(640, 8, 0.2)
    linear[:100] = 0
    convolution[30:] = 0
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "c"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Flatten", ["y"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 6, 4, 4])],
        [helper.make_tensor_value_info("z", 1, [1, 8])],
        [tensor(convolution.astype(np.float32), "c"), tensor(linear.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    first, second = sparsec.analyze(model)["layers"]
    unread, unmade = ~linear.reshape(40, 16, 8).any((1, 2)), ~convolution.any((1, 2, 3))
    convolution[unread], linear.reshape(40, 16, 8)[unmade] = 0, 0  # what remove_channels leaves out
    assert first["raster"] == raster(convolution.reshape(40, -1))
    assert second["raster"] == raster(linear.T)
    assert len(json.dumps(second["raster"])) < 2000
