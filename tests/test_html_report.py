"""The page explain writes: whole, without the network, and rendered by a browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tvm")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

import sparsec
from sparsec.errors import ConfigError
from sparsec.explain.html import page as page_of
from sparsec.explain.html import write
from sparsec.targets.x86 import AVX2

from .browser import browser
from .report_cases import layer, measured_report, residual

CHROMIUM = browser()


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return measured_report()


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> str:
    return page_of(report, "<model>.onnx")


def test_the_page_is_whole_and_asks_the_network_for_nothing(report: dict[str, Any], page: str) -> None:
    assert page == page_of(report, "<model>.onnx")
    assert page.lstrip().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert "&lt;model&gt;.onnx" in page and "<model>" not in page and "<last" not in page
    assert not re.search(r"https?:|//cdn|@import|<link|<iframe|xmlns", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(names)) == len(names)


def test_the_page_says_why(report: dict[str, Any], page: str) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    for entry in report["layers"]:
        assert entry["reason"] in text
        for candidate in entry["candidates"]:
            assert candidate["kernel"] in text
    assert "expected speed-up" in text and "measured speed-up" in text and "size of weights" in text


def test_a_page_of_what_is_known_without_running(tmp_path: Path) -> None:
    text = page_of(sparsec.analyze(residual(), target=AVX2), "model")
    assert "measured speed-up" not in text and 'id="bars"' in text and 'id="roofline"' in text
    old = {"layers": [layer("old", "csr_spmm", {"csr_spmm": 1.0})], "steps": 3}
    assert 'id="graph"' not in page_of(old, "old") and 'id="roofline"' not in page_of(old, "old")
    assert "<table" in page_of({}, "empty")
    write(tmp_path / "report.html", old, "old")
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    with pytest.raises(ConfigError, match="there is no folder"):
        write(tmp_path / "no" / "report.html", old, "old")


def test_a_page_needs_the_extra() -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from sparsec.explain.html.page import check\n"
        "try: check()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ConfigError") and "sparsec[report]" in result.stdout


#: what the browser is asked: how large what it drew is, and whether a click on a heading sorts
PROBE = """<script>
document.querySelector("#layers th:nth-child(4)").click();
const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
const all = s => [...document.querySelectorAll(s)], rows = "#layers > tbody > tr";
document.title = JSON.stringify({
  rows: all(rows).map(size), whatIf: all("#what-if > tbody > tr").map(size),
  sorted: all(rows + " > td:nth-child(4)").map(e => e.innerText),
  candidates: all("table.candidates tbody tr").length,
  images: all("img").map(e => [e.complete, e.naturalWidth, e.naturalHeight]),
  charts: all("svg").map(e => [e.id, ...size(e)]), boxes: all("#graph rect").map(size),
  bars: all("#bars path").length, colour: getComputedStyle(document.querySelector("#bars text")).fill,
  wide: document.documentElement.scrollWidth,
});
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
@pytest.mark.parametrize("width", [1300, 700])
def test_the_page_renders_in_a_browser(report: dict[str, Any], page: str, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", PROBE))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    [title] = re.findall(r"<title>(.*?)</title>", result.stdout, flags=re.DOTALL)
    seen = json.loads(html.unescape(title))
    count = len(report["layers"])
    assert len(seen["rows"]) == count and all(w > 500 and h > 40 for w, h in seen["rows"])
    assert seen["sorted"] == sorted(seen["sorted"])
    assert len(seen["whatIf"]) == count + 1
    assert seen["candidates"] == sum(len(entry["candidates"]) for entry in report["layers"])
    assert len(seen["images"]) == count and all(done and w > 1 and h > 1 for done, w, h in seen["images"])
    assert sorted(name for name, _, _ in seen["charts"]) == ["bars", "graph", "roofline"]
    assert all(w > 200 and h > 80 for _, w, h in seen["charts"])
    assert seen["bars"] > 2 * count and len(seen["boxes"]) == len(report["graph"])
    assert seen["wide"] <= width
    assert seen["colour"].startswith("rgb")
