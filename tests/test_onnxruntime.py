"""What is ONNX Runtime's own: its devices, the options of its sessions, its threads and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from stc.engines import onnxruntime_backend as onnxruntime_backend_module
from stc.engines.onnxruntime_backend import (
    PROVIDERS,
    Device,
    OnnxRuntimeBackend,
    OnnxRuntimeEngine,
)
from stc.errors import EngineError
from stc.method.graphs import keys_graph
from tests.graph_files import graph_file
from tests.language_cases import language_case
from tests.own_process import run_python
from tests.vision_cases import GOLDEN, Exported

Array = NDArray[Any]
Exporting = Callable[[str], Exported]

KEYS = keys_graph(1)


@pytest.fixture
def case(exported: Exporting) -> Exported:
    return exported(GOLDEN[0])


@pytest.fixture
def onnxruntime_backend(case: Exported) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(case.bundle)


def test_a_device_without_its_provider_is_refused(case: Exported) -> None:
    if PROVIDERS["cuda"] in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineError, match=r"^device cuda: .* --force-reinstall onnxruntime-gpu"):
        OnnxRuntimeBackend(case.bundle, "cuda")


UNUSABLE = r"; pip uninstall onnxruntime, then pip install --force-reinstall onnxruntime-gpu"


@pytest.fixture
def listed_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists CUDA, and cannot use it."""
    if PROVIDERS["cuda"] in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))


def test_a_device_that_is_listed_and_cannot_be_used_is_refused(
    case: Exported, listed_cuda: None
) -> None:
    with pytest.raises(
        EngineError, match=r"^device cuda: cannot be used \(.*" + UNUSABLE
    ) as caught:
        OnnxRuntimeBackend(case.bundle, "cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_graph_that_falls_back_to_the_cpu_is_refused(case: Exported, listed_cuda: None) -> None:
    expected = f"^{KEYS}: runs on CPUExecutionProvider, expected CUDAExecutionProvider{UNUSABLE}"
    with pytest.raises(EngineError, match=expected):
        OnnxRuntimeEngine(KEYS, graph_file(case.bundle, KEYS), "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cuda_multiplies_float32_as_such_and_takes_the_memory_it_asks_for(
    case: Exported, monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    given: list[list[Any]] = []
    session = onnxruntime.InferenceSession

    def seen(path: Path, options: Any, providers: list[Any], **_: Any) -> Any:
        given.append(providers)
        return session(path, options, providers=[PROVIDERS["cpu"]])

    monkeypatch.setattr(onnxruntime, "InferenceSession", seen)
    with suppress(EngineError):  # it sees that CUDA was not taken
        OnnxRuntimeEngine(KEYS, graph_file(case.bundle, KEYS), device)
    options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    cuda = [(PROVIDERS["cuda"], options)] if device == "cuda" else []
    assert given == [[*cuda, PROVIDERS["cpu"]]]


CONFIGURED = {
    "session.load_model_format": "ONNX",
    "session.use_env_allocators": "1",
    "session.intra_op.allow_spinning": "0",
    "session.disable_prepacking": "",
}


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The options that ONNX Runtime is given for a session; none is made."""
    monkeypatch.setattr(onnxruntime_backend_module, "usable_cores", lambda: 3)

    def options_of(graph: str, *, prepack: bool = True, weights: Path | None = None) -> Any:
        given: list[Any] = []

        def seen(graph: object, options: Any, providers: object) -> None:
            given.append(options)
            raise RuntimeError("seen")

        monkeypatch.setattr(onnxruntime, "InferenceSession", seen)
        with pytest.raises(EngineError, match=r"cannot load it \(seen\)"):
            OnnxRuntimeEngine(graph, Path(graph), "cpu", prepack=prepack, weights=weights)
        (options,) = given
        return options

    return options_of


def entries(options: Any, wanted: Iterable[str]) -> dict[str, str]:
    """Entries of a session's configuration, "" where there is none."""
    found = {}
    for name in wanted:
        try:
            found[name] = options.get_session_config_entry(name)
        except RuntimeError:  # ONNX Runtime knows no other way to ask
            found[name] = ""
    return found


def test_a_session_has_threads_of_its_own_that_sleep_and_the_arena_of_the_process(
    configured: Callable[..., Any],
) -> None:
    options = configured(KEYS)
    assert entries(options, CONFIGURED) == CONFIGURED
    assert options.use_per_session_threads
    assert options.intra_op_num_threads == 3
    assert options.log_severity_level == 4


def test_sessions_share_threads_once_the_process_does(
    configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_backend_module, "_threads_shared", True)
    options = configured(KEYS)
    assert not options.use_per_session_threads
    assert options.intra_op_num_threads == 0
    spinning = "session.intra_op.allow_spinning"
    assert entries(options, CONFIGURED) == CONFIGURED | {spinning: ""}


def test_a_session_finds_its_weights_and_packs_matrices_unless_told_otherwise(
    configured: Callable[..., Any], tmp_path: Path
) -> None:
    folder = "session.model_external_initializers_file_folder_path"
    told = {"session.disable_prepacking": "1", folder: str(tmp_path)}
    assert entries(configured(KEYS, prepack=False, weights=tmp_path), told) == told
    assert entries(configured(KEYS), told) == dict.fromkeys(told, "")


def test_the_vocabularys_tables_alone_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = language_case().bundle
    packed: dict[str, bool] = {}

    def made(name: str, graph: object, device: str, *, weights: Path, prepack: bool) -> None:
        packed[name] = prepack

    backend = OnnxRuntimeBackend(bundle)
    monkeypatch.setattr(onnxruntime_backend_module, "OnnxRuntimeEngine", made)
    for graph in bundle.manifest.graphs:
        backend.load(graph)
    assert {name for name, whether in packed.items() if not whether} == {"text_embed", "head"}


def test_a_tensor_that_cannot_be_held_is_an_error_in_one_line(
    onnxruntime_backend: OnnxRuntimeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("Failed to allocate memory\nat bfc_arena.cc:376")

    tensor = onnxruntime_backend.to_device(np.zeros((2, 3), np.float32))
    for name in ("numpy", "ortvalue_from_numpy", "ortvalue_from_shape_and_type"):
        monkeypatch.setattr(onnxruntime.OrtValue, name, full)
    uses: list[Callable[[], object]] = [
        lambda: onnxruntime_backend.to_device(np.zeros((2, 3), np.float32)),
        lambda: onnxruntime_backend.to_host(tensor),
        lambda: onnxruntime_backend.read_rows(tensor, 0, 1),
        lambda: onnxruntime_backend.empty((2, 3), np.float32),
    ]
    for use in uses:
        with pytest.raises(EngineError) as caught:
            use()
        assert str(caught.value) == (
            "tensor [2, 3]: cannot be held or copied by onnxruntime-cpu (Failed to allocate memory)"
            "; free memory, or use a smaller model"
        )


# One pool of threads for the process, decided by programs that own it; in a process of its own,
# because what a process has decided it cannot take back.

SHARING = """
import json, sys
import numpy as np
import onnxruntime
from stc.bundles.bundle import Bundle
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, share_threads
from stc.runtime.video.source.source import Frame
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings

order, path = sys.argv[1:]
bundle = Bundle.open(path)
rgb = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
frames = [Frame(index=index, time_s=index / 2, rgb=rgb[index]) for index in range(3)]

def tower():
    return VisionTower(OnnxRuntimeBackend(bundle), bundle.manifest.vision, "fp32")

def tokens(tower):
    session = StreamSession(tower, Settings(budget=2))
    return [session.push(frame).tokens.tolist() for frame in frames]

outcomes = []
if order == "session first":
    earlier = tower()
    outcomes.append(tokens(earlier))
elif order == "others share first":
    onnxruntime.set_global_thread_pool_sizes(1, 1)
share_threads()
share_threads()
outcomes.append(tokens(tower()))
if order == "session first":
    outcomes.append(tokens(earlier))
print(json.dumps(outcomes))
"""


def test_threads_can_be_shared_whatever_came_first(case: Exported) -> None:
    outcomes = []
    for order in ("share first", "session first", "others share first"):
        done = run_python("-c", SHARING, order, case.bundle.root)
        assert (done.returncode, done.stderr) == (0, "")
        outcomes += json.loads(done.stdout)
    assert len(outcomes) == 5
    assert all(outcome == outcomes[0] for outcome in outcomes)
