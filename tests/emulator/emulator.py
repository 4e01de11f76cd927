# SPDX-License-Identifier: Apache-2.0
"""Run a Linux program on an emulated processor that has AVX-512.

Tests of generated AVX-512 code need the instructions executed, and many
machines do not have them. Bochs emulates them, but only a whole machine, so
this module boots a Linux kernel in Bochs whose only process runs the program:

* ``reset.S`` is the machine's firmware: it starts the uncompressed kernel;
* ``init.c`` runs the program and writes its output to a raw disk;
* the files a program needs travel in the initramfs.

The emulated processor is Cannon Lake: AVX-512 F, CD, BW, DQ, VL, IFMA and
VBMI (no VNNI, no BF16); it takes gathers and scatters indexed by zmm16 to
zmm31 for no instruction. A boot with an empty program takes seven to ten seconds,
at 30 to 45 million emulated instructions a second; timings taken inside the
emulator say nothing about a real processor.

``python tests/emulator/emulator.py`` downloads the kernel (Debian's cloud
kernel, through apt) into the cache; nothing of it is installed.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PACKAGES = "bochs bochs-term gcc libc6-dev"
_KERNEL_PACKAGE = "linux-image-cloud-amd64"
_CPU_MODEL = "corei3_cnl"

# The memory image's layout, shared with reset.S.
_IMAGE = 0x00FE0000
_KERNEL = 0x01000000
_MEMORY = 256 << 20

# Emulated instructions per emulated second. Low, so that the kernel's waits
# are short; lower still, and timer interrupts take over.
_INSTRUCTIONS_PER_SECOND = 8_000_000

# The output disk: 16 heads of 63 sectors of 512 bytes.
_CYLINDERS = 128
_DISK_BYTES = _CYLINDERS * 16 * 63 * 512
_SECTOR = 512
_HEADER = struct.Struct("<8sIIQQ")
_MAGIC = b"SPARSEC\0"

_COMMAND_LINE = (
    "console=ttyS0,115200 quiet panic=-1 reboot=triple "
    # No firmware tables, no second processor, no PCI devices to look for.
    "acpi=off noapic nolapic nosmp pci=off "
    "nokaslr mitigations=off tsc=reliable lpj=4000000 random.trust_cpu=on "
    # Self-tests, and tables for tracing that take seconds to build.
    "cryptomgr.notests audit=0 apparmor=0 "
    "initcall_blacklist=ftrace_check_for_weak_functions,trace_eval_init,init_kprobes "
    # XSAVEC, XSAVES and PKU, by number: Bochs 2.7 reports sizes for these that
    # the kernel rejects, and then it would do without AVX altogether.
    "clearcpuid=321,323,515"
)


class EmulatorError(RuntimeError):
    """The emulated machine, or the program in it, did not finish as it should."""


def available() -> str | None:
    """Say in one sentence what is missing, or None when programs can be run."""
    missing = [tool for tool in ("bochs", "gcc", "ld") if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}: install the Debian packages {_PACKAGES}"
    if not glob.glob("/usr/lib/*/bochs/plugins/libbx_term_gui.so"):
        return "no terminal display for Bochs: install the Debian package bochs-term"
    if not _has_cpu_model():
        return f"this Bochs does not emulate {_CPU_MODEL}: install Debian's package bochs"
    if _find_kernel() is None:
        return (
            "no Linux kernel to boot: run `python tests/emulator/emulator.py` to download "
            f"the Debian package {_KERNEL_PACKAGE}, or set SPARSEC_EMULATOR_KERNEL"
        )
    return None


def run(program: Path, files: Mapping[str, Path | bytes], timeout: float = 300) -> bytes:
    """Run the executable `program`; return what it wrote to stdout.

    `files` are placed in the program's working directory, which is ``/``; a
    name may contain directories. Unless the program is static they must hold
    its loader and libraries. Raises EmulatorError, with the program's
    stderr or the kernel's console, when the program fails or dies, or when the
    machine is not done after `timeout` seconds.
    """
    reason = available()
    if reason is not None:
        raise EmulatorError(reason)
    contents = {name: _content(value) for name, value in files.items()}
    contents["program"] = program.read_bytes()
    contents["init"] = _init_program().read_bytes()
    with tempfile.TemporaryDirectory(prefix="sparsec-emulator-") as name:
        directory = Path(name)
        _write_machine(directory, _initramfs(contents))
        _boot(directory, timeout)
        return _read_output(directory)


def fetch_kernel() -> Path:
    """Download Debian's cloud kernel through apt and keep it in the cache."""
    depends = _output("apt-cache", "depends", _KERNEL_PACKAGE)
    package = next(line.split()[1] for line in depends.splitlines() if line.strip().startswith("Depends:"))
    with tempfile.TemporaryDirectory(prefix="sparsec-kernel-") as name:
        _output("apt-get", "download", package, cwd=name)
        archive = next(Path(name).glob("*.deb"))
        _output("dpkg-deb", "--extract", str(archive), name)
        kernel = next(Path(name, "boot").glob("vmlinuz-*"))
        return _cached("vmlinuz", kernel.read_bytes)


def _output(*command: str, cwd: str | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def _content(value: Path | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.read_bytes()


# What is built once and kept.


def _cache_directory() -> Path:
    chosen = os.environ.get("SPARSEC_EMULATOR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparsec-emulator"


def _cached(name: str, build: Callable[[], bytes]) -> Path:
    """Return the cached file `name`, building it first when it is not there."""
    path = _cache_directory() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = build()
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)  # other processes see all of it or nothing
    return path


def _key(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()[:16]


def _has_cpu_model() -> bool:
    result = subprocess.run(
        ("bochs", "--help", "cpu"),
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return _CPU_MODEL in (result.stdout + result.stderr).split()


def _find_kernel() -> Path | None:
    chosen = os.environ.get("SPARSEC_EMULATOR_KERNEL")
    if chosen:
        return Path(chosen) if os.access(chosen, os.R_OK) else None
    kept = _cache_directory() / "vmlinuz"
    installed = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), reverse=True)
    return next((path for path in (kept, *installed) if os.access(path, os.R_OK)), None)


def _init_program() -> Path:
    source = _HERE / "init.c"
    key = _key(source.read_bytes())
    return _cached(f"init-{key}", lambda: _compile(source, "-O2", "-static"))


def _firmware() -> Path:
    source = _HERE / "reset.S"
    key = _key(source.read_bytes(), str(_MEMORY))
    flags = (
        f"-DMEMORY={_MEMORY:#x}",
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0,--oformat=binary,-e,0,--build-id=none",
    )
    return _cached(f"reset-{key}.rom", lambda: _compile(source, *flags))


def _compile(source: Path, *flags: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sparsec-compile-") as name:
        target = Path(name) / "out"
        subprocess.run(("gcc", *flags, "-o", str(target), str(source)), check=True)
        return target.read_bytes()


# The kernel, without its boot code and decompressor.


def _kernel_image(kernel: bytes) -> bytes:
    """Return memory from the address _KERNEL on as the kernel expects it."""
    key = _key(kernel)
    return _cached(f"kernel-{key}.img", lambda: _flatten(_unpack(kernel))).read_bytes()


def _unpack(kernel: bytes) -> bytes:
    """Return the ELF file inside a bzImage (Linux x86 boot protocol, 2.08 on)."""
    if kernel[0x202:0x206] != b"HdrS":
        raise EmulatorError("the kernel file is not an x86 bzImage")
    offset, size = struct.unpack_from("<II", kernel, 0x248)
    start = (kernel[0x1F1] + 1) * 512 + offset
    payload = kernel[start : start + size]
    for magic, decompress in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            return decompress(payload)
    raise EmulatorError(f"the kernel's compression ({payload[:4].hex()}) is not known here")


def _unpack_lz4(payload: bytes) -> bytes:
    """Decompress LZ4's legacy frame: blocks of 8 MiB, each after its size."""
    out = bytearray()
    position = 4
    while position + 4 < len(payload):
        size = int.from_bytes(payload[position : position + 4], "little")
        position += 4
        out += _lz4_block(payload[position : position + size])
        position += size
        if len(out) % (8 << 20):
            break
    return bytes(out)


def _lz4_block(block: bytes) -> bytearray:
    out = bytearray()
    position = 0
    while True:
        token = block[position]
        literals, position = _lz4_length(block, position + 1, token >> 4)
        out += block[position : position + literals]
        position += literals
        if position >= len(block):
            return out
        offset = block[position] | block[position + 1] << 8
        length, position = _lz4_length(block, position + 2, token & 15)
        length += 4
        match = out[-offset : len(out) - offset + min(offset, length)]
        out += (match * -(-length // offset))[:length]


def _lz4_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    """Add the bytes that extend a length of 15; return it and what follows."""
    if length == 15:
        while True:
            extra = block[position]
            position += 1
            length += extra
            if extra != 255:
                break
    return length, position


_DECOMPRESSORS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x02\x21\x4c\x18": _unpack_lz4,
    b"\xfd7zXZ": lambda payload: lzma.LZMADecompressor().decompress(payload),
    b"\x1f\x8b": lambda payload: gzip.decompress(payload[:-4]),
}


def _flatten(elf: bytes) -> bytes:
    """Lay an ELF file's segments out as they lie in memory."""
    table = struct.unpack_from("<Q", elf, 32)[0]
    count = struct.unpack_from("<H", elf, 56)[0]
    image = bytearray()
    for index in range(count):
        kind, _, offset, _, address, in_file, in_memory = struct.unpack_from(
            "<IIQQQQQ", elf, table + 56 * index
        )
        if kind != 1:
            continue
        start = address - _KERNEL
        image.extend(bytes(max(0, start + in_memory - len(image))))
        image[start : start + in_file] = elf[offset : offset + in_file]
    return bytes(image)


# One machine: its memory, its disk and its description.


def _initramfs(contents: Mapping[str, bytes]) -> bytes:
    """Return a cpio archive ("newc") of the files and their directories."""
    directories = {
        parent.as_posix() for name in contents for parent in Path(name).parents if parent != Path(".")
    }
    entries = [_cpio_entry(name, 0o040755, b"") for name in sorted(directories)]
    entries += [_cpio_entry(name, 0o100755, content) for name, content in contents.items()]
    entries.append(_cpio_entry("TRAILER!!!", 0, b""))
    return b"".join(entries)


def _cpio_entry(name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head, 4) + _padded(content, 4)


def _padded(content: bytes, unit: int) -> bytes:
    return content + bytes(-len(content) % unit)


def _memory_image(kernel: bytes, initramfs: bytes) -> bytes:
    """Return boot parameters, kernel and initramfs as they lie from _IMAGE on."""
    needed = struct.unpack_from("<I", kernel, 0x260)[0]  # with what it unpacks to
    memory = _kernel_image(kernel)
    memory = _padded(memory.ljust(needed, b"\0"), 2 << 20)
    address = _KERNEL + len(memory)
    if address + 3 * len(initramfs) > _MEMORY:
        raise EmulatorError("the program and its files do not fit the emulated memory")
    parameters = _boot_parameters(kernel, address, len(initramfs))
    return parameters.ljust(_KERNEL - _IMAGE, b"\0") + memory + initramfs


def _boot_parameters(kernel: bytes, initramfs: int, size: int) -> bytes:
    """Return Linux's "zero page", followed by the command line."""
    page = bytearray(4096)
    header_end = 0x202 + kernel[0x201]
    page[0x1F1:header_end] = kernel[0x1F1:header_end]
    page[0x210] = 0xFF  # an unlisted boot loader
    struct.pack_into("<II", page, 0x218, initramfs, size)
    struct.pack_into("<I", page, 0x228, _IMAGE + len(page))
    usable = ((0, 0x9FC00), (0x100000, _MEMORY - 0x100000))
    page[0x1E8] = len(usable)
    for index, (start, length) in enumerate(usable):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, start, length, 1)
    return bytes(page) + _COMMAND_LINE.encode() + b"\0"


def _write_machine(directory: Path, initramfs: bytes) -> None:
    kernel = _find_kernel()
    assert kernel is not None  # available() said so
    (directory / "memory.img").write_bytes(_memory_image(kernel.read_bytes(), initramfs))
    with (directory / "disk.img").open("wb") as disk:
        disk.truncate(_DISK_BYTES)
    (directory / "bochsrc").write_text(_description())
    (directory / "commands").write_text("continue\n")  # for Bochs's built-in debugger


def _description() -> str:
    megabytes = _MEMORY >> 20
    return f"""\
display_library: term
cpu: model={_CPU_MODEL}, ips={_INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0
memory: guest={megabytes}, host={megabytes}
romimage: file="{_firmware()}", address=0xffff0000
optramimage1: file=memory.img, address={_IMAGE:#x}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path=disk.img, mode=flat, cylinders={_CYLINDERS}, heads=16, spt=63
com1: enabled=1, mode=file, dev=console.txt
clock: sync=none
sound: waveoutdrv=dummy
speaker: enabled=0
log: bochs.log
panic: action=fatal
error: action=ignore
"""


def _boot(directory: Path, timeout: float) -> None:
    """Run Bochs until the machine is off; it counts that as a failure of its own."""
    command = ("bochs", "-q", "-f", "bochsrc", "-rc", "commands")
    try:
        subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "TERM": "linux"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EmulatorError(f"the machine was not done after {timeout:g} s{_console(directory)}") from error


def _read_output(directory: Path) -> bytes:
    disk = (directory / "disk.img").read_bytes()
    magic, status, _, output_bytes, error_bytes = _HEADER.unpack_from(disk)
    if magic != _MAGIC:
        raise EmulatorError(f"the machine stopped without a result{_console(directory)}")
    output_end = _SECTOR + output_bytes
    errors_start = _SECTOR + output_bytes + -output_bytes % _SECTOR
    if status != 0:
        errors = disk[errors_start : errors_start + error_bytes].decode(errors="replace")
        raise EmulatorError(f"the program {_ending(status)}\n{errors}".rstrip())
    return disk[_SECTOR:output_end]


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"exited with status {os.WEXITSTATUS(status)}"


def _console(directory: Path) -> str:
    """Return the end of the kernel's messages, or of Bochs's when it had none."""
    for name in ("console.txt", "bochs.log"):
        path = directory / name
        text = path.read_text(errors="replace").strip() if path.exists() else ""
        if text:
            return ":\n" + "\n".join(text.splitlines()[-40:])
    return ""


if __name__ == "__main__":
    print(fetch_kernel())
