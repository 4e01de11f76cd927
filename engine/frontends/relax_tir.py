"""TIR functions made by Relax as the attributes of tir nodes."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import tvm

from sparsec.errors import Unsupported
from sparsec.ir.attributes import TirAttrs
from sparsec.ir.types import Type

#: C functions a TIR function may call: libm's, which every target provides
_LIBM = (
    "acosf acoshf asinf asinhf atan2f atanf atanhf ceilf cosf coshf erff exp2f expf floorf fmodf log10f "
    "log1pf log2f logf nearbyintf powf rintf roundf sinf sinhf sqrtf tanf tanhf truncf"
)
_CALLS = re.compile(r"T\.(\w*call_(?:c?packed|extern|pure_extern)\w*)\(([^)]*)")


def tir_attrs(source: str, function: Any, outputs: tuple[Type, ...]) -> TirAttrs:
    """Wrap a PrimFunc under a name derived from its text, so that equal functions share one.

    Raises:
        Unsupported: the function calls into TVM's runtime or an unknown C function.
    """
    bare = function.with_attr("global_symbol", "main")
    script = str(bare.script(show_meta=True))
    _refuse_calls(source, script)
    digest = hashlib.sha256(script.encode()).hexdigest()[:10]
    name = f"{_short(source)}_{digest}"
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    return TirAttrs(source, name, str(tvm.ir.save_json(module)), outputs)


def _short(source: str) -> str:
    return re.sub(r"\W", "_", source.removeprefix("relax.").removeprefix("nn."))


def _refuse_calls(source: str, script: str) -> None:
    for kind, operands in _CALLS.findall(script):
        names = re.findall(r'"([\w.]+)"', operands)
        callee = next((n for n in names if not re.fullmatch(r"u?int\d+|float\d+|handle|void|bool", n)), "?")
        if "packed" in kind or callee not in _LIBM.split():
            raise Unsupported(
                f"{source} needs {callee} of TVM's runtime, which compiled programs do not carry"
            )
