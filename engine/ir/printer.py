"""Graphs as text that fits an eye: one line per node, the same text for the same graph.

%x: f32[batch, 768] = input()
%w: f32[768, 3072] = const()                          # 90.0 % zero, unstructured
%y: f32[batch, 3072] = matmul(%x, %w) + max(add($0, %b), 0)
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsec.ir.attributes import (
    AttentionAttrs,
    ConcatAttrs,
    ConstAttrs,
    ConvAttrs,
    ElementwiseAttrs,
    ItemAttrs,
    LayerNormAttrs,
    MatmulAttrs,
    PadAttrs,
    PoolAttrs,
    RecurrentAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SliceAttrs,
    SoftmaxAttrs,
    TirAttrs,
    TransposeAttrs,
)
from sparsec.ir.expr import Call, Expr, walk
from sparsec.ir.expr import text as text_of
from sparsec.ir.graph import Choice, Graph, Node

if TYPE_CHECKING:
    from sparsec.ir.attributes import Attrs

_COMMENT_COLUMN = 54
_EXPRESSION_WIDTH = 100


def text(graph: Graph) -> str:
    """The whole graph: a line per node in order, then the outputs; ends with a newline."""
    lines = [line(n) for n in graph.nodes]
    pairs = zip(graph.output_names, graph.outputs, strict=True)
    lines.append("return " + ", ".join(f"{name}=%{value}" for name, value in pairs))
    return "\n".join(lines) + "\n"


def line(node: Node) -> str:
    """One node: ``%name: type = op(arguments, settings) + epilogue   # comment``."""
    fused = isinstance(node.attrs, MatmulAttrs | ConvAttrs) and node.attrs.epilogue is not None
    shown = node.args[:2] if fused else node.args
    inside = [*(f"%{a}" for a in shown), *_settings(node.attrs)]
    code = f"%{node.name}: {node.type} = {node.op}({', '.join(inside)}){_epilogue(node)}"
    comment = _comment(node)
    return f"{code:<{_COMMENT_COLUMN}}# {comment}" if comment else code


def diff(before: Graph, after: Graph) -> str:
    """Unified diff of two graphs' texts, without file headers; empty when they print alike."""
    lines = difflib.unified_diff(text(before).splitlines(), text(after).splitlines(), lineterm="", n=1)
    return "".join(f"{one}\n" for one in list(lines)[2:])


def _settings(attrs: Attrs) -> tuple[str, ...]:
    if isinstance(attrs, AttentionAttrs):
        return (f"heads={attrs.heads}", f"scale={attrs.scale:g}")
    if isinstance(attrs, LayerNormAttrs):
        return (f"epsilon={attrs.epsilon:g}", *(() if attrs.centred else ("root mean square",)))
    if isinstance(attrs, SoftmaxAttrs):
        return (f"axis={attrs.axis}", *(("log",) if attrs.log else ()))
    if isinstance(attrs, ReduceAttrs):
        return (attrs.kind, f"axes={list(attrs.axes)}", *(("keepdims",) if attrs.keepdims else ()))
    if isinstance(attrs, TransposeAttrs):
        return (f"axes={list(attrs.axes)}",)
    if isinstance(attrs, RecurrentAttrs):
        flags = {"reverse": attrs.reverse, "reset_after": attrs.reset_after}
        return (attrs.kind, *(name for name, is_set in flags.items() if is_set))
    if isinstance(attrs, TirAttrs):
        return (attrs.source,)
    if isinstance(attrs, ItemAttrs):
        return (str(attrs.index),)
    if isinstance(attrs, ConvAttrs | PoolAttrs):
        return _window(attrs)
    if isinstance(attrs, MatmulAttrs):
        return _removed(attrs)
    return _moves(attrs)


def _removed(attrs: MatmulAttrs | ConvAttrs) -> tuple[str, ...]:
    gone = len(attrs.removed.outputs), len(attrs.removed.inputs)
    return (f"removed={gone}",) if any(gone) else ()


def _window(attrs: ConvAttrs | PoolAttrs) -> tuple[str, ...]:
    """Kind and kernel of a pool, then what differs from a plain window."""
    top, left, bottom, right = attrs.padding
    padding = f"({top}, {left})" if (top, left) == (bottom, right) else str(attrs.padding)
    found = [attrs.kind, f"kernel={attrs.kernel}"] if isinstance(attrs, PoolAttrs) else []
    found += [f"strides={attrs.strides}"] if attrs.strides != (1, 1) else []
    found += [f"padding={padding}"] if any(attrs.padding) else []
    found += [f"dilation={attrs.dilation}"] if attrs.dilation != (1, 1) else []
    if isinstance(attrs, ConvAttrs):
        found += [f"groups={attrs.groups}"] if attrs.groups != 1 else []
        found += _removed(attrs)
    else:
        found += ["count_padding"] if attrs.count_padding else []
    return tuple(found)


def _moves(attrs: Attrs) -> tuple[str, ...]:
    if isinstance(attrs, ResizeAttrs):
        return (attrs.method, attrs.coordinates, *((attrs.rounding,) if attrs.method == "nearest" else ()))
    if isinstance(attrs, ConcatAttrs):
        return (f"axis={attrs.axis}",)
    if isinstance(attrs, SliceAttrs):
        steps = f"step={list(attrs.step)}"
        return (f"begin={list(attrs.begin)}", *((steps,) if set(attrs.step) != {1} else ()))
    if isinstance(attrs, PadAttrs):
        value = f"value={attrs.value:g}"
        return (f"before={list(attrs.before)}", *((value,) if attrs.value else ()))
    return ()


def _epilogue(node: Node) -> str:
    if isinstance(node.attrs, ElementwiseAttrs):
        return f": {_expression(node.attrs.expr, [f'%{a}' for a in node.args])}"
    if isinstance(node.attrs, MatmulAttrs | ConvAttrs) and node.attrs.epilogue is not None:
        names = ["$0", *(f"%{a}" for a in node.args[2:])]
        return f" + {_expression(node.attrs.epilogue, names)}"
    return ""


def _expression(e: Expr, names: Sequence[str]) -> str:
    """``expr.text`` cut where it would fill the screen; each distinct subtree is spelled once,
    since a tree that shares subtrees can be exponentially long as text."""
    spelled: dict[Expr, str] = {}
    for part in walk(e):
        if isinstance(part, Call):
            whole = f"{part.function}({', '.join(spelled[o] for o in part.operands)})"
        else:
            whole = text_of(part, names)
        fits = len(whole) <= _EXPRESSION_WIDTH
        spelled[part] = whole if fits else whole[: _EXPRESSION_WIDTH - 3] + "..."
    return spelled[e]


def _comment(node: Node) -> str:
    parts = [_choice(c) for c in node.choice]
    if isinstance(node.attrs, ConstAttrs) and node.attrs.pattern is not None:
        parts.insert(0, node.attrs.pattern.describe())
    return "; ".join(parts)


def _choice(choice: Choice) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in choice.config)
    first, last = choice.columns
    everywhere = first == 1 and last is None
    where = "" if everywhere else f" for {first} to {'any' if last is None else last} columns"
    reason = f": {choice.reason}" if choice.reason else ""
    return f"{choice.kernel}({settings}){where}{reason}"
