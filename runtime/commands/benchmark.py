"""`stc-eval --benchmark` and `stc-eval --score`: public benchmarks, run and scored."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stc.bundles.bundle import Bundle
from stc.errors import SettingsError, VideoError
from stc.runtime.evaluate.benchmarks.catalogue import (
    BENCHMARKS,
    answer_lines,
    benchmark_of,
    load,
    missing,
    read_answers,
)
from stc.runtime.evaluate.benchmarks.item import Benchmark, Item, Loaded
from stc.runtime.evaluate.benchmarks.running import (
    FPS,
    MOST,
    Asking,
    Pass,
    Viewer,
    digest,
    passes,
)
from stc.runtime.evaluate.benchmarks.scores import lines, score
from stc.runtime.evaluate.method import Method, Towers
from stc.runtime.evaluate.methods import methods_of
from stc.runtime.evaluate.reader import spec_of
from stc.runtime.evaluate.store import NAMES as STORED
from stc.runtime.evaluate.store import SceneFile, file_name, goes_on, open_store, written
from stc.runtime.figures.machine import machine_facts
from stc.runtime.memory import settings as memory
from stc.runtime.output import document_output, refuse_shared_paths, whole_file
from stc.runtime.parity.report import parity_console
from stc.runtime.parity.sides import PYTORCH
from stc.runtime.stream import opening
from stc.runtime.vision.tower import VisionTower
from stc.shell import command
from stc.shell.command import Console, stdout_outlived
from stc.shell.progress import PLAIN_S, Progress
from stc.shell.ranges import flag_of, number_flag

METHODS = "off,paper"
"""What a benchmark is run with by default: dense frames, and both parts of STC."""
ANSWERS = "answers.jsonl"
SHOWN = 5
"""Missing videos that a summary names."""

Answers = dict[str, dict[str, str | None]]
Say = Callable[[str], None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of both; see `check`."""
    group = parser.add_argument_group("public benchmarks")
    names = tuple(BENCHMARKS)
    asks = "ask its questions; --data is the folder of its files; default none"
    group.add_argument("--benchmark", choices=names, help=asks)
    rate = f"frames sampled per second, default {FPS:g}"
    group.add_argument("--fps", type=number_flag, metavar="F", help=rate)
    scores = "score the --answers to this benchmark, without BUNDLE; default none"
    group.add_argument("--score", choices=names, help=scores)
    told = "JSON lines: a question's task and right answer, and what each method answered"
    group.add_argument("--answers", type=Path, metavar="FILE", help=told)
    memory.add_flags(parser)


def check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Raise SettingsError for a flag that has no effect beside the others, or misses another."""
    given = [name for name, value in vars(flags).items() if value != parser.get_default(name)]
    if flags.score is not None:
        _refuse(given, "--score", set(given) - {"score", "answers", "json"})
        if flags.answers is None:
            raise SettingsError("--score", "requires --answers FILE")
        return
    if flags.answers is not None:
        raise SettingsError("--answers", "requires --score")
    if flags.bundle is None:
        parser.error("the following arguments are required: BUNDLE")
    if flags.benchmark is not None:
        _refuse(given, "--benchmark", {"frames"})
        if flags.data is None:
            raise SettingsError("--benchmark", "requires --data DIR, the folder of its files")
        return
    for name in ("fps", *memory.NAMES):
        if name in given:
            raise SettingsError(flag_of(name), "requires --benchmark")


def _refuse(given: Sequence[str], flag: str, others: set[str]) -> None:
    for name in given:
        if name in others:
            other = "BUNDLE" if name == "bundle" else flag_of(name)
            raise SettingsError(flag, f"cannot be combined with {other}")


def score_answers(flags: argparse.Namespace) -> int:
    """The answers of a file are scored."""
    benchmark = benchmark_of("--score", flags.score)
    taken = {"--answers": flags.answers, "--json": flags.json}
    refuse_shared_paths(taken, video=None, bundle=flags.answers)
    with stdout_outlived(), document_output(flags.json) as write:
        questions, answers = read_answers(benchmark, flags.answers)
        methods = score(benchmark, questions, answers)
        console = parity_console()
        for line in lines(benchmark, methods):
            console.say(line)
        write({"benchmark": benchmark.name, "methods": methods})
    return 0


def evaluate(flags: argparse.Namespace, folder: Path) -> int:
    """A benchmark is run; what is answered is kept below `folder`, and the same call goes on."""
    opening.check_device(flags.device, flags.backend, flags.weights)
    benchmark = benchmark_of("--benchmark", flags.benchmark)
    methods = methods_of(flags.methods or METHODS)
    output = flags.output or folder.with_name(f"{folder.name}-{benchmark.name}")
    refuse_shared_paths(
        {"--json": flags.json, "--output": output},
        video=None,
        bundle=flags.bundle,
        checkpoint=flags.checkpoint,
    )
    asking = Asking(
        memory=memory.from_flags(flags),
        fps=FPS if flags.fps is None else flags.fps,
        most=MOST if flags.max_new_tokens is None else flags.max_new_tokens,
    )
    bundle = Bundle.open(flags.bundle)
    spec_of(bundle)
    loaded = load(benchmark, Path(flags.data))
    settings = {label: one.settings(bundle.manifest.vision) for label, one in methods.items()}
    told = {
        "bundle": bundle.manifest.provenance.checkpoint,
        "bundle_sha256": hashlib.sha256(bundle.manifest.model_dump_json().encode()).hexdigest(),
        "precision": bundle.manifest.provenance.precision,
        "backend": flags.backend,
        "device": flags.device,
        "weights": flags.weights,
        "benchmark": benchmark.name,
        **asking.to_json(),
    }
    try:
        names = (*STORED, *_kept_names(benchmark, methods))
        written = document_output(flags.json, output, names)
        with stdout_outlived(), ExitStack() as opened, written as write:
            run = _Run(flags, bundle, methods, asking, loaded.items[: flags.limit], opened)
            if not output.exists():
                run.open()  # what cannot be run leaves no folder behind
            store = opened.enter_context(open_store(output))
            header = {**told, "questions_sha256": digest(loaded.items)}
            for label, method in methods.items():
                own = {"settings": settings[label], "source": method.source}
                run.files[label] = store.open(label, {**header, **own}, force=flags.force)
            unread = run.answer()
            figures = _report(benchmark, loaded, run, unread, output)
            for label, method in methods.items():
                about = {"about": method.about, "source": method.source}
                figures["methods"][label] |= {**about, "settings": settings[label]}
            write({**told, **figures, "machine": machine_facts()})
    except KeyboardInterrupt:
        command.stop_handled()
        line = f"interrupted; answers are in {output}, the same command goes on"
        Console(stderr=True).say(line)
        return command.INTERRUPTED
    return 0


class _Run:
    """The questions `items` to `methods`, and the `files` of their answers.

    gone: videos that are not there.
    """

    def __init__(
        self,
        flags: argparse.Namespace,
        bundle: Bundle,
        methods: Mapping[str, Method],
        asking: Asking,
        items: Sequence[Item],
        opened: ExitStack,
    ) -> None:
        self.items = items
        self.files: dict[str, SceneFile] = {}
        self.gone = missing(items)
        self._flags, self._bundle, self._asking = flags, bundle, asking
        self._methods, self._opened = methods, opened
        self._viewer: Viewer | None = None

    def open(self) -> Viewer:
        """What watches and answers, opened once; raises as `Viewer` and for what it cannot ask."""
        if self._viewer is None:
            flags, manifest = self._flags, self._bundle.manifest
            rows = self._asking.memory.rows(manifest.vision.pooled)
            backend = opening.open_backend(
                self._bundle, flags.device, flags.backend, flags.weights, context=rows
            )
            self._opened.callback(backend.close)
            tower = VisionTower(backend, manifest.vision, manifest.provenance.precision)
            towers = self._opened.enter_context(Towers(self._bundle, tower, flags.checkpoint))
            if any(method.runtime == PYTORCH for method in self._methods.values()):
                _ = towers.torch  # what it lacks is told before anything runs
            self._viewer = Viewer(towers, self._bundle, backend, self._asking)
            self._viewer.check(self.items)
        return self._viewer

    def answer(self) -> dict[str, str]:
        """What is missing is asked and kept; returns videos that cannot be read, and why."""
        console, whole = Console(stderr=True), len(self.items) * len(self.files)
        if there := sum(map(len, self.answers().values())):
            console.say(goes_on(there, whole, len(self.files)))
        gone = set(self.gone)
        todo = list(self._todo(item for item in self.items if item.video not in gone))
        unread: dict[str, str] = {}
        if not todo:
            return unread
        viewer = self.open()
        with Progress(console=console, every_s=PLAIN_S) as progress:
            total = there + sum(len(view.items) for _, view in todo)
            task = progress.add_task("questions answered", total=total, completed=there)
            for label, view in todo:
                try:
                    with command.unmasked_stops():
                        for item, given in viewer.watch(label, self._methods[label], view):
                            self.files[label].add({"scene": item.id, **asdict(given)})
                            progress.advance(task)
                except VideoError as error:
                    unread[str(view.video)] = str(error)
        return unread

    def answers(self) -> Answers:
        """What each method answered, by the question's id."""
        return {
            label: {
                item.id: file.records[item.id]["text"]
                for item in self.items
                if item.id in file.records
            }
            for label, file in self.files.items()
        }

    def _todo(self, items: Iterable[Item]) -> Iterator[tuple[str, Pass]]:
        """Video by video, what each method has not answered yet."""
        for view in passes(items):
            for label, file in self.files.items():
                left = tuple(item for item in view.items if item.id not in file.records)
                if left:
                    yield label, Pass(view.video, view.from_s, left)


def _report(
    benchmark: Benchmark, loaded: Loaded, run: _Run, unread: Mapping[str, str], output: Path
) -> dict[str, Any]:
    """The figures of `run`, which are told and whose answers are kept in `output` as well."""
    answers = run.answers()
    methods = score(benchmark, run.items, answers)
    console = parity_console()
    for line in (*lines(benchmark, methods), *_left_out(loaded.skipped, run.gone, unread)):
        console.say(line)
    _keep(benchmark, run.items, answers, output, console.say)
    return {
        "questions": len(run.items),
        "skipped": dict(loaded.skipped),
        "missing_videos": [str(path) for path in run.gone],
        "unreadable_videos": dict(unread),
        "methods": methods,
    }


def _left_out(
    skipped: Mapping[str, int], gone: Sequence[Path], unread: Mapping[str, str]
) -> Iterator[str]:
    for reason, count in skipped.items():
        yield f"questions left out: {count:,}, {reason}"
    if gone:
        more = f" and {len(gone) - SHOWN:,} more" if len(gone) > SHOWN else ""
        yield f"missing: {len(gone):,} videos, {', '.join(map(str, gone[:SHOWN]))}{more}"
    for error in unread.values():
        yield f"not read: {error}"


def _kept_names(benchmark: Benchmark, labels: Iterable[str]) -> list[str]:
    """Of the files that `_keep` may write."""
    return [ANSWERS, *(_submission(label) for label in labels if benchmark.submission is not None)]


def _submission(label: str) -> str:
    return f"submission-{file_name(label)}.csv"


def _keep(
    benchmark: Benchmark, items: Sequence[Item], answers: Answers, output: Path, say: Say
) -> None:
    """The answers as a file that can be scored again, and what is handed in, are in `output`."""
    files = {ANSWERS: answer_lines(items, answers)}
    if benchmark.submission is not None and not all(item.right for item in items):
        for label, given in answers.items():
            files[_submission(label)] = benchmark.submission(given)
    for name, text in files.items():
        with written(output / name), whole_file(output / name) as file:
            file.write(text.encode())
        say(f"written: {output / name}")
