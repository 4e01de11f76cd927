"""What the machine can do at most: float32 multiply-adds, and bytes read from where they lie.

    python benchmarks/limits.py --threads 2

Two of the probes in ``sparsec.targets.limits``, on the given number of threads: multiply-adds that
need nothing but registers, and sums over arrays of growing size.  The shortest call counts,
since nothing can make a machine faster than it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsec.bench.measure import pin_to_one_core
from sparsec.targets.limits import best_rates, multiply_adds, reads
from sparsec.targets.named import native

#: bytes of the arrays that are read
SIZES = tuple((256 << 10) << shift for shift in range(0, 12, 2))
#: how long each is tried
SECONDS = 0.3


@dataclass(frozen=True)
class Limits:
    """GFLOP/s of multiply-adds, and GB/s of reads by the bytes that are read over and over."""

    fma_gflops: float
    read_gbs: Mapping[int, float]

    def gbs(self, nbytes: int) -> float:
        """What an array of so many bytes can be read at."""
        return self.read_gbs[min((s for s in self.read_gbs if s >= nbytes), default=max(self.read_gbs))]


def measured(threads: int, sizes: Sequence[int] = SIZES) -> Limits:
    """This machine's, on so many threads."""
    target = native()
    probes = {"": multiply_adds(target, tiles=8 * threads, threads=threads)}
    probes |= {str(size): reads(target, size, threads=threads) for size in sizes}
    rates = best_rates(probes, SECONDS * len(probes))
    read_gbs = {size: round(1e-9 * rates[str(size)], 2) for size in sizes}
    return Limits(round(1e-9 * rates[""], 2), read_gbs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads: int = parser.parse_args().threads
    if threads == 1:
        pin_to_one_core()
    found = measured(threads)
    print(json.dumps({"fma_gflops": found.fma_gflops, "read_gbs": dict(found.read_gbs)}))


if __name__ == "__main__":
    main()
