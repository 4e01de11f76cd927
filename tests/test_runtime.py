"""The runtime on models made by hand: results, shapes, threads, memory, inputs of all kinds."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.errors import ConfigError, InputError, SparsecError
from sparsec.runtime import Program
from sparsec.runtime.plan import Operator

from .runtime_models import (
    BEGIN,
    END,
    PlanBuilder,
    compile_code,
    pointer,
    softmax_model,
    softmax_oracle,
    tiles_of,
    twice_model,
)

COLUMNS = 37


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_code(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def bias() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal(COLUMNS).astype("float32")


@pytest.fixture
def softmax(code: bytes, bias: np.ndarray[Any, Any]) -> Program:
    return Program.from_bytes(softmax_model(bias).build(code))


def random_input(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, COLUMNS)).astype("float32")


def aligned(count: int, offset: int = 0) -> np.ndarray[Any, Any]:
    """float32 zeros that start ``offset`` items after a 64-byte boundary."""
    raw = np.zeros(count + 32, "float32")
    start = (-raw.ctypes.data // 4) % 16 + offset
    return raw[start : start + count]


@pytest.mark.parametrize("rows", [1, 2, 13, 64, 1000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_two_temporaries_and_scratch(softmax: Program, bias: Any, rows: int, threads: int) -> None:
    softmax.threads = threads
    x = random_input(rows, rows)
    np.testing.assert_allclose(softmax(x), softmax_oracle(x, bias), atol=1e-6)


def test_results_are_the_same_bits_for_any_thread_count(softmax: Program) -> None:
    x = random_input(700)
    expected = softmax(x)
    for threads in (2, 3, 4, 8, 1):
        softmax.threads = threads
        for _ in range(20):
            assert np.array_equal(softmax(x), expected)


def test_shapes_alternate(softmax: Program, bias: Any) -> None:
    for round_ in range(3):
        for rows in (3, 500, 1, 40, 7, 8, 9, 10, 11, 12, 13):
            x = random_input(rows, round_)
            np.testing.assert_allclose(softmax(x), softmax_oracle(x, bias), atol=1e-6)


def test_callers_in_many_threads(softmax: Program, bias: Any) -> None:
    softmax.threads = 2
    wrong: list[str] = []

    def work(seed: int) -> None:
        for i in range(40):
            x = random_input(1 + (seed * 7 + i * 13) % 90, seed * 100 + i)
            if not np.allclose(softmax(x), softmax_oracle(x, bias), atol=1e-6):
                wrong.append(f"seed {seed}, call {i}")

    callers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_one_prepared_program_in_two_threads(softmax: Program, bias: Any) -> None:
    x = random_input(50)
    prepared = softmax.prepare({"x": x})
    callers = [threading.Thread(target=lambda: [prepared() for _ in range(50)]) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    np.testing.assert_allclose(prepared.outputs[0], softmax_oracle(x, bias), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: x[:, ::2].repeat(2, axis=1)[:, :COLUMNS],
        lambda x: np.asfortranarray(x),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: np.concatenate([x, x])[3 : 3 + len(x)],
        lambda x: x.astype(">f4"),
        lambda x: memoryview(x),
        lambda x: x.view(np.matrix),
    ],
    ids=["reversed", "stepped", "fortran", "broadcast", "offset", "big_endian", "memoryview", "matrix"],
)
def test_any_memory_of_inputs(softmax: Program, bias: Any, change: Any) -> None:
    x = change(random_input(20))
    np.testing.assert_allclose(softmax(x), softmax_oracle(np.asarray(x), bias), atol=1e-6)


def test_read_only_and_unaligned(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    for offset in (0, 1, 5):
        x = aligned(100, offset)
        x[:] = np.arange(100)
        x.flags.writeable = False
        assert np.array_equal(program(x), 2 * x)
    packed = np.zeros(10, dtype=[("a", "u1"), ("x", "f4")])
    packed["x"] = np.arange(10)
    assert np.array_equal(program(packed["x"]), 2 * np.arange(10))


def test_outputs_of_calls_do_not_share_memory(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    first = program(np.ones(4, "float32"))
    second = program(np.zeros(4, "float32"))
    assert np.array_equal(first, [2, 2, 2, 2]) and np.array_equal(second, [0, 0, 0, 0])
    assert first.flags.writeable and first.ctypes.data % 64 == 0


def test_empty_inputs(softmax: Program, code: bytes) -> None:
    assert softmax(random_input(0)).shape == (0, COLUMNS)
    program = Program.from_bytes(twice_model().build(code))
    assert program(np.zeros(0, "float32")).shape == (0,)
    prepared = program.prepare({"x": np.zeros(0, "float32")})
    prepared()
    assert prepared.outputs[0].shape == (0,)


def test_prepared_reads_inputs_anew(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    for x in (
        aligned(200),
        aligned(200, 3),
        np.zeros((200, 2), "float32")[:, 1],
        np.zeros(200, "float32")[::-1],
    ):
        prepared = program.prepare({"x": x})
        for value in (1.0, -3.0):
            x[:] = value * np.arange(200)
            prepared()
            assert np.array_equal(prepared.outputs[0], 2 * x)


def test_prepared_writes_given_outputs(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    x = np.arange(90, dtype="float32")
    for y in (aligned(90), aligned(90, 1), np.zeros((90, 3), "float32")[:, 2], np.zeros(90, "float32")[::-1]):
        prepared = program.prepare({"x": x}, {"y": y})
        prepared()
        assert prepared.outputs[0] is y
        assert np.array_equal(y, 2 * x)


def test_prepared_output_may_overlap_the_input(code: bytes) -> None:
    program = Program.from_bytes(twice_model().build(code))
    memory = aligned(300)
    memory[:] = np.arange(300)
    expected = 2 * memory[:200]
    program.prepare({"x": memory[:200]}, {"y": memory[16:216]})()
    assert np.array_equal(memory[16:216], expected)


def test_tensor_arguments_workspaces_and_several_outputs(code: bytes) -> None:
    b = PlanBuilder()
    x = b.input("x", ("n", 3), "int16")
    y = b.output("y", ("n", 3), "int16")
    b.output("again", ("n", 3), "int16", buffer=y)
    b.output("given", ("n", 3), "int16", buffer=x)
    b.step("copy_tensor", b.tensor(x, ("n", 3), "int16"), b.tensor(y, ("n", 3), "int16"), serial=True)
    program = Program.from_bytes(b.build(code))
    for rows in (5, 100_000, 2):
        values = np.random.default_rng(rows).integers(-99, 99, (rows, 3)).astype("int16")
        for _ in range(3):
            outputs = program(values)
            assert isinstance(outputs, tuple) and len(outputs) == 3
            assert all(np.array_equal(out, values) for out in outputs)
    assert [np.array_equal(out, values) for out in program.run(["given", "y"], {"x": values})] == [True, True]


DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64"]
DTYPES += ["uint8", "uint16", "uint32", "uint64", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(code: bytes, dtype: str) -> None:
    b = PlanBuilder()
    x, y = b.input("x", (2, "n"), dtype), b.output("y", (2, "n"), dtype)
    b.step("copy_tensor", b.tensor(x, (2, "n"), dtype), b.tensor(y, (2, "n"), dtype), serial=True)
    program = Program.from_bytes(b.build(code))
    values = np.random.default_rng(0).integers(0, 2, (2, 9)).astype(dtype)
    result = program(values)
    assert result.dtype == values.dtype and np.array_equal(result, values)
    assert program.inputs[0].dtype == dtype


def test_a_scalar_input(code: bytes) -> None:
    b = PlanBuilder()
    x, y = b.input("x", ()), b.output("y", ())
    b.step("twice", pointer(x), pointer(y), b.integer(1), BEGIN, END)
    program = Program.from_bytes(b.build(code))
    result = program(np.float32(3))
    assert result.shape == () and result == 6


def test_sizes_are_expressions(code: bytes) -> None:
    b = PlanBuilder()
    n, twice = "n", (Operator.MULTIPLY, 2, "n")
    x, other = b.input("x", (n,)), b.input("other", ((Operator.ADD, twice, 1),))
    longest = (Operator.MAXIMUM, (Operator.ADD, twice, 1), 8)
    y = b.output("y", (longest,))
    b.step(
        "twice",
        pointer(other),
        pointer(y),
        b.integer((Operator.ADD, twice, 1)),
        BEGIN,
        END,
        tiles=tiles_of(longest),
    )
    b.step("twice", pointer(x), pointer(y), b.integer(n), BEGIN, END, tiles=tiles_of(n))
    program = Program.from_bytes(b.build(code))
    result = program(np.ones(5, "float32"), np.full(11, 7, "float32"))
    assert np.array_equal(result, [2] * 5 + [14] * 6)
    assert program(np.ones(1, "float32"), np.ones(3, "float32")).shape == (8,)
    assert program.inputs[1].shape == ("2*n + 1",)
    with pytest.raises(
        InputError, match=r"input 'other' axis 0 must have length 11, got 10 \(expected shape"
    ):
        program(np.ones(5, "float32"), np.ones(10, "float32"))


def test_onnxruntime_style(softmax: Program, bias: Any) -> None:
    x = random_input(4)
    [y] = softmax.run(None, {"x": x})
    np.testing.assert_allclose(y, softmax_oracle(x, bias), atol=1e-6)
    [port] = softmax.get_inputs()
    assert (port.name, port.shape, port.type) == ("x", ("n", COLUMNS), "tensor(float)")
    assert softmax.get_outputs()[0].name == "y"
    assert repr(softmax) == "Program(x: float32[n, 37] -> y: float32[n, 37])"


def test_torch_in_torch_out(softmax: Program, bias: Any) -> None:
    torch = pytest.importorskip("torch")
    x = random_input(6)
    for tensor in (torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), torch.from_numpy(x.T.copy()).T):
        y = softmax(tensor)
        assert isinstance(y, torch.Tensor)
        np.testing.assert_allclose(y.numpy(), softmax_oracle(x, bias), atol=1e-6)
    with pytest.raises(InputError, match=r"must be float32, got torch.float64; pass x.to\(torch.float32\)"):
        softmax(torch.from_numpy(x).double())
    y = torch.zeros(6, COLUMNS)
    softmax.prepare({"x": torch.from_numpy(x)}, {"y": y})()
    np.testing.assert_allclose(y.numpy(), softmax_oracle(x, bias), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"z": np.ones((2, 37), "f4")}, r"there is no input called 'z'; the inputs are \('x',\)"),
        ({"x": np.ones((2, 37), "f4"), "z": 1}, "there is no input called 'z'"),
        ({}, r"no array was given for input 'x'"),
        ({"x": np.ones((2, 37))}, r"input 'x' must be float32, got float64; pass x.astype\('float32'\)"),
        ({"x": np.ones((2, 37), "complex64")}, r"must be float32, got complex64; pass x.astype\('float32'\)"),
        (
            {"x": np.ones(37, "f4")},
            r"'x' must have 2 axes \(shape \[n, 37\]\), got 1 \(shape \[37\]\); reshape it",
        ),
        (
            {"x": np.ones((2, 36), "f4")},
            r"'x' axis 1 must have length 37, got 36 \(expected shape \[n, 37\], got \[2, 36",
        ),
        (
            {"x": [[1.0] * 37]},
            r"input 'x' must be a float32 array, got list; pass np.asarray\(x, 'float32'\)",
        ),
        ({"x": None}, "input 'x' must be a float32 array, got NoneType"),
        ({"x": b"1234"}, "input 'x' must be float32, got uint8"),
    ],
)
def test_wrong_inputs_say_what_would_do(softmax: Program, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        softmax(**arguments)
    with pytest.raises(InputError, match=text):
        softmax.run(None, arguments)
    with pytest.raises(InputError, match=text):
        softmax.prepare(arguments)


def test_wrong_calls(softmax: Program) -> None:
    x = random_input(2)
    with pytest.raises(InputError, match=r"2 arrays were given, the program takes 1: x: float32\[n, 37\]"):
        softmax(x, x)
    with pytest.raises(InputError, match="input 'x' was given twice"):
        softmax(x, x=x)
    with pytest.raises(InputError, match=r"there is no output called 'z'; the outputs are \('y',\)"):
        softmax.run(["z"], {"x": x})
    with pytest.raises(InputError, match="there is no output called 'z'"):
        softmax.prepare({"x": x}, {"z": x})
    with pytest.raises(InputError, match=r"output 'y' must be a writable float32 array of shape \[n, 37\]"):
        softmax.prepare({"x": x}, {"y": np.zeros((3, 37), "float32")})
    with pytest.raises(InputError, match="output 'y' must be a writable array"):
        softmax.prepare({"x": x}, {"y": np.broadcast_to(np.float32(0), (2, 37))})
    with pytest.raises(TypeError, match="takes no arguments"):
        softmax.prepare({"x": x})(x)  # type: ignore[call-arg]


def test_two_inputs_share_a_symbol(code: bytes) -> None:
    b = PlanBuilder()
    x, other = b.input("x", ("n",)), b.input("other", ("n",))
    y = b.output("y", ("n",))
    b.step("add_row", pointer(x), pointer(other), pointer(y), b.integer("n"), BEGIN, END)
    program = Program.from_bytes(b.build(code))
    x3 = np.arange(3, dtype="float32")
    assert np.array_equal(program(x3, other=x3), 2 * x3)
    with pytest.raises(
        InputError, match=r"'other' axis 0 must have length 3 \(n, as on an earlier axis\), got 4"
    ):
        program(x3, np.zeros(4, "float32"))


def test_a_failing_kernel_is_named(code: bytes) -> None:
    b = PlanBuilder()
    x, y = b.input("x", ("n",)), b.output("y", (1,))
    b.step("check", pointer(x), pointer(y))
    program = Program.from_bytes(b.build(code))
    text = r"step 0 \(node_0\) failed in kernel check: ValueError: because the first item is negative"
    for _ in range(50):
        with pytest.raises(SparsecError, match=text):
            program(np.float32([-1]))
        assert program(np.float32([4]))[0] == 2


def test_a_kernel_failing_on_any_thread_is_named(code: bytes) -> None:
    b = PlanBuilder()
    x, y = b.input("x", (64,)), b.output("y", (64,))
    b.step("check", pointer(x), pointer(y), BEGIN, END, tiles=1000, nanoseconds=10**9)
    program = Program.from_bytes(b.build(code), threads=3)
    for _ in range(20):
        with pytest.raises(SparsecError, match="failed in kernel check: ValueError: because"):
            program(np.full(64, -1, "float32"))


def test_threads_setting(softmax: Program, code: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (0, -1, 257, 1 << 70, "two"):
        with pytest.raises(ConfigError, match="expected a whole number from 1 to 256"):
            softmax.threads = wrong  # type: ignore[assignment]
    monkeypatch.setenv("SPARSEC_THREADS", "3")
    assert Program.from_bytes(twice_model().build(code)).threads == 3
    assert Program.from_bytes(twice_model().build(code), threads=2).threads == 2
    monkeypatch.setenv("SPARSEC_THREADS", "257")
    with pytest.raises(ConfigError, match="SPARSEC_THREADS='257': expected a whole number from 1 to 256"):
        Program.from_bytes(twice_model().build(code))


def test_pickle(softmax: Program) -> None:
    softmax.threads = 2
    copy = pickle.loads(pickle.dumps(softmax))
    x = random_input(9)
    assert copy.threads == 2 and np.array_equal(copy(x), softmax(x))


def test_many_models_at_once(code: bytes) -> None:
    """Two models in memory must not get each other's code."""
    programs = [Program.from_bytes(softmax_model(np.full(5, i, "float32")).build(code)) for i in range(5)]
    programs += [Program.from_bytes(twice_model().build(code)) for _ in range(5)]
    del programs[2:8]
    programs += [Program.from_bytes(twice_model().build(code)) for _ in range(5)]
    assert all(np.array_equal(p(np.ones(3, "float32")), [2, 2, 2]) for p in programs[2:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_run(softmax: Program, bias: Any) -> None:
    softmax.threads = 2
    x = random_input(300)
    expected = softmax(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(softmax(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(softmax(x), expected)


def test_the_runtime_is_light() -> None:
    """sparsec.runtime loads NumPy and nothing of the compiler."""
    heavy = ("tvm", "torch", "onnx", "scipy")
    script = f"import sys, sparsec.runtime; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_c_sources_need_no_python(tmp_path: Path) -> None:
    """The executor without its Python binding links against the C library alone."""
    from .runtime_models import CSRC

    sources = [str(p) for p in CSRC.glob("*.c") if p.name != "shim.c" and not p.name.startswith("python_")]
    main = tmp_path / "main.c"
    main.write_text(
        '#include "sparsec.h"\nint main(int c, char **v) { struct sparsec_failure f; (void)c;'
        " return sparsec_model_load(v[1], true, &f) ? 0 : (int)f.kind; }\n"
    )
    program = tmp_path / "main"
    command = ["cc", "-std=c11", f"-I{CSRC}", str(main), *sources, "-o", str(program), "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    assert subprocess.run([str(program), str(tmp_path / "absent")], check=False).returncode == 1


def test_the_public_interface_runs_a_model(code: bytes, bias: Any, tmp_path: Path) -> None:
    """The program of the emulator's tests, here: load, bind and run through sparsec.h alone."""
    from .runtime_models import CSRC

    sources = [str(p) for p in CSRC.glob("*.c") if p.name != "shim.c" and not p.name.startswith("python_")]
    main, program = Path(__file__).parent / "emulator" / "artifact.c", tmp_path / "main"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-ldl", "-pthread"]
    subprocess.run(["cc", str(main), *sources, "-o", str(program), *flags], check=True)
    (tmp_path / "model0.sparsec").write_bytes(softmax_model(bias).build(code))
    x = random_input(50)
    cases = [np.array([0, threads, *x.shape], np.int64).tobytes() + x.tobytes() for threads in (1, 3)]
    (tmp_path / "cases.bin").write_bytes(b"".join(cases))
    output = subprocess.run([str(program)], cwd=tmp_path, capture_output=True, check=True).stdout
    one, three = output[: len(output) // 2], output[len(output) // 2 :]
    assert one == three and tuple(np.frombuffer(one[:16], np.int64)) == x.shape
    y = np.frombuffer(one[16:], np.float32).reshape(x.shape)
    np.testing.assert_allclose(y, softmax_oracle(x, bias), atol=1e-6)
