"""attention_shape: what both attention kernels are generated for, and where their operands are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsec.targets.cuda import expressions
from sparsec.targets.cuda.builder import Kernel, int64, integer
from sparsec.targets.cuda.tir import T

#: what the largest score so far starts as: a key that is masked by minus infinity weighs nothing beside it
LOWEST = -3.4028234663852886e38
#: log2(e): powers of two are what the GPU computes
LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Shape:
    """Features of a head, and what there is beside them.

    ``mask`` says for batch, heads and queries whether the mask has entries of its own; ``even`` that the
    number of keys is even, so that two of its entries can be read at once; ``dtypes`` are of the pointers.
    """

    heads: int
    depth: int
    value_depth: int
    scale: float
    mask: tuple[bool, bool, bool] | None
    dtypes: tuple[str, ...]
    even: bool = False

    @property
    def pointers(self) -> list[tuple[str, str]]:
        """The kernel's pointers."""
        names = ["q", "k", "v", *(["mask"] if self.mask else []), "y"]
        return list(zip(names, self.dtypes, strict=True))

    @property
    def factors(self) -> tuple[float, float]:
        """What multiplies the products before the softmax, and what the differences inside its powers of two.

        Without a mask, and where the order of the scores is that of the products, there is nothing to
        do before: one multiply-add does both then.
        """
        scale = self.scale * LOG2E
        return (1.0, scale) if self.mask is None and scale > 0 else (scale, 1.0)


#: the sizes of both kernels: queries and keys of a batch's element, blocks of queries
SIZES = ("queries", "keys", "blocks")


@dataclass(frozen=True, slots=True)
class Job:
    """What a block is about: the first query, the head, the element of the batch; lengths as int32."""

    first: Any
    head: Any
    batch: Any
    queries: Any
    keys: Any

    @staticmethod
    def of(k: Kernel, shape: Shape, block: int) -> Job:
        """The job of ``k.block``, of blocks of so many queries."""
        line = k.bind(T.truncdiv(k.block, k.sizes["blocks"]))
        first = k.bind(T.cast(T.truncmod(k.block, k.sizes["blocks"]), "int32") * block)
        heads = integer(shape.heads)
        head, batch = k.bind(T.truncmod(line, heads)), k.bind(T.truncdiv(line, heads))
        queries, keys = (k.bind(T.cast(k.sizes[name], "int32")) for name in SIZES[:2])
        return Job(first, head, batch, queries, keys)

    def start(self, k: Kernel, length: str, heads: int, width: int) -> Any:
        """The element that an operand's rows of the head begin with."""
        return k.bind(self.batch * k.sizes[length] * (heads * width) + self.head * width)

    def mask_start(self, k: Kernel, shape: Shape, query: Any) -> Any:
        """The element that the mask's row of a query begins with."""
        own_batch, own_head, own_query = shape.mask or (False, False, False)
        page: Any = self.batch if own_batch else integer(0)
        if own_head:
            page = page * shape.heads + self.head
        if own_query:
            page = page * k.sizes["queries"] + int64(T.min(query, self.queries - 1))
        return k.bind(page * k.sizes["keys"])


def mask_terms(k: Kernel, shape: Shape, job: Job, start: Any, key: Any, count: int) -> list[Any]:
    """What the mask adds to the scores of ``key`` and, with a ``count`` of 2, of the next, in powers of two.

    Of two keys the first is even.  Where there is no such key, the result is some number of the mask.
    """
    if shape.even and count == 2:
        found = expressions.load(k, k["mask"], start + int64(T.min(key, job.keys - 2)), 2)
    else:
        places = [T.min(key + i, job.keys - 1) for i in range(count)]
        found = [expressions.load(k, k["mask"], start + int64(place))[0] for place in places]
    return [k.bind(_term(value, shape.dtypes[3])) for value in found]


def _term(value: Any, dtype: str) -> Any:
    scaled = value * expressions.constant(LOG2E)
    if dtype == "float16":
        return scaled
    # the lowest number must stay one: where it masks every key, all weigh alike
    least = expressions.constant(LOWEST)
    return T.Select(value >= least, T.max(scaled, least), value)
