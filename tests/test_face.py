"""The public face, `stc.runtime`: its names, what importing it costs, and that it runs."""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import stc.runtime as stc
from stc.engines import onnxruntime_backend, open_tensorrt
from stc.runtime.commands import run as run_command
from tests.as_user import CLIP
from tests.clips import numbered_clip
from tests.device_cases import Rig, write_device_bundle
from tests.own_process import run_python
from tests.session_case import assert_equal
from tests.trace_cache import TraceCache

QUESTION = "What is moving?"
HEAVY = ("numpy", "pydantic", "rich", "onnxruntime", "av", "PIL", "tokenizers", "tensorrt")


@pytest.fixture
def stream(demo_bundle: Path) -> Iterator[stc.Stream]:
    with stc.open(demo_bundle) as opened:
        yield opened


@pytest.fixture
def talkative(kept_traces: TraceCache) -> Iterator[stc.Stream]:
    """A stream whose answers are long: the demo's are a word."""
    from tests.language_cases import language_case

    with stc.open(language_case().bundle.root) as opened:
        yield opened


# What it names, and what that imports.


def test_nothing_is_imported_before_it_is_used() -> None:
    code = f"""
import sys
import stc.runtime as stc
dir(stc), stc.__all__, stc.StcError, stc.VideoError
print([name for name in {HEAVY} if name in sys.modules])
stc.Frame
print("numpy" in sys.modules, "onnxruntime" in sys.modules, "av" in sys.modules)
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[]", "True False False"]


def test_every_name_is_there_whatever_was_imported_before() -> None:
    """No module of the package has a name of the face, which importing it would replace."""
    code = """
import importlib, pkgutil, types
import stc.runtime as stc
early = {name: getattr(stc, name) for name in stc.__all__}
for module in pkgutil.walk_packages(stc.__path__, "stc.runtime."):
    importlib.import_module(module.name)
for name in stc.__all__:
    assert getattr(stc, name) is early[name], name
    assert name in dir(stc), name
print(len(early))
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(stc.__all__)}\n"


def test_names_are_classes_and_one_function() -> None:
    functions = [name for name in stc.__all__ if not inspect.isclass(getattr(stc, name))]
    assert functions == ["open"]
    assert list(inspect.signature(stc.open).parameters)[:2] == ["path", "backend"]
    with pytest.raises(AttributeError, match=r"module 'stc\.runtime' has no attribute 'opne'"):
        stc.opne  # type: ignore[attr-defined]  # noqa: B018


def test_every_error_is_an_stc_error() -> None:
    errors = [getattr(stc, name) for name in stc.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, stc.StcError) for error in errors)


# What it runs.


def test_it_runs_what_stc_run_does(
    demo_bundle: Path, run_main: Callable[..., CompletedProcess[str]]
) -> None:
    flags = ["--preset", "released", "--budget", "20", "--memory", "rekv"]
    words = [demo_bundle, "--video", CLIP, "--fps", "2", "--frames", "5", "--ask", QUESTION]
    ran = run_main(run_command.main, *words, *flags, "--max-new-tokens", "8", "--json", "-")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    with stc.open(demo_bundle, preset="released", budget=20, memory="rekv") as stream:
        reports = list(stream.watch(str(CLIP), fps=2, frames=5))
        answer = stream.ask(QUESTION, max_new_tokens=8)
        text = "".join(answer)
        assert asdict(stream.settings) == told["settings"]
        assert stream.backend == "onnxruntime-cpu"
        assert stream.references_bytes == stream.session.references_bytes > 0
    assert [report.index for report in reports] == [0, 1, 2, 3, 4]
    assert reports[-1].time_s == pytest.approx(2.0, abs=0.2)
    assert told["summary"]["frames"] == len(reports)
    assert told["summary"]["reference_frames"] == sum(one.kind == "reference" for one in reports)
    [question] = told["language"]["questions"]
    assert question["answer"] == text == str(answer) == answer.text
    assert question["memory"]["policy"] == "rekv"


def test_an_answer_is_printed_whole(talkative: stc.Stream) -> None:
    stream = talkative
    list(stream.watch(CLIP, fps=1, frames=3))
    whole = "".join(stream.ask(QUESTION, max_new_tokens=6))
    assert whole
    answer = stream.ask(QUESTION, max_new_tokens=6)
    first = next(answer)
    assert f"{answer}" == whole
    assert whole.startswith(first)
    assert answer.stopped == "length"
    drawn = {
        str(stream.ask(QUESTION, max_new_tokens=6, sampling=stc.Sampling(temperature=9.0, seed=n)))
        for n in range(4)
    }
    assert len(drawn) > 1


def test_nothing_is_answered_before_a_frame_was_seen(talkative: stc.Stream) -> None:
    told = "question: no frame was pushed yet; push one first"
    for _ in range(2):
        with pytest.raises(stc.LanguageError) as caught:
            talkative.ask(QUESTION)
        assert str(caught.value) == told
        with pytest.raises(stc.VideoError):  # one that was not computed is none
            talkative.push(np.zeros((4, 4), np.uint8))
    talkative.push(np.zeros((4, 4, 3), np.uint8))
    assert str(talkative.ask(QUESTION, max_new_tokens=2))


def test_a_cancelled_answer_has_the_text_so_far(talkative: stc.Stream) -> None:
    talkative.push(np.zeros((4, 4, 3), np.uint8))
    answer = talkative.ask(QUESTION)
    first = next(answer)
    answer.cancel()
    assert str(answer) == first


def test_pictures_are_frames(demo_bundle: Path, stream: stc.Stream) -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, 48, 64, 3), np.uint8)
    with stc.open(demo_bundle, language=False) as other:
        for index, rgb in enumerate(pictures):
            before = time.monotonic() - other._start
            got = other.push(rgb)
            assert before <= got.time_s <= time.monotonic() - other._start
            frame = stc.Frame(index=index, time_s=7.0, rgb=rgb)
            assert_equal(got, stream.push(frame))
    assert stream.push(pictures[0], time_s=9.5).time_s == 9.5
    assert stream.push(frame).time_s == 7.0
    assert stream.push(frame, 8.0).time_s == 8.0


@pytest.mark.parametrize(
    ("value", "time_s", "told"),
    [
        (None, None, "picture: got None of type NoneType, expected uint8"),
        (np.zeros((4, 4), np.uint8), None, r"picture: uint8 \[4, 4\], expected uint8"),
        (np.zeros((4, 4, 3), np.uint8), -1.0, r"frame\.time_s: got -1\.0"),
    ],
)
def test_what_is_no_picture_is_refused(
    stream: stc.Stream, value: Any, time_s: float | None, told: str
) -> None:
    with pytest.raises(stc.VideoError, match=told):
        stream.push(value, time_s)


# Sources.


def test_a_source_is_closed_with_its_iterator(stream: stc.Stream) -> None:
    with closing(stream.watch(CLIP)) as reports:
        unopened = stream.source
        next(reports)
        source = stream.source
        assert source is not None
    assert unopened is None
    assert next(source, None) is None  # as after `close`
    assert next(reports, None) is None
    for report in stream.watch(CLIP):
        assert report.index == 1
        break
    assert stream.source is not source
    assert stream.source is not None
    assert next(stream.source, None) is None


@pytest.fixture
def cut_clip(tmp_path: Path) -> Path:
    clip = numbered_clip(tmp_path, options={"movflags": "faststart"})
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 6 // 10])
    return clip


def test_of_two_sources_at_once_each_ends_by_its_own_loss(
    stream: stc.Stream, cut_clip: Path
) -> None:
    whole, cut = stream.watch(CLIP, frames=8), stream.watch(cut_clip)
    next(cut)
    next(whole)
    with pytest.raises(stc.VideoError, match="ended early: "):
        list(cut)
    assert len(list(whole)) > 0


def test_a_source_that_is_lost_raises_after_its_last_frame(
    stream: stc.Stream, cut_clip: Path
) -> None:
    clip = cut_clip
    reports = stream.watch(clip)
    seen = []
    with pytest.raises(stc.VideoError, match="ended early: "):
        for report in reports:
            seen.append(report.index)
    assert seen == list(range(len(seen)))
    assert 0 < len(seen) < 20
    assert len(list(stream.watch(clip, frames=2))) == 2


@pytest.mark.parametrize(
    ("source", "keywords", "error", "told"),
    [
        ("missing.mp4", {}, stc.VideoError, "missing.mp4: no such file"),
        (0, {}, stc.VideoError, "a camera is: --video /dev/video0"),
        (CLIP, {"fps": -1}, stc.SettingsError, "fps"),
        (CLIP, {"frames": 0}, stc.SettingsError, "--frames: got 0, expected at least 1"),
        (CLIP, {"live": True}, stc.SettingsError, "--live: requires an http"),
        (CLIP, {"give_up_s": 1.0}, stc.SettingsError, "--give-up-s: requires a live"),
        (CLIP, {"probe_s": 1.0}, stc.SettingsError, "--probe-s: requires a live"),
        (CLIP, {"rtsp_transport": "tcp"}, stc.SettingsError, "--rtsp-transport: requires"),
    ],
    ids=str,
)
def test_a_source_that_stc_run_refuses_is_refused(
    stream: stc.Stream, source: Any, keywords: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        next(stream.watch(source, **keywords))
    assert "\n" not in str(caught.value)


# Opening and closing.


@pytest.mark.parametrize(
    ("keywords", "error", "told"),
    [
        ({"backend": "trt"}, stc.SettingsError, "--backend: got 'trt', expected onnxruntime, "),
        ({"device": "gpu"}, stc.SettingsError, "--device: got 'gpu', expected cpu or cuda"),
        (
            {"device": "cuda", "backend": "tensorrt"},
            stc.SettingsError,
            "--device cuda: --backend tensorrt, expected --backend onnxruntime",
        ),
        ({"preset": "papier"}, stc.SettingsError, "--preset: got 'papier', expected one of"),
        ({"preset": 3}, stc.SettingsError, "--preset: got 3, expected one of cacher"),
        ({"budget": 10**6}, stc.SettingsError, "--budget: got 1000000, expected at most 49"),
        ({"recompute_ratio": 0}, stc.SettingsError, "--recompute-ratio: got 0, expected 0 < R"),
        ({"memory": "some"}, stc.SettingsError, "--memory: got 'some', expected window, rekv"),
        ({"memory": "all", "language": False}, stc.SettingsError, "--memory: cannot be combined"),
        ({"weights": "int4"}, stc.SettingsError, "weights int4: .* has none but its own; export"),
        ({"weights": ["int4"]}, stc.SettingsError, "has none but its own; name none"),
        ({"backend": "tensorrt"}, stc.EngineError, "tensorrt: Python package tensorrt not found"),
    ],
    ids=str,
)
def test_what_cannot_be_opened_is_one_line(
    demo_bundle: Path, keywords: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        stc.open(demo_bundle, **keywords)
    assert "\n" not in str(caught.value)


def test_what_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", str(tmp_path), None):
        with pytest.raises(stc.BundleError):
            stc.open(path)  # type: ignore[arg-type]


def test_what_is_not_given_is_the_bundles(demo_bundle: Path) -> None:
    own = stc.Settings(reference_interval=3, budget=0)
    with stc.open(str(demo_bundle), preset=own, recompute_ratio=0.5, language=False) as stream:
        assert stream.settings == stc.Settings(reference_interval=3, budget=0, recompute_ratio=0.5)
        with pytest.raises(stc.LanguageError, match="opened without a language side"):
            stream.ask(QUESTION)
    memory = stc.MemorySettings(window=100, prefill_every=2)
    with stc.open(demo_bundle, memory=memory) as stream:
        reports = [report.prefill for report in stream.watch(CLIP, frames=2)]
        assert [prefill.frames for prefill in reports if prefill is not None] == [0, 2]


def test_a_bundle_without_a_language_side_streams_and_refuses_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_device_bundle(tmp_path / "bundle")
    rig = Rig(tmp_path / "rig")
    monkeypatch.setattr(open_tensorrt, "open_tensorrt", lambda *_, **__: rig.backend)
    asking: list[dict[str, Any]] = [{"language": True}, {"memory": "window"}]
    for keywords in asking:
        with pytest.raises(stc.LanguageError, match="has no language side"):
            stc.open(bundle, backend="tensorrt", **keywords)
        # Whatever was opened before is given back.
        assert (rig.device.closed, rig.cuda.memory, rig.cuda.streams) == (True, {}, {})
        rig.open()
    with stc.open(bundle, backend="tensorrt") as stream:
        assert stream.backend == "tensorrt"
        assert stream.push(np.zeros((20, 20, 3), np.uint8)).kind == "reference"
    assert (rig.device.closed, rig.cuda.memory, rig.cuda.streams) == (True, {}, {})


def test_engines_in_the_bundle_are_what_runs(
    accepted_demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.onnx_device import mock_machine

    path = shutil.copytree(accepted_demo_bundle, tmp_path / "bundle")
    with monkeypatch.context() as machine:
        cuda = mock_machine(machine, path, "sm89")
        with stc.open(path) as stream:
            assert stream.backend == "tensorrt-rtx"
            kinds = [report.kind for report in stream.watch(CLIP, frames=2)]
            assert kinds == ["reference", "reuse"]
            assert str(stream.ask(QUESTION, max_new_tokens=2)) is not None
        assert (cuda.runtime.memory, cuda.runtime.streams) == ({}, {})
    with stc.open(path, backend="onnxruntime", language=False) as stream:
        assert stream.backend == "onnxruntime-cpu"


def test_four_bit_answers_are_given_by_their_own_graphs() -> None:
    from tests.language_cases import language_case

    case = language_case(int4=32)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    logits = []
    with pytest.raises(stc.SettingsError, match="none of its graphs is run"):
        stc.open(case.bundle.root, weights="int4", language=False)
    for weights in (None, "int4"):
        with stc.open(case.bundle.root, weights=weights) as stream:
            report = stream.push(picture)
            assert report.prefill is not None
            assert report.prefill.frames == 1
            answer = stream.ask(QUESTION, max_new_tokens=4)
            logits.append(answer.logits)
        with pytest.raises(stc.EngineError, match="is closed"):
            list(answer)
    error = np.abs(logits[0] - logits[1]).max()
    assert 1e-3 < error < np.abs(logits[0]).max()


def test_a_closed_stream_refuses(talkative: stc.Stream) -> None:
    stream = talkative
    stream.push(np.zeros((4, 4, 3), np.uint8))
    answer = stream.ask(QUESTION)
    stream.close()
    stream.close()
    for use in (
        lambda: stream.push(np.zeros((4, 4, 3), np.uint8)),
        lambda: next(stream.watch(CLIP)),
        lambda: stream.ask(QUESTION),
        lambda: str(answer),
    ):
        with pytest.raises(stc.EngineError, match="is closed"):
            use()


@pytest.mark.parametrize("owns_process", [False, True])
def test_threads_are_shared_only_when_asked(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, owns_process: bool
) -> None:
    shared: list[bool] = []
    monkeypatch.setattr(onnxruntime_backend, "share_threads", lambda: shared.append(True))
    stc.open(demo_bundle, language=False, owns_process=owns_process).close()
    assert shared == [True] * owns_process
