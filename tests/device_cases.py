"""A small tower on the mock of CUDA and TensorRT, and the same tower in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle, file_entry
from stc.bundles.writer import BundleWriter
from stc.engines.gpu.cuda import Cuda
from stc.engines.gpu.device import Device
from stc.engines.library.library import EngineEntry, EngineLibrary, Stamp
from stc.engines.library.plan import Buckets, plan_engines
from stc.engines.library.targets import Flavour
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.manifest import GRAPHS, WEIGHTS, DefaultSettings, FileEntry, GraphEntry, Manifest
from stc.method.graphs import vision_graphs, vision_ports
from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import VERSION, FakeTensorRt, Plan
from tests.oracle.backend import OracleBackend
from tests.oracle.layers import ProjectorWeights, TowerWeights
from tests.oracle.weights import projector_weights, tower_weights
from tests.tiny_bundle import SPEC as TINY
from tests.tiny_bundle import provenance

SPEC = TINY.model_copy(update={"blocks": 3})
"""25 tokens, 9 after pooling, an odd number of blocks."""

SETTINGS = Settings(reference_interval=4, recompute_ratio=0.25, budget=3)
BUCKETS = Buckets(recomputed=(6, 12), kept=(3, 5))


def weights(seed: int = 0) -> tuple[TowerWeights, ProjectorWeights]:
    """Random weights of SPEC."""
    random = np.random.default_rng(seed)

    def tensor(*shape: int) -> NDArray[Any]:
        scaled: NDArray[Any] = random.standard_normal(shape) / shape[-1] ** 0.5
        return scaled.astype(np.float32)

    tensors: dict[str, NDArray[Any]] = {
        "embeddings.patch_embedding.weight": tensor(SPEC.width, 3, 4, 4),
        "embeddings.patch_embedding.bias": tensor(SPEC.width),
        "embeddings.position_embedding.weight": tensor(SPEC.tokens, SPEC.width),
    }
    for block in range(SPEC.blocks):
        prefix = f"encoder.layers.{block}."
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            tensors[f"{prefix}{name}.weight"] = tensor(SPEC.width, SPEC.width)
        tensors[f"{prefix}self_attn.out_proj.weight"] = tensor(SPEC.width, SPEC.width)
        tensors[f"{prefix}mlp.fc1.weight"] = tensor(SPEC.mlp_width, SPEC.width)
        tensors[f"{prefix}mlp.fc2.weight"] = tensor(SPEC.width, SPEC.mlp_width)
        for norm in ("layer_norm1", "layer_norm2"):
            tensors[f"{prefix}{norm}.weight"] = 1 + tensor(SPEC.width)
            tensors[f"{prefix}{norm}.bias"] = tensor(SPEC.width)
    tower = tower_weights(tensors, heads=SPEC.heads, blocks=SPEC.blocks)
    projector = {
        "linear_1.weight": tensor(SPEC.language_width, SPEC.width),
        "linear_2.weight": tensor(SPEC.language_width, SPEC.language_width),
    }
    return tower, projector_weights(projector, SPEC.grid)


def manifest() -> Manifest:
    """The manifest of SPEC's tower; its graphs have no files."""
    graphs = {}
    for name, ports in vision_ports(SPEC, "fp32").items():
        graphs[name] = GraphEntry(
            file=FileEntry(path=f"graphs/{name}.onnx", sha256="0" * 64, size_bytes=1),
            inputs=ports.inputs,
            outputs=ports.outputs,
        )
    return Manifest(
        vision=SPEC,
        language=None,
        graphs=graphs,
        files=(),
        settings=DefaultSettings(**vars(SETTINGS)),
        provenance=provenance(),
    )


def write_device_bundle(path: Path) -> Path:
    """A bundle of SPEC's tower stands at `path`; its graphs are placeholders."""
    with BundleWriter(path) as writer:
        (writer.root / GRAPHS).mkdir()
        described = manifest()
        graphs = {}
        for name, graph in described.graphs.items():
            (writer.root / graph.file.path).write_bytes(name.encode())
            file = file_entry(writer.root, graph.file.path)
            graphs[name] = graph.model_copy(update={"file": file})
        (writer.root / WEIGHTS).write_bytes(b"weights")
        files = (file_entry(writer.root, WEIGHTS),)
        writer.finish(described.model_copy(update={"graphs": graphs, "files": files}))
    return path


def numpy_graphs(seed: int = 0) -> dict[str, Any]:
    """The tower's graphs as numpy functions of their inputs in order."""
    backend, graphs = OracleBackend(*weights(seed)), {}
    for name, contract in vision_graphs(SPEC.blocks).items():
        engine = backend.load(name)

        def run(*arrays: Any, engine: Any = engine, contract: Any = contract) -> tuple[Any, ...]:
            names = [port.name for port in contract.inputs]
            outputs = engine(dict(zip(names, arrays, strict=True)))
            return tuple(outputs[port.name] for port in contract.outputs)

        graphs[name] = run
    return graphs


def refusing(graph: str, where: str) -> Callable[[str, str], bool]:
    """For `FakeTensorRt.refuse`: whether it is `graph` that is asked, `where` (run, capture)."""
    return lambda asked, when: (asked, when) == (graph, where)


@dataclass
class Rig:
    """A tower on mocks. builds: sizes, one build each. said: what the backend told the user."""

    root: Path
    flavour: Flavour = "tensorrt"
    several_profiles: bool = True
    scratch_bytes: int = 512
    builds: tuple[Buckets, ...] = (BUCKETS,)
    cuda: FakeCuda = field(default_factory=FakeCuda)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifest = manifest()
        self.trt = FakeTensorRt(self.cuda, numpy_graphs(), self.manifest.graphs)
        self.open()

    def open(self) -> None:
        """A fresh device and backend on the same GPU."""
        library, entries = self._library()
        self.device = Device(Cuda(self.cuda))
        self.backend = TensorRtBackend(
            Bundle(self.root, self.manifest),
            library,
            entries,
            self.trt.flavoured(self.flavour),
            self.device,
            self.said.append,
        )
        self.tower = VisionTower(self.backend, SPEC, "fp32")

    def session(self, settings: Settings = SETTINGS) -> StreamSession:
        return StreamSession(self.tower, settings)

    def _library(self) -> tuple[EngineLibrary, dict[str, list[EngineEntry]]]:
        library = EngineLibrary(self.root / "engines")
        entries: dict[str, list[EngineEntry]] = {}
        specs = {
            spec.stem: spec
            for build in self.builds
            for spec in plan_engines(self.manifest, build, several_profiles=self.several_profiles)
        }
        for number, spec in enumerate(specs.values()):
            # Every engine asks for another amount of scratch memory.
            scratch = self.scratch_bytes + 8 * number
            plan = Plan(spec.graph, list(spec.profiles), spec.baked, scratch)
            stamp = Stamp(
                graph=spec.graph,
                graph_sha256="0" * 64,
                weights_sha256="0" * 64,
                flavour=self.flavour,
                version=VERSION,
                targets=("sm89",),
                precision="fp32",
                profiles=spec.profiles,
                baked=spec.baked,
            )
            file = library.store(f"{spec.stem}.engine", memoryview(plan.serialized()))
            entry = EngineEntry(stamp=stamp, file=file, build_s=0.0)
            entries.setdefault(spec.graph, []).append(entry)
        return library, entries


def oracle_session(settings: Settings = SETTINGS) -> StreamSession:
    """What a Rig's session must equal."""
    return StreamSession(VisionTower(OracleBackend(*weights()), SPEC, "fp32"), settings)


def frames(count: int, seed: int = 0) -> list[Frame]:
    """Frames of noise of which a part changes from one to the next."""
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (20, 20, 3), np.uint8)
    result = []
    for index in range(count):
        top = 4 * (index % 4)
        rgb[top : top + 6, 3:12] = random.integers(0, 256, (6, 9, 3), np.uint8)
        result.append(Frame(index=index, time_s=index / 2, rgb=rgb.copy()))
    return result


def assert_equal(got: FrameReport, expected: FrameReport) -> None:
    where = f"frame {got.index}, {got.kind}"
    assert got.kind == expected.kind, where
    np.testing.assert_array_equal(got.recomputed, expected.recomputed, where)
    np.testing.assert_array_equal(got.kept, expected.kept, where)
    np.testing.assert_array_equal(got.tokens, expected.tokens, where)


def assert_same_stream(
    session: StreamSession, settings: Settings, count: int, seed: int = 0
) -> None:
    oracle = oracle_session(settings)
    for frame in frames(count, seed):
        assert_equal(session.push(frame), oracle.push(frame))
