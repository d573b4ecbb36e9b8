"""The language side on mocks of GPU and TensorRT: what it allocates, and what threads share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")

from stc.bundles.bundle import Bundle
from stc.engines.engine import Engine, Tensor
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import StreamLanguage, open_model
from stc.runtime.commands import bench as bench_command
from stc.runtime.language.kv_buckets import MAX_SPARE
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.settings import MemorySettings, Policy
from stc.runtime.planning.calibration import read_measured
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from stc.settings import Settings
from tests.fake_cuda import FakeCuda
from tests.onnx_device import mock_machine
from tests.other_thread import OtherThread
from tests.test_calibration import prefill_document

SETTINGS = Settings(reference_interval=2, budget=14)
QUESTION = "What is moving in the street?"
CHUNK = 64
"""The most tokens of one call."""


@pytest.fixture(scope="module")
def bundle(
    accepted_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    path = shutil.copytree(accepted_demo_bundle, tmp_path_factory.mktemp("language") / "bundle")
    with pytest.MonkeyPatch.context() as monkeypatch:
        mock_machine(monkeypatch, path, "sm89")
        yield Bundle.open(path)


@pytest.fixture
def backend(bundle: Bundle) -> Iterator[TensorRtBackend]:
    opened = opening.open_backend(bundle, "cpu", "tensorrt-rtx", context=1024)
    assert isinstance(opened, TensorRtBackend)
    with opened:
        yield opened


def runtime(backend: TensorRtBackend) -> FakeCuda:
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
    tokens = np.random.default_rng(seed).standard_normal((count, SETTINGS.budget, 128))
    return list(tokens.astype(np.float16))


class Fresh:
    """An engine that writes into no tensor it is given."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self._engine = engine

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        return self._engine(inputs, outputs and dict.fromkeys(outputs))


def without_buffers(model: LanguageModel) -> None:
    """Every call of `model` makes tensors of its own."""
    model.text_embed = Fresh(model.text_embed)
    model.qkv = [Fresh(engine) for engine in model.qkv]
    model.attend = [Fresh(engine) for engine in model.attend]


# What is allocated.


def test_a_decoded_token_allocates_as_much_whatever_the_number_of_blocks(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    whole, calls = open_model(bundle, backend), runtime(backend).calls
    counts = []
    for blocks in (1, whole.spec.blocks):
        spec = whole.spec.model_copy(update={"blocks": blocks})
        model = LanguageModel(backend, spec, "fp16", whole.buckets)
        rows = PlainRows(model, 100)
        rows.remember(kept_tokens(1)[0], 0)
        for token in range(4):
            before = calls.count("cudaMalloc")
            rows.logits(model.embed(np.array([7 + token])), SETTINGS.budget + token)
            made = calls.count("cudaMalloc") - before
        counts.append(made)
    assert whole.spec.blocks > 1
    # ids, hidden, positions, those of all rows, the last hidden; and the logits.
    assert counts == [6, 6]


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_buffers_that_are_used_again_change_no_answer(
    bundle: Bundle, backend: TensorRtBackend, policy: Policy
) -> None:
    """Of a frame, a question of more pieces than are kept, and its answer; two streams in turns."""
    found = []
    for fresh in (False, True):
        model = open_model(bundle, backend)
        if fresh:
            without_buffers(model)
        languages = [language_of(bundle, model, policy) for _ in range(2)]
        for frames in zip(kept_tokens(7), kept_tokens(7, seed=1), strict=True):
            for language, tokens in zip(languages, frames, strict=True):
                language.append(tokens)
        questions = [QUESTION, " ".join([QUESTION] * 100)]
        answers = [
            language.ask(question, 4)
            for language, question in zip(languages, questions, strict=True)
        ]
        assert answers[1].prompt_tokens > (MAX_SPARE + 1) * CHUNK
        logits: list[NDArray[Any]] = []
        for _ in range(4):
            for answer in answers:
                next(answer, "")
                logits.append(answer.logits)
        found.append((logits, [answer.token_ids for answer in answers]))
    (kept, kept_ids), (new, new_ids) = found
    np.testing.assert_array_equal(kept, new)
    assert kept_ids == new_ids


def test_buffers_of_a_long_call_are_given_back(bundle: Bundle, backend: TensorRtBackend) -> None:
    model = open_model(bundle, backend)
    rows = PlainRows(model, 1000)
    held = []
    for pieces in (1, MAX_SPARE, MAX_SPARE + 5, 2):
        rows.remember(np.zeros((pieces * CHUNK, model.spec.width), model.dtype), 0)
        held.append(backend.device.allocated_bytes)
    one, most, *later = held
    assert one < most
    assert later == [most, most]


# Threads.


def test_an_answer_is_read_while_another_thread_captures_a_frame(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = opening.frames(None, 10)
    runs = []
    for disturbed in (False, True):
        tower = opening.open_tower(bundle, "cpu", "tensorrt-rtx", context=1024)
        assert isinstance(tower.backend, TensorRtBackend)
        language = language_of(bundle, open_model(bundle, tower.backend))
        session = StreamSession(tower, SETTINGS, language)
        session.push(clip[0])
        answer = session.ask(QUESTION, 8)
        if disturbed:
            reader = OtherThread(runtime(tower.backend), monkeypatch, partial(list, answer))
        reports = [session.push(frame) for frame in clip[1:]]
        if disturbed:
            reader.join()
        list(answer)
        runs.append(([report.tokens for report in reports], answer.token_ids))
        assert session.captured == {"reference", "reuse"}
        tower.close()
    (alone, alone_ids), (shared, shared_ids) = runs
    np.testing.assert_array_equal(shared, alone)
    assert shared_ids == alone_ids


def test_the_language_sides_times_are_a_boards(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `stc-bench --prefill` writes calibrates estimates, as what it writes of frames does."""
    properties = SimpleNamespace(name=b"NVIDIA GeForce RTX 4060")
    monkeypatch.setattr(FakeCuda, "cudaGetDeviceProperties", lambda *_: (0, properties))
    path = tmp_path / "language.json"
    flags = ["--backend", "tensorrt-rtx", "--prefill", "--frames", "1", "--context", "60"]
    assert bench_command.main([str(bundle.root), *flags, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document.keys() >= prefill_document().keys()
    assert document["gpu"].keys() >= prefill_document()["gpu"].keys()
    found = read_measured(path, bundle.manifest)
    assert found.board is not None
    assert found.board.name == "RTX 4060"
    assert set(found.ms) == {"prefill", "prefill_all", "decoded_token"}
