"""How a video of a benchmark is watched and asked about, answers and memory being scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.errors import LanguageError, SettingsError, VideoError
from stc.runtime.evaluate.benchmarks.catalogue import BENCHMARKS, load
from stc.runtime.evaluate.benchmarks.running import Asking, Viewer, passes
from stc.runtime.evaluate.method import Encoded, Towers
from stc.runtime.evaluate.methods import METHODS
from stc.runtime.evaluate.methods.stc_methods import StcMethod
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.report import Prefill
from stc.runtime.stream.opening import open_backend
from stc.runtime.vision.tower import VisionTower
from tests import benchmark_files as files
from tests.benchmark_files import clip, write_json, write_ovo


@pytest.fixture
def ovo(tmp_path: Path) -> Path:
    return write_ovo(tmp_path / "ovo")


class Scripted:
    """A language side that says what `reply` makes of a question, and remembers the asking."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.frames = 0
        self.asked: list[tuple[int, str, int, str, str]] = []
        self._reply = reply

    def append(self, tokens: object) -> Prefill:
        self.frames += 1
        return Prefill(frames=1)

    def prefilled(self) -> Prefill:
        return Prefill()

    def ask(self, question: str, most: int, *, begin: str, sought: str) -> str:
        self.asked.append((self.frames, question, most, begin, sought))
        return self._reply(question)


@pytest.fixture
def viewer(demo_bundle: Path) -> Iterator[Viewer]:
    """The demo, watching a frame each second."""
    bundle = Bundle.open(demo_bundle)
    backend = open_backend(bundle, "cpu", owns_process=False)
    tower = VisionTower(backend, bundle.manifest.vision, "fp32")
    with Towers(bundle, tower) as towers:
        yield Viewer(towers, bundle, backend, Asking(memory=MemorySettings(), fps=1))
    backend.close()


@pytest.mark.parametrize(
    ("yes_at", "expected"), [(2, "3: It is full."), (99, "7: no"), (0, "2: It is full.")]
)
def test_a_proactive_question_is_repeated_until_a_yes(
    yes_at: int, expected: str, viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "questions_proactive.json", files.PROACTIVE)
    clip(tmp_path / "videos" / "sample_1_proactive.mp4", seconds=10)
    [view] = passes(load(BENCHMARKS["streamingbench"], tmp_path).items)

    def reply(question: str) -> str:
        if "right time" not in question:
            return "It is full."
        return "Yes." if language.frames > yes_at else "no"

    language = Scripted(reply)
    monkeypatch.setattr(viewer, "language", lambda page: language)
    [(item, given)] = viewer.watch("paper", METHODS["paper"], view)
    assert (item.id, given.text) == ("proactive[0].0", expected)
    # Frames from second 1 on: two of them at second 2.
    assert language.asked[0][0] == 2
    last = int(expected[0])
    assert given.frames == last
    assert len([one for one in language.asked if "right time" in one[1]]) == last - 1
    if yes_at != 99:
        assert language.asked[-1][1] == view.items[0].polls.then  # type: ignore[union-attr]


def test_a_question_that_could_see_no_frame_is_not_answered(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The video ends before the question is put."""
    write_json(tmp_path / "questions_proactive.json", files.PROACTIVE)
    clip(tmp_path / "videos" / "sample_1_proactive.mp4", seconds=1)
    [view] = passes(load(BENCHMARKS["streamingbench"], tmp_path).items)
    language = Scripted(lambda _: "no")
    monkeypatch.setattr(viewer, "language", lambda page: language)
    with pytest.raises(VideoError, match=r"proactive.mp4: no frame from second 1 to 7"):
        list(viewer.watch("paper", METHODS["paper"], view))
    assert language.asked == []


def test_a_method_that_keeps_now_more_now_less_needs_another_memory(
    viewer: Viewer, ovo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are frames of one size."""
    [view, *_] = passes(load(BENCHMARKS["ovo-bench"], ovo).items)
    width = viewer.towers.spec.language_width
    sizes = iter((0, 5, 0, 4))

    class Varying:
        def push(self, pixels: object) -> Encoded:
            none = np.empty(0, np.int64)
            tokens = np.zeros((next(sizes), width), np.float32)
            return Encoded(tokens, none, None, none, 0)

    monkeypatch.setattr(StcMethod, "open", lambda *_: Varying())
    viewer.asking = Asking(memory=MemorySettings(memory="rekv"), fps=1)
    with pytest.raises(SettingsError, match=r"paper: keeps 5 tokens of a frame, then 4, expected"):
        list(viewer.watch("paper", METHODS["paper"], view))
    sizes = iter((0, 5, 0, 4))
    viewer.asking = Asking(memory=MemorySettings(), fps=1, most=1)
    [(_, given)] = viewer.watch("paper", METHODS["paper"], view)
    assert (given.frames, given.tokens) == (4, 9)


def test_answers_are_begun_and_frames_sought_by_the_bare_question(
    viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "mlvu_dev.json", files.MLVU[:1])
    clip(tmp_path / "videos" / "1_plotQA" / "movie_1.mp4", seconds=4)
    [view] = passes(load(BENCHMARKS["mlvu"], tmp_path).items)
    language = Scripted(lambda _: "A")
    monkeypatch.setattr(viewer, "language", lambda page: language)
    given = list(viewer.watch("paper", METHODS["paper"], view))
    assert [one.frames for _, one in given] == [4, 4]  # one pass for both questions
    _, question, most, begin, sought = language.asked[1]
    assert (most, begin, sought) == (16, "Best option: (", "And the table?")
    assert question == view.items[1].question


@pytest.mark.parametrize("when", ["append", "prefilled"])
def test_frames_that_cannot_be_remembered_end_the_run(
    when: str, viewer: Viewer, ovo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that waited for others when the question came."""
    [view, *_] = passes(load(BENCHMARKS["ovo-bench"], ovo).items)
    language = Scripted(lambda _: "A")
    lost = Prefill(left_out=1, error=LanguageError("tokens", "too many"))
    monkeypatch.setattr(language, when, lambda *_: lost)
    monkeypatch.setattr(viewer, "language", lambda page: language)
    with pytest.raises(LanguageError, match="too many"):
        list(viewer.watch("paper", METHODS["paper"], view))
