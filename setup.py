"""The executor as an extension of Python's limited API: one build serves Python 3.11 and later."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(p) for p in Path("runtime/csrc").glob("*.c") if p.name != "shim.c")

setup(
    ext_modules=[
        Extension(
            "sparsec.runtime._executor",
            sources=SOURCES,
            depends=sorted(str(p) for p in Path("runtime/csrc").glob("*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
            extra_link_args=["-pthread", "-ldl"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
