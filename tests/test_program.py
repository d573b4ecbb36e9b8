"""Programs and what runs them, on a family of two graphs that the product knows nothing of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.contracts import Contract, Port
from stc.engines.eager import EagerRunner, EngineSide
from stc.engines.engine import Engine, Runner, stream_bytes
from stc.engines.gpu.cuda import Cuda
from stc.engines.gpu.device import Device
from stc.engines.library.library import EngineEntry, EngineLibrary, Stamp
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.engines.tensorrt.captured import CapturedRunner
from stc.errors import EngineError
from stc.manifest import FileEntry, GraphEntry
from stc.ports import contract_ports
from stc.program import Arrays, Buffer, Call, Program, run_alone, run_paired
from tests.device_cases import weights
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import VERSION, FakeTensorRt, Plan
from tests.oracle.backend import OracleBackend, OracleEngine

Array = NDArray[Any]
ROWS, WIDTH = 6, 4

MIX = Contract(
    (Port("x", ("N", "W")), Port("memory", ("N", "W"))),
    (Port("y", ("N", "W")), Port("state", ("N", "W"))),
)
RANK = Contract(
    (Port("y", ("N", "W")),),
    (Port("mean", ("W",)), Port("order", ("N",), "int64")),
)
CONTRACTS = {"mix": MIX, "rank": RANK}
PORTS = {
    name: contract_ports(contract, {"N": ROWS, "W": WIDTH}, "fp32")
    for name, contract in CONTRACTS.items()
}


def mix(x: Array, memory: Array) -> tuple[Array, Array]:
    return x + 0.5 * memory, x - memory


def rank(y: Array) -> tuple[Array, Array]:
    return y.mean(axis=0), np.argsort(y.sum(axis=1), kind="stable")


def programs() -> tuple[Program, Program]:
    """A first frame that leaves its state behind, and a next one that reads it."""
    square = (ROWS, WIDTH)
    buffers = [
        Buffer("x", square, "float32", "input"),
        Buffer("nothing", square, "float32", "constant", 1),
        Buffer("state", square, "float32", "reference"),
        Buffer("y", square, "float32"),
        Buffer("mean", (WIDTH,), "float32", "result"),
        Buffer("order", (ROWS,), "int64", "choice"),
    ]
    ranked = Call("rank", {"y": "y"}, {"mean": "mean", "order": "order"}, "ranking")

    def program(name: str, memory: str, writes: dict[str, str]) -> Program:
        mixed = Call("mix", {"x": "x", "memory": memory}, writes, "mixing")
        return Program(name, (mixed, ranked), {one.name: one for one in buffers})

    first = program("first", "nothing", {"y": "y", "state": "state"})
    return first, program("next", "state", {"y": "y"})


def stream(count: int) -> list[Array]:
    random = np.random.default_rng(0)
    return list(random.standard_normal((count, ROWS, WIDTH)).astype(np.float32))


def expected(frames: list[Array], every: int) -> list[tuple[Array, Array]]:
    """mean and order of every frame, each `every`-th of them a first one."""
    found, state = [], np.ones((ROWS, WIDTH), np.float32)
    for index, x in enumerate(frames):
        first = index % every == 0
        y, fresh = mix(x, np.ones_like(x) if first else state)
        state = fresh if first else state
        found.append(rank(y))
    return found


class Toy(OracleBackend):
    """The two graphs in numpy; `spoil` changes what `mix` gives."""

    def __init__(self, spoil: Callable[[Array], Array] = lambda y: y) -> None:
        super().__init__(*weights())
        self._spoil = spoil

    def load(self, graph: str) -> Engine:
        def spoilt(x: Array, memory: Array) -> tuple[Array, Array]:
            y, state = mix(x, memory)
            return self._spoil(y), state

        return OracleEngine(graph, CONTRACTS[graph], spoilt if graph == "mix" else rank)


def mock_gpu(root: Path) -> TensorRtBackend:
    """The two graphs as engines of mocks of TensorRT and CUDA."""
    file = FileEntry(path="graphs/toy.onnx", sha256="0" * 64, size_bytes=1)
    graphs = {
        name: GraphEntry(file=file, inputs=ports.inputs, outputs=ports.outputs)
        for name, ports in PORTS.items()
    }
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda, {"mix": mix, "rank": rank}, graphs)
    library, entries = EngineLibrary(root / "engines"), {}
    for name in graphs:
        stamp = Stamp(
            graph=name,
            graph_sha256="0" * 64,
            weights_sha256="0" * 64,
            flavour="tensorrt",
            version=VERSION,
            targets=("sm89",),
            precision="fp32",
            profiles=({},),
            baked=None,
        )
        stored = library.store(
            f"{name}.engine", memoryview(Plan(name, [{}], None, 64).serialized())
        )
        entries[name] = [EngineEntry(stamp=stamp, file=stored, build_s=0.0)]
    bundle: Any = SimpleNamespace(root=root, manifest=SimpleNamespace(graphs=graphs))
    said: list[str] = []
    return TensorRtBackend(
        bundle, library, entries, trt.flavoured("tensorrt"), Device(Cuda(cuda)), said.append
    )


def pushed(runner: Runner, frames: list[Array], every: int) -> list[tuple[Array, Array]]:
    found = []
    for index, x in enumerate(frames):
        ran = runner.run("first" if index % every == 0 else "next", {"x": x})
        assert ran.stage_ms.keys() == {"mixing", "ranking"}
        found.append((ran.results["mean"], runner.read("order")))
    return found


def assert_equal(got: list[tuple[Array, Array]], wanted: list[tuple[Array, Array]]) -> None:
    for one, other in zip(got, wanted, strict=True):
        for array, true in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, true)


@pytest.mark.parametrize("every", [1, 3])
def test_a_family_runs_eagerly(every: int) -> None:
    frames = stream(8)
    assert_equal(pushed(EagerRunner(Toy(), programs()), frames, every), expected(frames, every))


@pytest.mark.parametrize("every", [1, 3])
def test_a_family_runs_captured(every: int, tmp_path: Path) -> None:
    frames, backend = stream(20), mock_gpu(tmp_path)
    runner = CapturedRunner(backend, programs())
    assert_equal(pushed(runner, frames, every), expected(frames, every))
    assert runner.captured == ({"first", "next"} if every > 1 else {"first"})
    runner.close()


def test_a_family_runs_on_two_sides(tmp_path: Path) -> None:
    """Equal inputs blame the graph that differs and no other; apart, what follows from it too."""

    def found(*, apart: bool) -> dict[str, float]:
        off: dict[str, float] = {}

        def judge(call: Call, _: Arrays, wanted: Arrays, given: Arrays) -> None:
            worst = max(float(np.abs(wanted[port] - given[port]).max()) for port in wanted)
            off[call.graph] = worst

        ended: list[str] = []
        sides = EngineSide(Toy(), PORTS), EngineSide(Toy(lambda y: y + 0.25), PORTS)
        first, _ = programs()
        run_paired(first, *sides, {"x": stream(1)[0]}, judge, apart=apart, ended=ended.append)
        assert ended == ["mix", "rank"]
        return off

    assert found(apart=False) == {"mix": pytest.approx(0.25, abs=1e-6), "rank": 0.0}
    assert found(apart=True)["rank"] == pytest.approx(0.25, abs=1e-6)
    mock, (first, _) = EngineSide(mock_gpu(tmp_path), PORTS), programs()
    x = stream(1)[0]
    np.testing.assert_array_equal(run_alone(first, mock, {"x": x})["mean"], expected([x], 1)[0][0])


def test_a_family_is_counted_before_it_is_loaded() -> None:
    square = 4 * ROWS * WIDTH
    assert stream_bytes(programs(), reference_sets=2) == {
        "references": 2 * square,
        "work": 3 * square + 4 * WIDTH + 8 * ROWS,
    }
    assert EagerRunner(Toy(), programs()).references_bytes == square


def test_a_choice_may_be_given() -> None:
    """Calls that compute nothing else are not run then."""
    first, _ = programs()
    given = first.given(["y", "state"])
    assert [call.graph for call in given.calls] == ["rank"]
    y = stream(1)[0]
    ran = EagerRunner(Toy(), [given]).run("first", {"y": y})
    np.testing.assert_array_equal(ran.results["mean"], rank(y)[0])


def test_a_program_may_be_given_what_another_of_its_stream_computes(tmp_path: Path) -> None:
    """Given, computed and given again: each run reads its own, and what was computed stays."""
    first, _ = programs()
    given = replace(first.given(["y", "state"]), name="given")
    x, y = stream(2)
    for order in ((first, given), (given, first)):
        captured = CapturedRunner(mock_gpu(tmp_path), order)
        runners: tuple[Runner, ...] = EagerRunner(Toy(), order), captured
        for runner in (*runners, *runners):
            for _ in range(3):
                ran = runner.run("given", {"y": y})
                np.testing.assert_array_equal(ran.results["mean"], rank(y)[0])
                ran = runner.run("first", {"x": x})
                np.testing.assert_array_equal(ran.results["mean"], expected([x], 1)[0][0])
                np.testing.assert_array_equal(runner.read("y"), mix(x, np.ones_like(x))[0])


def test_a_family_that_two_sets_of_references_cannot_serve_is_refused(tmp_path: Path) -> None:
    backend, (first, following) = mock_gpu(tmp_path), programs()
    old = replace(first, calls=(replace(first.calls[0], reads={"x": "x", "memory": "state"}),))
    with pytest.raises(EngineError, match=r"^first: reads state before it renews it$"):
        CapturedRunner(backend, [old])
    more = {**first.buffers, "other": replace(first.buffers["state"], name="other")}
    with pytest.raises(EngineError, match=r"^first: renews some references and not other$"):
        CapturedRunner(backend, [replace(first, buffers=more)])
    back = replace(following, calls=(*following.calls, following.calls[0]))
    with pytest.raises(EngineError, match=r"^next: stages .* in a row$"):
        CapturedRunner(backend, [back])


def test_buffers_of_one_name_are_alike() -> None:
    first, following = programs()
    wide = {**following.buffers, "y": Buffer("y", (ROWS, 2 * WIDTH), "float32")}
    with pytest.raises(EngineError, match=r"^next: y is "):
        EagerRunner(Toy(), [first, replace(following, buffers=wide)])


# How the paper's own family is known.

FAMILY = {
    "stc/method/family.py": "the family",
    "stc/method/graphs.py": "its graphs",
    "export/towers/siglip/tower.py": "its modules, by graph",
    "export/models/reference.py": "the PyTorch reference",
}
BOTH = (r"keys_graph|KEYS_CONTRACT|\bKeys\b|\"keys\"", r"update_graph|UPDATE_CONTRACT|\bUpdate\b")


def test_nothing_else_knows_how_the_graphs_of_a_block_follow_one_another() -> None:
    root = Path(__file__).resolve().parents[1]
    naming = {
        str(file.relative_to(root))
        for folder in ("stc", "export", "engines", "runtime")
        for file in (root / folder).rglob("*.py")
        if all(re.search(name, file.read_text()) for name in BOTH)
    }
    assert naming <= FAMILY.keys()
