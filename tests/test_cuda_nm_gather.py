"""nm_gather on CUDA: shared N:M, dense and by sparse instructions, against float64, its packing, its code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_layers import check_layer, layer, run_layer
from sass import TARGETS, needs_sass, sass

from sparsec.sparsity.pattern import infer
from sparsec.targets.cuda import gpus
from sparsec.targets.cuda.kernels import dense_gemm, nm_gather, nm_spmm
from sparsec.targets.cuda.kernels.nm_gather import TILES
from sparsec.targets.cuda.parts.gathered_rows import BANKS, MOST_SHARED, Shape, packed
from sparsec.targets.cuda.parts.shared_inputs import kept
from sparsec.targets.target import Packing, Problem


def shared(rows: int, inner: int, v: int, n: int, m: int, each: int | None = None, seed: int = 0) -> Any:
    """V rows share n of every m inputs, of which each row uses ``each`` (all without)."""
    rng = np.random.default_rng([seed, rows, inner, v, n, m])
    groups, periods = -(-rows // v), -(-inner // m)
    chosen = rng.random((groups, periods, m)).argsort(axis=2) < n
    ranks = np.where(chosen[:, None], rng.random((groups, v, periods, m)), -1)
    mask = (ranks.argsort(axis=3).argsort(axis=3) >= m - (each or n)) & chosen[:, None]
    flat = mask.reshape(groups * v, periods * m)[:rows, :inner]
    return flat * rng.standard_normal((rows, inner))


def configuration(weight: Any, tile: tuple[int, int, int, int, int], inputs: int = 64) -> dict[str, int]:
    """The first that the kernel has for the tile and slab."""
    one = kept(infer(weight))[0]
    features, tokens, high, wide, stages = tile
    return {
        "rows": one.rows, "inputs": inputs, "span": one.span, "tiles": one.tiles(inputs), "pairs": one.pairs,
        "period": one.m, "features": features, "tokens": tokens, "high": high, "wide": wide, "stages": stages,
    }  # fmt: skip


SMALL = TILES[-1]
#: (V, n, m, used by each row) and what the kernel makes of it: (V, kept of every M, M, pairs)
PATTERNS = {
    "32:2:8": ((32, 2, 8, None), (32, 2, 8, 0)), "16:2:8": ((16, 2, 8, None), (16, 2, 8, 0)),
    "64:1:8": ((64, 1, 8, None), (32, 1, 8, 0)), "32:3:8": ((32, 3, 8, None), (32, 3, 8, 0)),
    "32:6:16": ((32, 6, 16, None), (32, 6, 16, 0)), "32:1:4": ((32, 1, 4, None), (32, 1, 4, 0)),
    "32:2:8 of 4": ((32, 4, 8, 2), (32, 4, 8, 1)), "64:2:16 of 4": ((64, 4, 16, 2), (32, 4, 16, 1)),
    "16:2:16 of 4": ((16, 4, 16, 2), (16, 4, 16, 1)), "16:3:16 of 4": ((16, 4, 16, 3), (16, 4, 16, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern(name: str, dtype: str) -> None:
    given, found = PATTERNS[name]
    weight = shared(128, 256, *given)
    best = kept(infer(weight))[0]
    assert (best.rows, best.n, best.m, best.pairs) == found
    inputs = 128 if dtype == "float16" else 64
    check_layer(nm_gather, layer(weight, 37, dtype, "bias_relu"), configuration(weight, SMALL, inputs))


@pytest.mark.parametrize("name", ["32:2:8", "32:2:8 of 4"])
@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t[0]}x{t[1]}-{t[4]}")
def test_every_tile(name: str, tile: tuple[int, int, int, int, int]) -> None:
    # a second tile of each kind that is not full, and K that ends within a slab
    weight = shared(tile[0] + 40, 344, *PATTERNS[name][0])
    one = layer(weight, tile[1] + 5, "float16", "bias_gelu_residual")
    check_layer(nm_gather, one, configuration(weight, tile))


@pytest.mark.parametrize("epilogue", ["none", "bias_relu", "bias_gelu_residual", "scale"])
@pytest.mark.parametrize(("tokens", "rows", "inner"), [(1, 99, 130), (33, 70, 203), (3, 68, 36)])
def test_any_shape(epilogue: str, tokens: int, rows: int, inner: int) -> None:
    weight = shared(rows, inner, 32, 2, 8, seed=tokens)
    check_layer(
        nm_gather, layer(weight, tokens, "float16", epilogue, run_time=True), configuration(weight, SMALL)
    )


@pytest.mark.parametrize("pairs", [False, True])
def test_empty_rows_and_weights_of_zeros(pairs: bool) -> None:
    weight = shared(96, 128, *PATTERNS["32:2:8 of 4" if pairs else "32:2:8"][0])
    config = configuration(weight, SMALL)
    weight[32:64] = 0
    weight[70] = 0
    one = layer(weight, 9, "float16", "bias_relu")
    check_layer(nm_gather, one, config)
    nothing = layer(np.zeros((40, 128)), 9, "float16", "bias_relu")
    made = run_layer(nm_gather, nothing, config)
    np.testing.assert_array_equal(made, np.broadcast_to(np.maximum(nothing.extras[0], 0), made.shape))


@pytest.mark.parametrize(("more", "expected"), [(1, (128, 2)), (24, (128, 3)), (128, (64, 4))])
def test_groups_that_keep_more_than_the_rest_are_right(more: int, expected: tuple[int, int]) -> None:
    weight = shared(256, 512, 32, 1, 8)
    config = configuration(weight, (128, 64, 4, 2, 4), 128)
    assert config["tiles"] == 1
    free = np.flatnonzero(~weight[32:64, 128:256].any(axis=0))[:more]
    weight[32:64, 128 + free] = 1
    one = layer(weight, 9, "float16")
    packing = nm_gather.pack(one.weight, one.problem, config, gpus.SM80)
    found = Shape.of(dict(packing.config))
    # slabs of 128 inputs that keep many do not fit shared memory
    assert (found.inputs, found.tiles) == expected and found.shared_bytes <= MOST_SHARED
    exact, allowed = one.exact
    assert np.all(np.abs(run_layer(nm_gather, one, config).astype(np.float64) - exact) <= allowed)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t[0]}x{t[1]}-{t[4]}")
@pytest.mark.parametrize("pairs", [False, True])
def test_dense_weights_fit_shared_memory_whatever_was_promised(tile: Any, pairs: bool) -> None:
    promised = configuration(shared(128, 128, 32, 4, 8, 2 if pairs else None), tile, 128)
    # every input of a group is kept, two of eight by each row
    weight = (
        np.kron(np.ones((64, 32)), np.roll(np.eye(4, 8), 3, axis=1) + np.eye(4, 8))
        if pairs
        else np.ones((256, 256))
    )
    shape, _ = packed(weight.astype(np.float16), Shape.of(promised))
    assert shape.kept == shape.inputs and shape.shared_bytes <= MOST_SHARED


@pytest.mark.parametrize("v", [16, 32, 64])
def test_columns_of_outputs_that_follow_no_pattern(v: int) -> None:
    rng = np.random.default_rng(v)
    keep = np.repeat(rng.random((320 // v, 1024)) < 0.08, v, axis=0)
    weight = keep * rng.standard_normal(keep.shape)
    pattern = infer(weight)
    one = layer(weight, 7, "bfloat16", "bias_relu")
    best = kept(pattern)[0]
    assert best.rows == min(v, 32) and best.m == 1 and best.work <= 0.25
    config = nm_gather.space(one.problem, pattern, gpus.SM80)[0]
    packing = nm_gather.pack(one.weight, one.problem, config, gpus.SM80)
    # the fullest group and slab is guessed, not known
    assert abs(dict(packing.config)["tiles"] - config["tiles"]) <= 1
    check_layer(nm_gather, one, configuration(weight, SMALL, config["inputs"]))


def test_pairs_refuse_a_third_weight() -> None:
    weight = shared(64, 64, 32, 4, 8, 2)
    config = configuration(weight, SMALL)
    weight[5, :3] = 1
    with pytest.raises(ValueError, match="more than 2 weights in 8 inputs"):
        packed(weight.astype(np.float16), Shape.of(config))


@pytest.mark.parametrize("name", PATTERNS)
def test_packing_stores_what_groups_keep(name: str) -> None:
    (v, n, m, each), _ = PATTERNS[name]
    weight = shared(256, 512, v, n, m, each).astype(np.float16)
    problem = Problem(256, 512, 8, 0, dtype="float16")
    pattern = infer(weight)
    config = nm_gather.space(problem, pattern, gpus.SM90A)[0]
    first, second = (nm_gather.pack(weight, problem, config, target) for target in TARGETS)
    assert dict(first.config) == config and first.config == second.config
    stored = first.arrays["values"]
    assert stored.size == weight.size * (each if each and config["pairs"] else n) / m
    np.testing.assert_array_equal(np.sort(stored[stored != 0]), np.sort(weight[weight != 0]))
    assert first.nbytes == nm_gather.nbytes(problem, pattern, config, gpus.SM80)
    each = each if config["pairs"] else None
    # pairs take an eighth more, or a quarter for 16 rows; the list of inputs is small beside its rows
    assert first.nbytes < (1.4 if each else 1.07) * (each or n) / m * weight.nbytes


def test_small_weights_are_not_padded_beyond_their_size() -> None:
    weight = shared(72, 128, 32, 2, 8)
    problem = Problem(72, 128, 4096, 0, dtype="float16")
    pattern = infer(weight)
    configs = nm_gather.space(problem, pattern, gpus.SM80)
    assert configs
    for config in configs:
        made = nm_gather.pack(weight.astype(np.float16), problem, config, gpus.SM80)
        assert made.nbytes == nm_gather.nbytes(problem, pattern, config, gpus.SM80) < 72 * 128 * 2


def test_lines_that_are_read_together_lie_in_different_banks() -> None:
    weight = shared(256, 1024, 32, 2, 8).astype(np.float16)
    _, arrays = packed(weight, Shape.of(configuration(weight, SMALL)))
    eights = arrays["columns"].reshape(-1, 8) % BANKS
    clashes = np.array([np.bincount(row, minlength=BANKS).max() for row in eights])
    whole = arrays["columns"].reshape(-1, 16) % BANKS
    least = np.array([-(-np.bincount(row, minlength=BANKS).max() // 2) for row in whole])
    np.testing.assert_array_equal(clashes.reshape(-1, 2).max(axis=1), least)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [((1, 2, 8, None), False), ((1, 4, 16, None), False), ((8, 2, 8, None), True), ((8, 3, 8, None), False),
     ((16, 4, 8, 3), True), ((32, 5, 8, 3), False)],
)  # fmt: skip
def test_accepts_what_rows_share(pattern: tuple[int, int, int, int | None], accepted: bool) -> None:
    found = infer(shared(256, 512, *pattern))
    assert nm_gather.accepts(Problem(256, 512, 8, 0, dtype="float16"), found, gpus.SM80) is accepted
    assert not nm_gather.accepts(Problem(256, 512, 8, 0), found, gpus.SM80)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
def test_predictions_prefer_what_suits(target: Any) -> None:
    problem = Problem(2048, 2048, 4096, 0, dtype="float16")

    def cycles(kernel: Any, weight: Any) -> float:
        pattern = infer(np.tile(weight, (4, 4)))
        assert kernel.accepts(problem, pattern, target)
        return min(
            kernel.predict(problem, pattern, c, target) for c in kernel.space(problem, pattern, target)
        )

    eighth, quarter, half = (shared(512, 512, 32, n, 8) for n in (1, 2, 4))
    assert cycles(nm_gather, eighth) < cycles(nm_gather, quarter) < cycles(nm_gather, half)
    assert cycles(nm_gather, eighth) < 0.7 * cycles(dense_gemm, eighth)
    assert cycles(nm_gather, quarter) < 0.95 * cycles(dense_gemm, quarter)
    # what is 2:4 anyway is no faster gathered
    assert cycles(nm_spmm, shared(512, 512, 32, 2, 4)) < cycles(nm_gather, shared(512, 512, 32, 2, 4))


@needs_sass
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: str(t.name))
@pytest.mark.parametrize("name", ["32:2:8", "32:2:8 of 4"])
def test_code(target: Any, name: str) -> None:
    weight = shared(256, 512, *PATTERNS[name][0])
    problem = Problem(4096, 4096, None, 0, dtype="float16")
    config = configuration(weight, TILES[0])
    function = nm_gather.emit(problem, Packing({}, 0, tuple(sorted(config.items()))), target, "gather")
    code = sass(function, target)
    assert code.local_accesses == 0
    assert code.registers <= 255
    # 32 x 128 of a warp
    assert code.count(r"HMMA\.SP\.16832\.F32" if config["pairs"] else r"HMMA\.16816\.F32") == 32
    # both turn the first slab before the loop, and the next one in it
    turned = 64 // 8 * (128 // 32) // 8
    assert code.count(r"LDSM\.16\.MT88\.4") == 2 * turned + 128 // (8 if config["pairs"] else 16)
    assert code.count(r"LDGSTS\.E\.BYPASS\.128") > 0 and code.count(r"LDS\.128") >= 2
    assert code.count(r"STG\.E\.128") >= 1 and code.count(r"STG\.E(\.U16)?$") == 0
