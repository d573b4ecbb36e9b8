"""A benchmark's questions asked while its videos run, and the answers as they come.

Questions about one video are asked in one pass over it; each sees the frames up to its own time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stc.bundles.bundle import Bundle
from stc.engines.engine import Backend
from stc.errors import LanguageError, NonFiniteError, SettingsError, VideoError
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import StreamLanguage, open_model
from stc.runtime.evaluate.benchmarks.item import Item
from stc.runtime.evaluate.benchmarks.rules import proactive_answer
from stc.runtime.evaluate.method import Method, Towers
from stc.runtime.evaluate.reader import spec_of
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.report import Prefill
from stc.runtime.video.clock import FrameSampler
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor

FPS = 0.5
"""Frames sampled per second, as ReKV does."""
MOST = 16
"""Text tokens of an answer at most, as in ReKV."""
EARLY_S = 1e-3
"""How much later than its question a frame may be stamped and still be seen."""


@dataclass(frozen=True)
class Pass:
    """Questions that one pass over a video answers, which begins at `from_s` seconds."""

    video: Path
    from_s: float
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Given:
    """An answer, and what had been seen when it was asked for: frames, and tokens of them."""

    text: str
    frames: int
    tokens: int


def passes(items: Iterable[Item]) -> list[Pass]:
    """The passes that `items` take, in their order."""
    found: dict[tuple[Path, float], list[Item]] = {}
    for item in items:
        found.setdefault((item.video, item.from_s), []).append(item)
    return [Pass(video, from_s, tuple(some)) for (video, from_s), some in found.items()]


def digest(items: Iterable[Item]) -> str:
    """sha256 over all that is asked and how it is scored; not over where the videos are."""
    total = hashlib.sha256()
    for one in items:
        told = (one.id, one.rule, one.right, one.question, one.about, one.begin)
        times = (float(one.from_s), None if one.until_s is None else float(one.until_s), one.polls)
        total.update(repr((told, times)).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How videos are watched and questions answered, greedily: frames sampled per second, what is
    remembered of them, and at most `most` text tokens of an answer.

    Raises SettingsError for a rate that is none.
    """

    memory: MemorySettings
    fps: float = FPS
    most: int = MOST

    def __post_init__(self) -> None:
        FrameSampler(self.fps, 0.0)

    def to_json(self) -> dict[str, Any]:
        """The same, of strings and numbers, by the names of the flags."""
        memory = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self.memory).items()
        }
        return {"fps": self.fps, "max_new_tokens": self.most, "memory": memory}


class Viewer:
    """Watches videos through methods, and answers as the decoder of `bundle` on `backend` does.

    Raises LanguageError when the bundle has no language side or no prompt of its own, EngineError
    when a graph cannot be loaded.
    """

    def __init__(
        self,
        towers: Towers,
        bundle: Bundle,
        backend: Backend,
        asking: Asking,
    ) -> None:
        self.towers, self.asking = towers, asking
        self._prompt = Prompt(bundle.companions(), spec_of(bundle), bundle.root)
        self._model = open_model(bundle, backend)
        self.preprocess = Preprocessor(towers.spec)

    def check(self, items: Iterable[Item]) -> None:
        """Raise LanguageError for a question that cannot be asked whatever is seen."""
        for item in items:
            try:
                self._prompt.after(item.question, item.begin)
                self._prompt.plain(item.about)
            except LanguageError as error:
                subject = f"{error.subject} {item.id}"
                raise LanguageError(subject, error.got, error.expected, error.fix) from error

    def watch(self, label: str, method: Method, view: Pass) -> Iterator[tuple[Item, Given]]:
        """The answers to the questions of `view` by `method`, which is called `label`.

        Raises VideoError when the video cannot be read, at its start or on its way, or has no frame
        that a question could see, SettingsError when method and memory do not go together,
        LanguageError when frames or a question do not fit the memory, EngineError or NonFiniteError
        when a graph fails.
        """
        seen = _Seen(self, label, method, view)
        due = _due(view.items)
        with open_video(str(view.video), fps=self.asking.fps) as source:
            for frame in source:
                while due and frame.time_s > due[0][0] + EARLY_S:
                    yield from seen.asked(due, *due.pop(0))
                if not due:
                    return
                if frame.time_s >= view.from_s - EARLY_S:
                    seen.push(frame)
            if source.loss is not None:
                raise source.loss
        while due:
            yield from seen.asked(due, *due.pop(0))

    def language(self, page: int) -> StreamLanguage:
        """A new stream's, of frames of `page` tokens."""
        settings = self.asking.memory
        memory = settings.make(self._model, len(self._prompt.before), page)
        return StreamLanguage(self._model, memory, self._prompt, settings.prefill_every)


class _Seen:
    """One video through one method, as far as it has been seen."""

    def __init__(self, viewer: Viewer, label: str, method: Method, view: Pass) -> None:
        self._viewer, self._label, self._view = viewer, label, view
        self._encoder = method.open(viewer.towers)
        self._language: StreamLanguage | None = None
        self._page = 0
        self._frames = self._tokens = 0

    def push(self, frame: Frame) -> None:
        """`frame` is seen and remembered."""
        pixels = self._viewer.preprocess(frame.rgb).astype(np.float32, copy=False)
        tokens = self._encoder.push(pixels).tokens
        self._frames += 1
        if not np.isfinite(tokens).all():
            where = f"method {self._label}, frame {frame.index}"
            raise NonFiniteError(where, "NaN or infinity in its tokens")
        if not len(tokens):
            return
        if self._language is None or not self._page:
            self._page = len(tokens)
            self._language = self._viewer.language(self._page)
        if len(tokens) != self._page and self._viewer.asking.memory.memory == "rekv":
            raise SettingsError(
                f"--methods {self._label}",
                f"keeps {self._page} tokens of a frame, then {len(tokens)}",
                "as many of every frame with --memory rekv",
                "use --memory window or all",
            )
        _refuse_left_out(self._language.append(tokens))
        self._tokens += len(tokens)

    def asked(
        self, due: list[tuple[float, Item]], second: float, item: Item
    ) -> Iterator[tuple[Item, Given]]:
        """The answer to `item` at `second`; none yet where it is repeated later, as `due` says."""
        if not self._frames:
            if item.polls is not None and second < item.polls.last:
                return
            got = f"no frame from second {self._view.from_s:g} to {second:g}"
            raise VideoError(self._view.video, got)
        reply = self._ask(item, item.question)
        if item.polls is not None:
            said_yes = "yes" in reply.lower()
            if not said_yes and second < item.polls.last:
                return
            if said_yes:
                due[:] = [one for one in due if one[1] is not item]
                reply = self._ask(item, item.polls.then)
            reply = proactive_answer(int(second), reply)
        yield item, Given(reply, self._frames, self._tokens)

    def _ask(self, item: Item, question: str) -> str:
        if self._language is None:
            self._language = self._viewer.language(self._viewer.towers.spec.pooled)
        most = self._viewer.asking.most
        answer = self._language.ask(question, most, begin=item.begin, sought=item.about)
        _refuse_left_out(self._language.prefilled())  # frames that waited for others
        return str(answer)


def _refuse_left_out(told: Prefill) -> None:
    """Raise why frames could not be remembered: an answer without them would be another's."""
    if told.error is not None:
        raise told.error


def _due(items: Iterable[Item]) -> list[tuple[float, Item]]:
    """When each is asked, in order; one that is repeated more than once."""
    due: list[tuple[float, Item]] = []
    for item in items:
        if item.polls is not None:
            due += [(second, item) for second in range(item.polls.first, item.polls.last + 1)]
        else:
            due.append((float("inf") if item.until_s is None else item.until_s, item))
    return sorted(due, key=lambda one: one[0])
