"""PyTorch -> our graph: torch.export, then TVM's Relax importer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import tvm
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from sparsec.errors import ModelError, Unsupported
from sparsec.frontends.from_relax import Imported, from_relax
from sparsec.frontends.names import clean_symbol
from sparsec.frontends.relax_passes import simplify_relax
from sparsec.frontends.relax_refusals import unsupported
from sparsec.frontends.torch_operators import CONVERTERS
from sparsec.frontends.torch_prepare import evaluating, exportable
from sparsec.frontends.torch_resampling import RESAMPLING
from sparsec.ir.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]


def from_torch(
    module: nn.Module,
    example_inputs: tuple[Any, ...],
    dynamic_shapes: Any = None,
    *,
    strict: bool = False,
) -> Graph:
    """Import a module by ``torch.export`` in evaluation mode; the module itself stays as it is.

    Args:
        module: weights pruned by ``torch.nn.utils.prune``, parametrised or sparse are baked in a copy.
        example_inputs: positional inputs of the right shapes and dtypes.
        dynamic_shapes: as ``torch.export.export`` takes it; the names of ``torch.export.Dim`` are kept.
        strict: passed on to ``torch.export.export``.

    Returns:
        A verified graph; inputs have the names of ``forward``'s arguments, weights their parameters'.

    Raises:
        ModelError: torch cannot export the module.
        Unsupported: operators that cannot be compiled, all of them in one error.
    """
    if not isinstance(example_inputs, tuple):
        example_inputs = (example_inputs,)
    plain = exportable(module)
    with evaluating(plain), torch.no_grad():
        try:
            exported = torch.export.export(
                plain, example_inputs, dynamic_shapes=dynamic_shapes, strict=strict
            )
        except Exception as failure:
            first = str(failure).strip().splitlines()[:1] or [type(failure).__name__]
            raise ModelError(f"torch.export cannot trace {type(module).__name__}: {first[0]}") from failure
        return from_exported(exported, _dim_names(dynamic_shapes))


def from_exported(exported: ExportedProgram, names: Sequence[Mapping[int, str]] = ()) -> Graph:
    """Import an exported program; ``names`` optionally names symbolic axes, one mapping per input.

    Raises:
        ModelError: the program is not one TVM's importer can read.
        Unsupported: operators that cannot be compiled, all of them in one error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = exported.run_decompositions(_decompositions())
        importer = _Importer()
        importer.refuse_unknown(program.graph.nodes)
        module = importer.run(program)
    tensors = {**program.state_dict, **dict(program.named_parameters())}
    weights = {
        spec.arg.name: (str(spec.target), _array(tensors[spec.target]))
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.PARAMETER
    }
    outputs = _output_names(program)
    return from_relax(
        Imported(
            simplify_relax(module),
            {name: array for name, (_, array) in weights.items()},
            outputs,
            importer.origins(program.graph.nodes),
            {name: target for name, (target, _) in weights.items()},
            _size_names(module["main"].params, names),
        )
    )


def _decompositions() -> Any:
    """torch's table without the operators whose decomposition hides a matrix product or a resize."""
    table = torch.export.default_decompositions()
    aten = torch.ops.aten
    products = (aten.linear.default, aten.matmul.default, aten.scaled_dot_product_attention.default)
    for kept in (*products, *RESAMPLING):
        table.pop(kept, None)
    return table


class _Importer(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's importer; names the node that fails and copies no weights."""

    convert_map: dict[str, Any]
    #: TVM's own converters, which ours may fall back on
    theirs: dict[str, Any]

    @staticmethod
    def _convert_pytorch_tensor_to_tvm(tensor_value: torch.Tensor) -> Any:
        data = tensor_value.detach().cpu().contiguous()
        # TVM takes aligned memory only, which a part of another tensor may not be; a copy is aligned
        return tvm.runtime.from_dlpack(data.clone() if data.data_ptr() % 64 else data)

    def refuse_unknown(self, nodes: Iterable[Any]) -> None:
        """Raise one error for every function TVM's importer does not know."""
        known = self.convert_map.keys() | CONVERTERS.keys()
        calls = [n for n in nodes if n.op == "call_function" and n.target.__name__ not in known]
        if calls:
            reason = "TVM's importer does not know it"
            raise unsupported([(n.target.__name__, _place(n), reason) for n in calls])

    def run(self, program: ExportedProgram) -> Any:
        """The Relax module, parameters as inputs."""
        own = {name: partial(convert, self) for name, convert in CONVERTERS.items()}
        self.theirs = self.convert_map
        table = {**self.theirs, **own}
        self.convert_map = {name: _guarded(name, convert) for name, convert in table.items()}
        try:
            return self.from_exported_program(program, True, True, False, None)
        except _NodeFailed as failed:
            raise unsupported([failed.failure]) from failed
        except Exception as failure:
            raise ModelError(f"TVM's importer cannot read the exported program: {failure}") from failure

    def origins(self, nodes: Iterable[Any]) -> dict[str, tuple[str, str]]:
        """(function, place in the module) by Relax variable."""
        found: dict[str, tuple[str, str]] = {}
        for node in nodes:
            made = self.env.get(node) if node.op == "call_function" else None
            if isinstance(made, relax.Var):
                found[str(made.name)] = (node.target.__name__, _place(node))
        return found


class _NodeFailed(Exception):
    """TVM's importer refused one node."""

    def __init__(self, function: str, node: Any, failure: Exception) -> None:
        super().__init__(str(failure))
        text = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
        refused = f"TVM's importer refuses it here: {text[:200]}"
        self.failure = (function, _place(node), text if isinstance(failure, Unsupported) else refused)


def _guarded(name: str, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def guarded(node: Any) -> Any:
        try:
            return _checked(node, convert(node))
        except _NodeFailed:
            raise
        except Exception as failure:
            raise _NodeFailed(name, node, failure) from failure

    return guarded


def _checked(node: Any, value: Any) -> Any:
    """The value, if it has the shape and the kind of number torch says.

    Raises:
        Unsupported: TVM's importer made something else.
    """
    wanted, made = node.meta.get("val"), getattr(value, "ty", None)
    if not isinstance(wanted, torch.Tensor) or not isinstance(made, relax.TensorType):
        return value
    kind = str(made.dtype.dtype)
    if wanted.dtype.is_floating_point != kind.startswith(("float", "bfloat")):
        raise Unsupported(f"TVM's importer makes {kind} where torch has {wanted.dtype}")
    if made.shape is not None and not _agree(made.shape.values, wanted.shape):
        raise Unsupported(
            f"TVM's importer makes the shape {list(made.shape.values)} where torch has {list(wanted.shape)}"
        )
    return value


def _agree(made: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether the sizes that both know are the same."""
    known = [(int(m.value), w) for m, w in zip(made, wanted, strict=False) if hasattr(m, "value")]
    return len(made) == len(wanted) and all(m == w for m, w in known if isinstance(w, int))


def _place(node: Any) -> str:
    """The submodule a node came from, and its name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return f"{path}/{node.name}" if path else str(node.name)


def _array(tensor: torch.Tensor) -> Array:
    found: Array = tensor.detach().cpu().to_dense().contiguous().numpy()
    return found


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    count = len(program.graph_signature.user_outputs)
    return ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def _dim_names(dynamic_shapes: Any) -> list[dict[int, str]]:
    """Axis names per input out of what ``torch.export.export`` was given."""
    entries = dynamic_shapes.values() if isinstance(dynamic_shapes, Mapping) else dynamic_shapes or ()
    found: list[dict[int, str]] = []
    for entry in entries:
        axes = entry.items() if isinstance(entry, Mapping) else enumerate(entry or ())
        found.append({i: d.__name__ for i, d in axes if isinstance(d, torch.export.Dim)})
    return found


def _size_names(params: Sequence[Any], names: Sequence[Mapping[int, str]]) -> dict[str, str]:
    """The user's name for each of torch's symbols."""
    found: dict[str, str] = {}
    for param, axes in zip(params, names, strict=False):
        for axis, name in axes.items():
            size = param.ty.shape.values[axis]
            if isinstance(size, tirx.Var):
                found[clean_symbol(str(size.name))] = clean_symbol(name)
    return found
