"""Runs of the recurrent kernel: kinds, directions, tails of units and of the batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from kernel_harness import Case

from sparsec.ir.attributes import RecurrentAttrs
from sparsec.ir.graph import Node, Op
from sparsec.ir.types import Type
from sparsec.reference.recurrent import recurrent as reference
from sparsec.targets.kernels import recurrent
from sparsec.targets.target import Target

KINDS = (
    RecurrentAttrs("lstm"),
    RecurrentAttrs("gru"),
    RecurrentAttrs("gru", reset_after=True),
    RecurrentAttrs("rnn"),
)


def recurrent_cases(target: Target) -> list[Case]:
    """Steps, batch, units, backwards, one line of initial state for all, and whether the batch is known."""
    return [
        recurrent_case(attrs, *sizes, target)
        for attrs in KINDS
        for sizes in (
            (3, 7, 37, False, False, False), (2, 1, 32, True, True, True), (1, 4, 1, False, True, False),
            (0, 3, 8, False, False, True),
        )
    ]  # fmt: skip


def recurrent_case(
    attrs: RecurrentAttrs, steps: int, batch: int, hidden: int, reverse: bool, shared: bool, known: bool,
    target: Target,
) -> Case:  # fmt: skip
    """One layer of random weights; its last states go to buffers nobody checks."""
    attrs = RecurrentAttrs(attrs.kind, reverse, attrs.reset_after)
    rng = np.random.default_rng(hidden)
    columns = recurrent.GATES[attrs.kind] * hidden
    x = rng.standard_normal((steps, batch, columns)).astype(np.float32)
    weight = (rng.standard_normal((hidden, columns)) / np.sqrt(hidden)).astype(np.float32)
    states = [rng.standard_normal((1 if shared else batch, hidden)).astype(np.float32)
              for _ in range(2 if attrs.kind == "lstm" else 1)]  # fmt: skip
    biases = [rng.standard_normal(hidden).astype(np.float32)] if attrs.reset_after else []
    y = right_answer(attrs, [x, weight, *states, *biases])[0]
    together = recurrent.sequences_a_tile(batch if known else None, target)
    shape = recurrent.Shape(attrs, hidden, together, (shared,) * len(states))
    missing = recurrent.padded(hidden, target) - hidden
    extra = [np.pad(b, (0, missing)) for b in biases]
    last: list[Any] = [np.full((batch, hidden), np.nan, np.float32) for _ in states]
    return Case(
        f"recurrent {target.name} {attrs} {steps}x{batch}x{hidden} shared {shared}", target,
        ("recurrent", shape, target), partial(recurrent.emit, shape, target),
        (x, recurrent.pack(weight, shape, target), *states, *extra, *last),
        y.shape, -(-batch // together), y, 5e-6, (steps, batch),
        recurrent.scratch_floats(shape, target),
    )  # fmt: skip


def right_answer(attrs: RecurrentAttrs, arrays: list[Any]) -> list[Any]:
    """y and the last states in double precision."""
    shape = (*arrays[0].shape[:2], arrays[1].shape[0])
    node = Node("y", Op.RECURRENT, (), Type(shape), attrs)
    return reference(node, [a.astype(np.float64) for a in arrays])
