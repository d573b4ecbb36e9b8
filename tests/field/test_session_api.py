"""Sessions used from a program of one's own: what is given is looked at before anything is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import EngineError, LanguageError, SettingsError, StcError, VideoError
from stc.method.graphs import INDICES, KEPT, KEPT_INDICES, SELECT, prune_graph, vision_graphs
from stc.runtime.answers.stream_language import StreamLanguage, open_stream_language
from stc.runtime.language.sampling import Sampling
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, SCORINGS, Settings
from tests.device_cases import SETTINGS as DEVICE_SETTINGS
from tests.device_cases import Rig, assert_equal, numpy_graphs, oracle_session
from tests.device_cases import frames as device_frames
from tests.fake_tensorrt import FakeTensorRt
from tests.kept_tokens import POOLED
from tests.language_cases import language_case
from tests.oracle.backend import OracleBackend
from tests.session_case import SETTINGS, WEIGHTS
from tests.vision_cases import Exported, moving_frames, numpy_weights, oracle_tower

PICTURE = np.zeros((4, 4, 3), np.uint8)


def one_line(error: pytest.ExceptionInfo[StcError]) -> str:
    """The error's line, which is one and short."""
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


# What is pushed.


@pytest.mark.parametrize(
    "value",
    [None, 1, "frame", [PICTURE], PICTURE, (0, 0.0, PICTURE), {"rgb": PICTURE}, range(10**9)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_frame_is_refused_and_told_how_to_make_one(value: Any) -> None:
    """An array or None from OpenCV pushed as it is: VideoError; the stream goes on as if not."""
    session, twin = (StreamSession(oracle_tower(WEIGHTS), SETTINGS) for _ in range(2))
    first, second = moving_frames(2)
    assert_equal(session.push(first), twin.push(first))
    with pytest.raises(VideoError) as caught:
        session.push(value)
    line = one_line(caught)
    assert line.startswith("frame: got ")
    assert "Frame(index=0, time_s=0.0, rgb=picture)" in line
    assert_equal(session.push(second), twin.push(second))


@pytest.mark.parametrize(
    "time_s", [math.nan, math.inf, -math.inf, -1.0, -1e-9, None, "0", True, 1j, 10**400]
)
def test_a_frame_without_a_time_is_refused(time_s: Any) -> None:
    """NaN where a container has no stamp, None, a time before the first: VideoError."""
    session = StreamSession(oracle_tower(WEIGHTS), SETTINGS)
    with pytest.raises(VideoError, match=r"frame\.time_s: got .*, expected a finite number"):
        session.push(Frame(index=0, time_s=time_s, rgb=PICTURE))
    assert session.push(moving_frames(1)[0]).index == 0


@pytest.mark.parametrize("index", [-1, 1.5, None, True, "0", 10**30])
def test_a_frame_without_a_place_is_refused(index: Any) -> None:
    """A negative number or another type: VideoError."""
    with pytest.raises(VideoError, match=r"frame\.index: got "):
        StreamSession(oracle_tower(WEIGHTS), SETTINGS).push(
            Frame(index=index, time_s=0.0, rgb=PICTURE)
        )


@pytest.mark.parametrize(
    "rgb",
    [
        None,
        1,
        "picture",
        PICTURE.tolist(),
        PICTURE.astype(np.float32),
        PICTURE.astype(np.int64),
        PICTURE.astype(bool),
        PICTURE.astype(object),
        PICTURE[0],
        PICTURE[None],
        PICTURE[..., :1],
        np.zeros((4, 4, 4), np.uint8),
        PICTURE[:0],
        np.uint8(1),
    ],
    ids=str,
)
def test_a_frame_without_a_picture_is_refused(rgb: Any) -> None:
    """A list, floats, grey, four channels, no pixels: VideoError with what was got."""
    session = StreamSession(oracle_tower(WEIGHTS), SETTINGS)
    with pytest.raises(VideoError, match=r"picture: .*, expected uint8 \[height_px, width_px, 3\]"):
        session.push(Frame(index=0, time_s=0.0, rgb=rgb))
    assert session.push(moving_frames(1)[0]).kind == "reference"


def test_times_may_go_back_and_are_only_reported() -> None:
    """A clip that starts again, frames out of order: computed in the order of the pushes."""
    stream = moving_frames(4)
    back = [replace(frame, time_s=9.0 - frame.time_s) for frame in stream]
    forward, backward = (StreamSession(oracle_tower(WEIGHTS), SETTINGS) for _ in range(2))
    for there, here in zip(stream, back, strict=True):
        report = backward.push(here)
        assert report.time_s == here.time_s
        assert_equal(report, forward.push(there))


@pytest.mark.parametrize("value", [None, {}, "paper", MemorySettings()])
def test_a_session_without_settings_is_refused(value: Any) -> None:
    """A preset's name in the place of its settings: SettingsError."""
    with pytest.raises(
        SettingsError, match=r"settings: got .*, expected a stc\.settings\.Settings"
    ):
        StreamSession(oracle_tower(WEIGHTS), value)


# What is asked.


@pytest.fixture
def language() -> Iterator[StreamLanguage]:
    """A stream's language side on ONNX Runtime; its backend is closed afterwards."""
    bundle = language_case().bundle
    backend = OnnxRuntimeBackend(bundle)
    yield open_stream_language(bundle, backend, MemorySettings(), POOLED)
    backend.close()


@pytest.mark.parametrize(
    "most", [1.5, math.nan, math.inf, 0, -1, True, None, "8", [8], 10**7, 10**30], ids=repr
)
def test_an_answer_without_an_end_is_refused(language: StreamLanguage, most: Any) -> None:
    """`ask(q, 1.5)` or NaN would answer for ever: SettingsError."""
    with pytest.raises(SettingsError) as caught:
        language.ask("What is moving?", most)
    assert one_line(caught).startswith("--max-new-tokens: got ")


@pytest.mark.parametrize(
    "tokens", [[1.0, 2.0], [[1.0, 2.0, 3.0]], "tokens", None, [[1, 2]]], ids=repr
)
def test_tokens_of_no_frame_are_not_remembered(language: StreamLanguage, tokens: Any) -> None:
    """One axis too few, another model's width, whole numbers: a line with the shape expected."""
    with pytest.raises(LanguageError) as caught:
        language.append(tokens)
    assert "expected floats [k, " in one_line(caught)
    assert language.facts().tokens == 0


def test_numpys_whole_numbers_bound_an_answer(language: StreamLanguage) -> None:
    """A count read off an array: as many tokens as it says."""
    answer = language.ask("What is moving?", np.int64(2))
    list(answer)
    assert len(answer.token_ids) == 2


@pytest.mark.parametrize(
    "question", [None, 1, b"What?", ["What?"], {"role": "user"}, ...], ids=repr
)
def test_a_question_that_is_no_text_is_refused(language: StreamLanguage, question: Any) -> None:
    """Bytes off a socket, a list of messages: LanguageError."""
    for asked in (language.ask, language.check):
        with pytest.raises(LanguageError, match=r"question: got .*, expected text, a str"):
            asked(question)


@pytest.mark.parametrize("sampling", [None, 0.7, {"temperature": 0.7}, Sampling], ids=str)
def test_a_sampling_that_is_none_is_refused(language: StreamLanguage, sampling: Any) -> None:
    """A bare temperature: SettingsError that shows how to say it."""
    with pytest.raises(SettingsError, match=r"sampling: got .*Sampling\(temperature=0.7\)"):
        language.ask("What is moving?", 2, sampling)


@pytest.mark.parametrize("every", [0, -1, 1.5, math.nan, True, None, 10**30])
def test_frames_that_never_come_together_are_refused(language: StreamLanguage, every: Any) -> None:
    """A language call after half a frame, or after 10^30: SettingsError."""
    with pytest.raises(SettingsError, match="--prefill-every: got "):
        StreamLanguage(language.model, language._memory, None, every)


# After the end.


def test_a_closed_tower_is_told_on_any_backend(exported: Callable[[str], Exported]) -> None:
    """A program that pushes on after `tower.close()`: EngineError each time, never a result."""
    for tower in (exported("so400m heads").onnxruntime(), oracle_tower(WEIGHTS)):
        settings = replace(SETTINGS, budget=2)
        session = StreamSession(tower, settings)
        frame = moving_frames(1)[0]
        session.push(frame)
        tower.close()
        tower.close()
        for _ in range(2):
            with pytest.raises(EngineError, match="is closed; open the tower again"):
                session.push(frame)


def test_a_closed_device_is_told(tmp_path: Path) -> None:
    """The same on TensorRT."""
    rig = Rig(tmp_path)
    session, frame = rig.session(), device_frames(1)[0]
    session.push(frame)
    rig.tower.close()
    for _ in range(2):
        with pytest.raises(EngineError, match="is closed; open the tower again"):
            session.push(frame)


def test_a_question_to_a_closed_model_is_refused_and_an_answer_ends() -> None:
    """The backend is closed while an answer is read: EngineError, then the answer has ended."""
    bundle = language_case().bundle
    backend = OnnxRuntimeBackend(bundle)
    stream = open_stream_language(bundle, backend, MemorySettings(), POOLED)
    answer = stream.ask("What is moving?", 8)
    next(answer)
    backend.close()
    with pytest.raises(EngineError, match="is closed; open the tower again"):
        list(answer)
    assert answer.stopped == "error"
    assert list(answer) == []
    with pytest.raises(EngineError, match="is closed; open the tower again"):
        stream.ask("What is moving?", 8)


# What graphs give back.


def lying_tower(graph: str, output: str, lie: Callable[[Any], Any]) -> VisionTower:
    """The oracle's tower whose `graph` makes of its `output` what `lie` does."""
    names = [port.name for port in vision_graphs(WEIGHTS.spec.blocks)[graph].outputs]

    class Altered(OracleBackend):
        def __init__(self) -> None:
            super().__init__(*numpy_weights(WEIGHTS))
            honest = self._graphs[graph]

            def lying(*arrays: Any) -> tuple[Any, ...]:
                outputs = dict(zip(names, honest(*arrays), strict=True))
                return tuple({**outputs, output: lie(outputs[output])}.values())

            self._graphs[graph] = lying

    return VisionTower(Altered(), WEIGHTS.spec, "fp32")


def _first(value: int) -> Callable[[Any], Any]:
    return lambda indices: np.array([value, *indices[1:]], indices.dtype)


LIES: dict[str, Callable[[Any], Any]] = {
    "negative": _first(-1),
    "beyond": lambda indices: np.array([*indices[:-1], 10_000], indices.dtype),
    "least": _first(-(2**63)),
    "twice": lambda indices: np.array([*indices[:-1], indices[-2]], indices.dtype),
    "backwards": lambda indices: indices[::-1].copy(),
    "fewer": lambda indices: indices[:-1],
    "none": lambda indices: indices[:0],
    "more": lambda indices: np.append(indices, indices[-1] + 1),
    "two axes": lambda indices: indices[None],
    "int32": lambda indices: indices.astype(np.int32),
    "float": lambda indices: indices.astype(np.float64),
}
MISSHAPEN = {"fewer", "none", "more", "two axes", "int32", "float"}
"""What no buffer of the frame has room for: the engine says so itself."""


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("selection", ["shared", "layerwise"])
def test_indices_that_select_none_of_the_tokens_are_refused_before_use(
    lie: str, selection: Any
) -> None:
    """A select graph that was altered: EngineError naming graph and frame, no wrong tokens."""
    session = StreamSession(
        lying_tower(SELECT, INDICES, LIES[lie]), replace(SETTINGS, selection=selection)
    )
    first, second = moving_frames(2)
    session.push(first)
    with pytest.raises(EngineError) as caught:
        session.push(second)
    line = one_line(caught)
    assert line.startswith("select: indices is " if lie in MISSHAPEN else "graph select, frame 1: ")
    assert "expected" in line
    assert session.push(first).kind == "reference"


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_indices_that_keep_none_of_the_tokens_are_refused_before_use(
    lie: str, scoring: Any
) -> None:
    """A prune graph that was altered: EngineError naming graph and frame."""
    graph = prune_graph(scoring)
    tower = lying_tower(graph, KEPT_INDICES, LIES[lie])
    session = StreamSession(tower, replace(SETTINGS, pruner=scoring))
    with pytest.raises(EngineError) as caught:
        session.push(moving_frames(1)[0])
    said = f"{graph}: kept_indices is " if lie in MISSHAPEN else f"graph {graph}, frame 0: "
    assert one_line(caught).startswith(said)


@pytest.mark.parametrize(
    ("graph", "output", "budget"),
    [
        ("prune_dual_anchor", KEPT, 4),
        ("prune_dual_anchor", "frame_mean", 4),
        ("project", "tokens", 0),
    ],
)
def test_tokens_of_another_shape_are_refused(graph: str, output: str, budget: int) -> None:
    """More or fewer tokens than were asked for: EngineError naming graph and output."""
    tower = lying_tower(graph, output, lambda array: array[:-1])
    session = StreamSession(tower, replace(SETTINGS, budget=budget))
    with pytest.raises(EngineError, match=f"^{graph}: {output} is float32 "):
        session.push(moving_frames(1)[0])


@pytest.mark.parametrize(
    ("graph", "place", "lie"),
    [
        *((SELECT, 0, lie) for lie in ("negative", "twice", "backwards")),
        *(("prune_dual_anchor", 1, lie) for lie in ("negative", "beyond", "twice", "least")),
    ],
)
def test_indices_of_a_device_that_are_none_are_refused(
    graph: str, place: int, lie: str, tmp_path: Path
) -> None:
    """An engine that computes wrongly: EngineError; the next frame is a reference and right."""
    rig = Rig(tmp_path)
    graphs = numpy_graphs()
    honest, lies = graphs[graph], [False]

    def lying(*arrays: Any) -> tuple[Any, ...]:
        outputs = list(honest(*arrays))
        if lies[0]:
            outputs[place] = LIES[lie](outputs[place])
        return tuple(outputs)

    rig.trt = FakeTensorRt(rig.cuda, {**graphs, graph: lying}, rig.manifest.graphs)
    rig.open()
    session, oracle = rig.session(), oracle_session(DEVICE_SETTINGS)
    stream = device_frames(4)
    for frame in stream[:2]:
        assert_equal(session.push(frame), oracle.push(frame))
    lies[0] = True
    with pytest.raises(EngineError, match=f"graph {graph}, frame 2: indices from "):
        session.push(stream[2])
    lies[0] = False
    report = session.push(stream[3])
    assert report.kind == "reference"
    np.testing.assert_array_equal(report.recomputed, np.arange(25))


def test_a_preset_is_a_whole_setting_and_half_a_budget_is_none() -> None:
    """`Settings(budget=1.5)`: SettingsError; every preset makes a session."""
    with pytest.raises(SettingsError, match=r"--budget: got 1.5, expected a whole number"):
        Settings(budget=1.5)  # type: ignore[arg-type]
    for preset in PRESETS.values():
        assert StreamSession(oracle_tower(WEIGHTS), replace(preset, budget=1)).kept == 1
