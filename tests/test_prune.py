"""Magnitude pruning: what stays, in which patterns, and what texts are refused."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import ConfigError
from sparsec.sparsity.pattern import infer
from sparsec.sparsity.prune import Pruning, largest_blocks, largest_of_groups, pruning_of

RANDOM = np.random.default_rng(5)


def weight(rows: int, columns: int) -> np.ndarray:
    return RANDOM.standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (31, 1), (48, 96), (33, 65)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99])
def test_the_smallest_go(shape: tuple[int, int], share: float) -> None:
    w = weight(*shape)
    mask = Pruning(share).mask(w)
    assert mask.shape == w.shape and mask.dtype == bool
    assert (~mask).sum() == round(share * w.size)
    if mask.any() and not mask.all():
        assert np.abs(w)[mask].min() >= np.abs(w)[~mask].max()


@pytest.mark.parametrize("block", [(16, 1), (4, 1), (4, 4), (1, 8)])
@pytest.mark.parametrize("shape", [(48, 96), (50, 97), (3, 5)])
def test_blocks_go_whole_also_at_ragged_ends(block: tuple[int, int], shape: tuple[int, int]) -> None:
    w = weight(*shape)
    mask = Pruning(0.75, block).mask(w)
    high, wide = block
    means = []
    for row in range(0, shape[0], high):
        for column in range(0, shape[1], wide):
            part = np.s_[row : row + high, column : column + wide]
            assert mask[part].all() or not mask[part].any()
            means.append((np.abs(w[part]).mean(), mask[part].any()))
    kept, gone = ([m for m, stays in means if stays is np.bool_(one)] for one in (True, False))
    assert len(gone) == round(0.75 * len(means))
    assert not kept or not gone or min(kept) >= max(gone) - 1e-6


@pytest.mark.parametrize("columns", [8, 9, 11, 3])
def test_groups_keep_the_largest(columns: int) -> None:
    w = weight(5, columns)
    mask = Pruning(kept=(2, 4)).mask(w)
    for start in range(0, columns, 4):
        part, stays = np.abs(w[:, start : start + 4]), mask[:, start : start + 4]
        assert (stays.sum(axis=1) == min(2, part.shape[1])).all()
        assert all(p[s].min() >= p[~s].max(initial=0) for p, s in zip(part, stays, strict=True))


def test_channels_go_whole() -> None:
    w = weight(40, 30)
    mask = Pruning(0.25, channels=True).mask(w)
    assert sorted(mask.all(axis=1)) == sorted(mask.any(axis=1)) == [False] * 10 + [True] * 30
    sums = np.abs(w).sum(axis=1)
    assert sums[mask[:, 0]].min() >= sums[~mask[:, 0]].max()


def test_nothing_comes_back_to_life() -> None:
    w = weight(64, 64) * (RANDOM.random((64, 64)) < 0.05)
    for pruning in (Pruning(0.5), Pruning(0.5, (16, 1)), Pruning(kept=(2, 4)), Pruning(0.5, channels=True)):
        assert not (pruning.mask(w) & (w == 0)).any()
    assert (largest_blocks(w, 0.5, (16, 1)).mean()) == 0.5  # blocks themselves are full
    assert Pruning(0.5).mask(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (("90%", None), "unstructured"),
        (("0.9", "unstructured"), "unstructured"),
        (("90 %", "16x1"), "blocks"),
        (("80%", "4x1"), "blocks"),
        ((None, "2:4"), "nm"),
        (("50%", "2:4"), "nm"),
        (("50%", "channels"), "dead"),
    ],
)
def test_words_make_the_pattern_they_say(texts: tuple[str | None, str | None], kind: str) -> None:
    w = weight(128, 256)
    found = infer(w * pruning_of(*texts).mask(w))
    assert found.kind == kind
    assert found.sparsity == pytest.approx(pruning_of(*texts).share, abs=0.01)


@pytest.mark.parametrize(
    ("share", "pattern", "text"),
    [
        ("100%", None, "below 100%"),
        ("90", None, "as 90% or 0.9"),
        ("-1%", None, "below 100%"),
        ("much", None, "below 100%"),
        ("90%", "diagonal", "unstructured, blocks as 16x1"),
        ("90%", "16x", "blocks as 16x1"),
        ("90%", "0x4", "at least one row"),
        (None, "16x1", "--prune 90%"),
        (None, "channels", "--prune 90%"),
        ("90%", "2:4", "leaves 50 % zeros"),
        (None, "5:4", "0 < N <= M"),
        (None, "0:4", "0 < N <= M"),
    ],
)
def test_words_that_mean_nothing_are_refused(share: str | None, pattern: str | None, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pruning_of(share, pattern)
    assert text in str(refused.value) and str(refused.value).startswith("--p")


def test_prunings_say_what_they_are() -> None:
    said = [
        str(pruning_of(*texts))
        for texts in (("90%", None), ("90%", "16x1"), (None, "2:4"), ("5%", "channels"))
    ]
    assert said == [
        "90 % zeros, unstructured",
        "90 % zeros in blocks of 16x1",
        "2:4 along inputs",
        "5 % zeros in whole channels",
    ]


def test_groups_of_a_matrix_that_is_no_multiple() -> None:
    assert largest_of_groups(np.array([[1.0, 3.0, 2.0, 0.5, 7.0]]), 2, 4).tolist() == [
        [False, True, True, False, True]
    ]
