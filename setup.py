"""The executor, twice: an extension of Python's limited API (one build for 3.11 and later), a C library."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build import build

CSRC = Path("runtime/csrc")
SOURCES = sorted(str(p) for p in CSRC.glob("*.c") if p.name != "shim.c")
HEADERS = sorted(str(p) for p in CSRC.glob("*.h"))
FLAGS = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"]
LIBRARIES = ["-pthread", "-ldl", "-lm"]


#: What the templates in runtime/cmake become, as CMakeLists.txt installs it; below sparsec/runtime.
CONFIGURED = (
    Path("lib/cmake/sparsec/sparsecConfig.cmake"),
    Path("lib/cmake/sparsec/sparsecConfigVersion.cmake"),
    Path("lib/pkgconfig/sparsec.pc"),
)


def configured(file: Path) -> str:
    """The text of a file made from its template."""
    template = Path("runtime", "cmake", f"{file.name}.in").read_text(encoding="utf-8")
    version = re.search(r'SPARSEC_VERSION "(.*)"', (CSRC / "sparsec.h").read_text(encoding="utf-8"))
    assert version is not None
    prefix = "/".join([".."] * len(file.parent.parts))
    values = {"VERSION": version[1], "PREFIX": prefix, "LIBDIR": "lib", "INCLUDEDIR": "include"}
    return re.sub(r"@(\w+)@", lambda found: values[found[1]], template)


class BuildLibrary(Command):
    """libsparsec, its header, and what CMake and pkg-config need to find them, inside sparsec/runtime."""

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        header, library = self._at("include/sparsec.h"), self._at("lib/libsparsec.so")
        for file in map(Path, self.get_outputs()):
            file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CSRC / header.name, header)
        for file in CONFIGURED:
            self._at(file).write_text(configured(file), encoding="utf-8")
        compiler, flags = (shlex.split(os.environ.get(name, "")) for name in ("CC", "CFLAGS"))
        command = [*(compiler or ["cc"]), *FLAGS, *flags, "-fPIC", "-shared", f"-Wl,-soname,{library.name}"]
        sources = [s for s in SOURCES if not Path(s).name.startswith("python_")]
        subprocess.run([*command, *sources, "-o", str(library), *LIBRARIES], check=True)

    def _at(self, file: str | Path) -> Path:
        assert self.build_lib is not None
        return Path(self.build_lib, "sparsec", "runtime", file)

    def get_outputs(self) -> list[str]:
        return [str(self._at(f)) for f in ("include/sparsec.h", "lib/libsparsec.so", *CONFIGURED)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [*SOURCES, *HEADERS, *map(str, Path("runtime/cmake").glob("*.in"))]


build.sub_commands = [*build.sub_commands, ("build_library", None)]

setup(
    ext_modules=[
        Extension(
            "sparsec.runtime._executor",
            sources=SOURCES,
            depends=HEADERS,
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("SPARSEC_API", "")],
            extra_compile_args=FLAGS,
            extra_link_args=LIBRARIES,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_library": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
