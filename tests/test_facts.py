"""What is known of a machine: whom it is told from, what ships, what is measured, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sparsec.config import settings
from sparsec.errors import ConfigError
from sparsec.targets import measured, processor
from sparsec.targets.facts import NAMES, SHIPPED, Facts, Known, known_as, of_target, shipped, with_facts
from sparsec.targets.measured import MEASURED, SYSTEM, facts_of, figures, keep, kept, path_of
from sparsec.targets.processor import Processor, cache_sizes, parsed, this_processor
from sparsec.targets.x86 import AVX2, AVX512, level, native

MILAN = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
flags\t\t: fpu fma avx2 bmi2

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
"""
SAPPHIRE = """
processor : 0
vendor_id : GenuineIntel
cpu family : 6
model : 143
model name : Intel(R) Xeon(R) Processor @ 2.00GHz: custom
flags : avx2 avx512f
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""
FOUND = Facts(3.0, 2.0, 32768, 524288, 1 << 25, 60.0, 29.5, 22.5, 6.5, 1.1, 17.5)


def test_cpuinfo_of_one_core_is_read() -> None:
    milan = parsed(MILAN)
    assert milan == Processor("AuthenticAMD", 25, 1, "AMD EPYC", frozenset({"fpu", "fma", "avx2", "bmi2"}))
    sapphire = parsed(SAPPHIRE)
    assert (sapphire.vendor, sapphire.family, sapphire.model) == ("GenuineIntel", 6, 143)
    assert parsed(ARM) == Processor("0x41", 8, 0xD0C, "", frozenset({"fp", "asimd"}))
    assert sapphire.name == "Intel(R) Xeon(R) Processor @ 2.00GHz: custom"


@pytest.mark.parametrize("text", ["", "\n\n", "model : x\nno colon here\ncpu family : -1"])
def test_cpuinfo_that_says_little(text: str) -> None:
    found = parsed(text)
    assert (found.family, found.model, found.flags) == (-1, -1, frozenset())
    assert known_as(found) is None and shipped(found, AVX2) == of_target(AVX2)
    assert found.key.startswith("unknown--1--1-")


def test_cpuinfo_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    assert this_processor() == Processor()
    with pytest.raises(ConfigError, match="needs AVX2"):
        level()


def test_cache_sizes_that_make_no_sense_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "_CACHES", tmp_path)
    kinds = [
        ("Data", "1", "48K"),
        ("Instruction", "1", "32K"),
        ("Unified", "2", "K"),
        ("Unified", "3", "32M"),
    ]
    for i, (kind, at, size) in enumerate(kinds):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", at), ("size", size)):
            (folder / name).write_text(text + "\n")
    (tmp_path / "index9").mkdir()
    assert cache_sizes() == {1: 48 << 10}


def test_a_key_names_the_processor_and_its_flags() -> None:
    milan = parsed(MILAN)
    assert milan.key.startswith("AuthenticAMD-25-1-")
    assert milan.key != replace(milan, flags=milan.flags | {"avx512f"}).key
    assert replace(milan, vendor="../..", name="another").key.startswith("unknown-25-1-")


@pytest.mark.parametrize("known", SHIPPED, ids=lambda known: known.name)
def test_shipped_figures_are_of_this_world(known: Known) -> None:
    facts = known.facts
    assert 2 <= facts.gigahertz <= 6 and facts.fmas in (1, 2)
    assert 16 << 10 <= facts.l1 < facts.l2 < facts.l3 <= 1 << 30
    assert facts.l1_bytes > facts.l2_bytes > facts.l3_bytes > facts.dram_bytes > 2
    assert 0.2 <= facts.gathers <= 4 and 5 <= facts.mispredict <= 40


@pytest.mark.parametrize(
    "vendor, family, model, name",
    [
        ("AuthenticAMD", 0x17, 0x31, "Zen 2"),
        ("AuthenticAMD", 0x17, 0x71, "Zen 2"),
        ("AuthenticAMD", 0x17, 0x01, None),
        ("AuthenticAMD", 25, 1, "Zen 3, server"),
        ("AuthenticAMD", 25, 0x21, "Zen 3, desktop and mobile"),
        ("AuthenticAMD", 25, 0x11, "Zen 4, server"),
        ("AuthenticAMD", 25, 0xA0, "Zen 4, server"),
        ("AuthenticAMD", 25, 0x61, "Zen 4, desktop and mobile"),
        ("AuthenticAMD", 26, 0x02, "Zen 5, full width"),
        ("AuthenticAMD", 26, 0x24, "Zen 5, half width"),
        ("AuthenticAMD", 26, 0x44, "Zen 5, full width"),
        ("GenuineIntel", 6, 85, "Skylake-X, Cascade Lake"),
        ("GenuineIntel", 6, 106, "Ice Lake-SP"),
        ("GenuineIntel", 6, 143, "Sapphire Rapids, Emerald Rapids"),
        ("GenuineIntel", 6, 207, "Sapphire Rapids, Emerald Rapids"),
        ("GenuineIntel", 6, 151, "Alder Lake, Raptor Lake"),
        ("GenuineIntel", 6, 183, "Alder Lake, Raptor Lake"),
        ("GenuineIntel", 6, 60, None),
        ("GenuineIntel", 25, 1, None),
        ("", -1, -1, None),
    ],
)
def test_kinds_go_by_family_and_model(vendor: str, family: int, model: int, name: str | None) -> None:
    known = known_as(Processor(vendor, family, model, "AMD EPYC"))
    assert (known and known.name) == name


def test_no_processor_is_of_two_kinds() -> None:
    seen = [(k.vendor, k.family, m) for k in SHIPPED for models in k.models for m in models]
    assert len(seen) == len(set(seen))


def test_hidden_avx512_halves_what_is_read_and_not_the_multiply_adds() -> None:
    zen4, zen5 = (Processor("AuthenticAMD", family, 0x11) for family in (25, 26))
    assert shipped(zen4, AVX512).fmas == 1 and shipped(zen4, AVX2).fmas == 2
    assert shipped(zen5, AVX512).l1_bytes > 100 > 64 >= shipped(zen5, AVX2).l1_bytes
    assert shipped(zen5, AVX512).gflops(16) == pytest.approx(288)


def test_figures_of_a_target_and_back() -> None:
    assert of_target(with_facts(AVX2, FOUND)) == FOUND and with_facts(AVX2, of_target(AVX2)) == AVX2
    assert set(NAMES) <= {*AVX2.__dataclass_fields__}


def test_zen_3_is_predicted_as_before() -> None:
    """The kernels' predictions were fitted with these."""
    facts = shipped(Processor("AuthenticAMD", 25, 1), AVX2)
    assert (facts.gigahertz, facts.l2_bytes, facts.l3_bytes, facts.dram_bytes) == (3.2, 28, 23, 6)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, whose figures count."""
    monkeypatch.setenv("SPARSEC_FACTS", "measured")
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def test_tests_run_on_what_ships() -> None:
    assert settings().facts == "shipped"
    assert MEASURED not in figures(level()).origins.values()


def test_kept_figures_come_back_and_make_the_native_target(cache: Path) -> None:
    before = native()
    assert kept(before) is None and figures(before).facts == of_target(before)
    assert keep(before, FOUND) and kept(before) == FOUND
    after = native()
    assert (after.gigahertz, after.l2_bytes, after.mispredict) == (3.0, 29.5, 17.5)
    assert (after.name, after.features, after.l2) == (before.name, before.features, before.l2)
    assert facts_of(after, measure=True) == of_target(after), "nothing is measured twice"
    origins = figures(after).origins
    assert set(origins) == set(NAMES) and origins["gathers"] == MEASURED
    assert all(origins[f"l{at}"] == SYSTEM for at in cache_sizes() if at <= 3)


def test_other_widths_and_other_machines_are_kept_apart(cache: Path) -> None:
    assert keep(AVX2, FOUND)
    assert kept(AVX512) is None and path_of(AVX2) != path_of(AVX512)
    strange = replace(AVX2, features=(*AVX2.features, "no_such_flag"))
    assert facts_of(strange, measure=True) == of_target(strange)
    assert set(figures(strange).origins.values()) == {"shipped for x86-64-v3"}


def test_what_ships_is_used_when_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(AVX2, FOUND)
    monkeypatch.setenv("SPARSEC_FACTS", "shipped")
    assert facts_of(AVX2, measure=True).gathers != FOUND.gathers
    monkeypatch.setenv("SPARSEC_FACTS", "guessed")
    with pytest.raises(ConfigError, match="SPARSEC_FACTS='guessed': expected measured or shipped"):
        native()


def damaged() -> dict[str, bytes]:
    """Files that hold no figures."""
    good = asdict(FOUND)

    def file(**changes: object) -> bytes:
        return json.dumps({"facts": good | changes}).encode()

    short = {name: value for name, value in good.items() if name != "l2"}
    return {
        "empty": b"",
        "cut": file()[:-20],
        "binary": b"\xff\xfe\x00\x80",
        "list": b"[1, 2]",
        "no facts": b"{}",
        "facts of another kind": b'{"facts": 3}',
        "one missing": json.dumps({"facts": short}).encode(),
        "one more": file(l4=3),
        "text": file(l2_bytes="28"),
        "true": file(fmas=True),
        "nan": file(gigahertz=float("nan")),
        "infinite": file(gigahertz=float("inf")),
        "zero": file(dram_bytes=0),
        "negative": file(mispredict=-3),
        "huge": file(l3=10**400),
        "half a byte": file(l1=32768.5),
        "deep": b"[" * 100_000,
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_counts_for_nothing(cache: Path, name: str) -> None:
    expected = facts_of(AVX2)
    path = path_of(AVX2)
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(damaged()[name])
    assert kept(AVX2) is None and facts_of(AVX2) == expected
    assert keep(AVX2, FOUND) and kept(AVX2) == FOUND


def test_a_cache_that_cannot_be_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file where a folder should be")
    assert not keep(AVX2, FOUND) and kept(AVX2) is None
    monkeypatch.setenv("SPARSEC_CACHE", "")
    assert path_of(AVX2) is None and not keep(AVX2, FOUND) and kept(AVX2) is None
    assert facts_of(AVX2).l1_bytes > 0


def test_measuring_happens_once_on_request(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(measured, "measure_facts", lambda target, progress: calls.append(target) or FOUND)
    facts_of(AVX2)
    assert not calls
    assert facts_of(AVX2, measure=True) == FOUND == facts_of(AVX2, measure=True) and len(calls) == 1
    monkeypatch.setenv("SPARSEC_CACHE", "")
    assert facts_of(AVX2, measure=True) == FOUND and len(calls) == 2
