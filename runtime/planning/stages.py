"""What a stream does, stage by stage: engines run, and calls of the host for it.

Both are counted where they happen: the loops that run frames and tokens on a GPU run on a device
that only counts (`stc.engines.tensorrt.counted`), after as many frames and tokens as it takes until
all are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np

from stc.bundles.bundle import Bundle
from stc.engines.build.listing import EngineCall, engine_call
from stc.engines.library.plan import EngineSpec
from stc.engines.tensorrt.counted import Asked, counted_backend
from stc.method.family import VISION, stream_programs
from stc.runtime.answers.stream_language import open_model
from stc.runtime.bench.prefill import DECODES, QUESTION, Filled
from stc.runtime.stream.opening import frames
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.tower import VisionTower
from stc.settings import SELECTIONS, Selection, Settings

REFERENCE, PREFILL, PREFILL_ALL, TOKEN = "reference", "prefill", "prefill_all", "decoded_token"
_RUNS = 3
"""Runs of a stage of the language model, the last of which is counted: one warms it up, one is
captured."""


def reuse_stage(selection: Selection) -> str:
    """The name of a reuse frame of `selection`."""
    return f"reuse_{selection}"


@dataclass(frozen=True)
class Stage:
    """calls: the engines it runs, one after the other; tower: those of them that are the vision
    tower's. asked: what the host asks of the device for it, once all is warm."""

    name: str
    calls: tuple[EngineCall, ...]
    asked: Asked
    tower: tuple[EngineCall, ...] = ()


def frame_stages(bundle: Bundle, specs: Sequence[EngineSpec], chosen: Settings) -> dict[str, Stage]:
    """A reference frame, and a reuse frame of each selection, of a stream of the settings `chosen`.

    Raises EngineError when `specs` lack an engine of it.
    """
    manifest = bundle.manifest
    found: dict[str, Stage] = {}
    for selection in SELECTIONS:
        settings = replace(chosen, selection=selection, reference_interval=2)
        backend, device = counted_backend(bundle, specs)
        tower = VisionTower(backend, manifest.vision, manifest.provenance.precision)
        session = StreamSession(tower, settings)
        programs = stream_programs(manifest.vision, manifest.provenance.precision, settings)
        ours = {call.graph for one in programs for call in one.calls if call.stage == VISION}
        warming = 2 * session.runner.warm_up_runs
        names = (REFERENCE, reuse_stage(selection))
        for number, frame in enumerate(frames(None, warming + 2)):
            name = names[number % 2]
            with device.counting() as asked:
                session.push(frame)
            calls = tuple(engine_call(*run) for run in asked.runs)
            found[name] = Stage(name, calls, asked, tuple(one for one in calls if one[0] in ours))
        tower.close()
    return found


def language_stages(
    bundle: Bundle, specs: Sequence[EngineSpec], kept: int, context: int
) -> dict[str, Stage]:
    """What a frame of `kept` tokens and one of all costs the language model behind `context`
    tokens, and what a decoded token does; nothing for a bundle without a decoder.

    Raises SettingsError when the model has no positions for so many, LanguageError when no engine
    has.
    """
    if bundle.manifest.language is None:
        return {}
    pooled = bundle.manifest.vision.pooled
    backend, device = counted_backend(bundle, specs)
    model = open_model(bundle, backend)
    filled = Filled(model, context, max(pooled, QUESTION + DECODES))
    found = {}
    token, after = np.zeros(1, np.int64), count(QUESTION)
    stages: dict[str, Callable[[], object]] = {
        name: partial(filled.prefill, np.zeros((size, model.spec.width), model.dtype))
        for name, size in ((PREFILL, kept), (PREFILL_ALL, pooled))
    }
    stages[TOKEN] = lambda: filled.text(token, next(after))
    for name, run in stages.items():
        for _ in range(_RUNS):
            with device.counting() as asked:
                run()
        found[name] = Stage(name, tuple(engine_call(*one) for one in asked.runs), asked)
    backend.close()
    return found
