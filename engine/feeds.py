"""Arrays of a program's inputs and outputs, from files, at random, and to files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sparsec.errors import InputError
from sparsec.runtime.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsec.runtime import PortInfo

    Array: TypeAlias = NDArray[Any]

#: signs of a size that is computed from names rather than a name itself
_COMPUTED = ("*", " + ", " ceil/ ", " max ")


def read(path: str | os.PathLike[str], ports: Sequence[PortInfo]) -> dict[str, Array]:
    """Inputs from an ``.npz`` whose names are the inputs' names, or one input from an ``.npy``.

    An ``.npz`` with one array fits a program with one input whatever its name.  Floating-point
    arrays of another width are converted to what the input asks for.

    Raises:
        InputError: no such file, not an array file, or names that do not fit.
    """
    arrays = _load(Path(path))
    if len(arrays) == len(ports) == 1:
        arrays = {ports[0].name: next(iter(arrays.values()))}
    names = {port.name for port in ports}
    if arrays.keys() != names:
        raise InputError(
            f"{os.fspath(path)} holds {_listed(arrays)}; the model's inputs are {_listed(names)}"
        )
    return {port.name: converted(arrays[port.name], port) for port in ports}


def _load(path: Path) -> dict[str, Array]:
    try:
        found = np.load(path, allow_pickle=False)
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz or .npy file of plain arrays: {error}") from error


def _listed(names: Sequence[str] | Mapping[str, Any] | set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def converted(array: Array, port: PortInfo) -> Array:
    """A floating-point array in the width the input asks for; any other array as it is."""
    wanted = np.dtype(port.dtype)
    if array.dtype.kind == wanted.kind == "f":
        return array.astype(wanted, copy=False)
    return array


def random(
    ports: Sequence[PortInfo], sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Inputs made up: normal numbers, zeros and ones for other types.

    Args:
        ports: the inputs.
        sizes: lengths of the named dimensions; 1 where not given.
        seed: of the random numbers.

    Raises:
        InputError: a shape is computed from names, so that nothing obvious fits.
    """
    generator = np.random.default_rng(seed)
    known = sizes or {}
    unknown = known.keys() - {size for port in ports for size in port.shape if isinstance(size, str)}
    if unknown:
        raise InputError(f"no input has a dimension called {_listed(unknown)}: {'; '.join(map(str, ports))}")
    return {port.name: _made_up(port, known, generator) for port in ports}


def _made_up(port: PortInfo, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tuple(_length(size, sizes, port) for size in port.shape)
    dtype = np.dtype(port.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _length(size: int | str, sizes: Mapping[str, int], port: PortInfo) -> int:
    if isinstance(size, int):
        return size
    if any(sign in size for sign in _COMPUTED):
        raise InputError(f"input {port} has a computed shape; give its array in an .npz file")
    return sizes.get(size, 1)


def write(path: str | os.PathLike[str], outputs: Mapping[str, Array]) -> None:
    """Write outputs by name as ``.npz``, or the only one as ``.npy``; the file appears whole.

    Raises:
        InputError: several outputs for one ``.npy``.
        ArtifactError: the file cannot be written.
    """
    single = Path(path).suffix == ".npy"
    if single and len(outputs) != 1:
        raise InputError(f"{os.fspath(path)} holds one array, the model has {len(outputs)} outputs; use .npz")
    with replacing(path) as file:
        if single:
            np.save(file, next(iter(outputs.values())))
        else:
            # the names become parameters of savez: one called "file" would clash
            _save_members(file, outputs)


def _save_members(file: Any, outputs: Mapping[str, Array]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
