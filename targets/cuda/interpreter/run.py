"""interpreter: runs a kernel's TIR on NumPy arrays, as the threads of a GPU would, with checks no GPU makes.

Many blocks run at once, all their threads in lockstep, statement by statement; a mask tells who takes part.
TIR is turned into Python functions once (:func:`compiled`), which then run on chunks of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.targets.cuda import instructions as instructions_module
from sparsec.targets.cuda import warpgroup
from sparsec.targets.cuda.instructions import Instruction
from sparsec.targets.cuda.interpreter.expressions import Expressions
from sparsec.targets.cuda.interpreter.machine import Machine
from sparsec.targets.cuda.interpreter.memory import InterpreterError, Memory
from sparsec.targets.cuda.interpreter.statements import Execute, Statements

__all__ = ["InterpreterError", "Resolver", "Simulation", "compiled", "run"]

#: gives the bytes from an address to the end of its allocation
Resolver = Callable[[int], NDArray[np.uint8]]
Argument = Any
#: what the temporaries of a chunk of blocks may take, in bytes, roughly
_CHUNK_BYTES = 64 << 20
#: temporaries of eight bytes alive at a time in one statement
_TEMPORARIES = 12


@dataclass(frozen=True)
class Simulation:
    """A kernel made ready to run; see :func:`run`."""

    name: str
    threads: int
    shared_bytes: int
    pointers: tuple[str, ...]
    sizes: tuple[str, ...]
    #: the slots of the parameters, pointers first, and how many slots there are
    parameters: tuple[int, ...]
    slots: int
    #: bytes of local arrays a thread
    register_bytes: int
    body: Execute

    def run(
        self,
        blocks: int,
        arguments: Sequence[Argument],
        *,
        check: bool = True,
        resolve: Resolver | None = None,
    ) -> None:
        """Run a grid of ``blocks`` blocks; arguments as :func:`run` takes them."""
        if len(arguments) != len(self.parameters):
            raise InterpreterError(
                f"{self.name} takes {len(self.parameters)} arguments, not {len(arguments)}"
            )
        values = [self._bound(i, argument, resolve) for i, argument in enumerate(arguments)]
        chunk = self._chunk()
        with np.errstate(all="ignore"):
            for first in range(0, blocks, chunk):
                count = min(chunk, blocks - first)
                machine = Machine(first, count, self.threads, self.shared_bytes, self.slots, check)
                for slot, value in zip(self.parameters, values, strict=True):
                    machine.slots[slot] = value
                self.body(machine)

    def _bound(self, position: int, argument: Argument, resolve: Resolver | None) -> Any:
        if position >= len(self.pointers):
            return np.full((1, 1), int(argument), np.int64)
        name = self.pointers[position]
        if isinstance(argument, np.ndarray):
            return Memory.of_array(name, argument)
        if resolve is None:
            raise InterpreterError(f"{name}: the address {argument} needs a resolver")
        address = int(argument)
        found = resolve(address) if address else np.zeros(0, np.uint8)
        return Memory.of_array(name, found, address % 16)

    def _chunk(self) -> int:
        block = self.threads * (8 * _TEMPORARIES + self.register_bytes) + 4 * self.shared_bytes
        return max(1, _CHUNK_BYTES // block)


def run(
    function: Any,
    blocks: int,
    arguments: Sequence[Argument],
    *,
    check: bool = True,
    instructions: Iterable[Instruction] = (),
    resolve: Resolver | None = None,
) -> None:
    """Run a kernel made by :func:`sparsec.targets.cuda.builder.device_function`, changing arrays in place.

    Args:
        function: the TIR function.
        blocks: blocks of the grid.
        arguments: for every pointer a contiguous array of one axis (of any type: its bytes are what counts;
            it stands for memory that starts at a multiple of 16), or an address as ``resolve`` knows them;
            then an integer for every size.
        check: look for accesses of shared memory that no barrier orders (slower).
        instructions: those the kernel calls beyond the ones of ``sparsec.targets.cuda.instructions``.
        resolve: gives a view of the bytes from an address to the end of its allocation.

    Raises:
        InterpreterError: an access outside an array or not aligned, a barrier or an instruction of whole
            warps that only some threads reach, accesses of shared memory that no barrier orders, a division
            of integers by zero, or TIR the interpreter does not know.
    """
    compiled(function, instructions).run(blocks, arguments, check=check, resolve=resolve)


def compiled(function: Any, instructions: Iterable[Instruction] = ()) -> Simulation:
    """Make a kernel ready to be run many times."""
    names = {i.name: i for i in (*_of_module(), *instructions)}
    statements = Statements(Expressions(names))
    parameters = [statements.expressions.slot(p) for p in function.params]
    pointers = [p for p in function.params if str(p.ty).startswith("T.handle")]
    body = statements.make(function.body)
    return Simulation(
        str(function.attrs["global_symbol"]),
        int(function.attrs["sparsec_threads"]),
        int(function.attrs["sparsec_shared"]),
        tuple(str(p.name).removesuffix("_pointer") for p in pointers),
        tuple(str(p.name) for p in function.params[len(pointers) :]),
        tuple(parameters),
        len(statements.expressions.slots),
        statements.register_bytes,
        body,
    )


def _of_module() -> Iterable[Instruction]:
    """All instructions that the modules name, on their own or in sequences and mappings."""
    for value in (*vars(instructions_module).values(), *vars(warpgroup).values()):
        several = value.values() if isinstance(value, dict) else value
        for item in several if isinstance(several, Iterable) else (several,):
            if isinstance(item, Instruction):
                yield item
