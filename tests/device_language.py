"""The demo's decoder on mocks of GPU and TensorRT, as a stream runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.engine import Engine, Tensor
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.settings import MemorySettings, Policy
from stc.settings import Settings
from tests.fake_cuda import FakeCuda

SETTINGS = Settings(reference_interval=2, budget=14)


def runtime(backend: TensorRtBackend) -> FakeCuda:
    """The mock of CUDA below `backend`."""
    found = backend.device.cuda.runtime
    assert isinstance(found, FakeCuda)
    return found


def language_of(bundle: Bundle, model: LanguageModel, policy: Policy = "window") -> StreamLanguage:
    """A window that wraps, or retrieval from the host."""
    prompt = Prompt(bundle.companions(), model.spec, bundle.root)
    settings = MemorySettings(memory=policy, window=56, top_pages=3)
    memory = settings.make(model, len(prompt.before), SETTINGS.budget)
    return StreamLanguage(model, memory, prompt)


def kept_tokens(count: int, seed: int = 0) -> list[NDArray[np.float16]]:
    """Made-up kept tokens of `count` frames."""
    tokens = np.random.default_rng(seed).standard_normal((count, SETTINGS.budget, 128))
    return list(tokens.astype(np.float16))


@contextmanager
def counted(backend: TensorRtBackend) -> Iterator[Counter[str]]:
    """How often each function of CUDA is called in the body, complete when it has ended."""
    calls, found = runtime(backend).calls, Counter[str]()
    before = len(calls)
    yield found
    found.update(calls[before:])


class Fresh:
    """An engine that writes into no tensor it is given."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        return self._engine(inputs, outputs and dict.fromkeys(outputs))
