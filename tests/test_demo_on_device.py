"""The demo bundle, built and run on the device: on a GPU where there is one, and on a mock.

Every engine is compared with ONNX Runtime, and a stream of captured frames is compared with the
same bundle on the CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.contents import KERNELS
from stc.engines import command as build_command
from stc.engines.accept.acceptance import waiting
from stc.engines.accept.comparison import by_token
from stc.engines.build.build import choose_flavour, this_target
from stc.engines.gpu.cuda import device_facts
from stc.engines.library.library import CHAIN_COSINE, library_of
from stc.engines.library.targets import TARGETS, Flavour, Target
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import EngineError
from stc.runtime.answers.stream_language import open_stream_language
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import run as run_command
from stc.runtime.memory.settings import MemorySettings, Policy
from stc.runtime.report import FrameReport
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.test_device import real_cuda

CLIP = Path(__file__).parent / "data" / "street.mp4"
SETTINGS = Settings(reference_interval=4, budget=14)
Run = Callable[..., "CompletedProcess[str]"]


@dataclass(frozen=True)
class Built:
    """The demo bundle with engines of `flavour` for this machine's GPU, a `target`."""

    bundle: Bundle
    flavour: Flavour
    target: Target


@pytest.fixture(
    scope="module",
    params=[
        "mock",
        pytest.param("tensorrt", marks=pytest.mark.gpu),
        pytest.param("tensorrt-rtx", marks=pytest.mark.gpu),
    ],
)
def built(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Built]:
    mock = request.param == "mock"
    flavour: Flavour = "tensorrt-rtx" if mock else request.param
    target = TARGETS["sm89"] if mock else _usable(flavour)
    bundle = request.getfixturevalue("accepted_demo_bundle" if mock else "half_demo_bundle")
    path = shutil.copytree(bundle, tmp_path_factory.mktemp("device") / "bundle")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if mock:
            from tests.onnx_device import mock_machine

            mock_machine(monkeypatch, path, target.name)
        arguments = [str(path), "--target", "this-device", "--backend", flavour]
        assert build_command.main(arguments) == 0
        yield Built(Bundle.open(path), flavour, target)


def _usable(flavour: Flavour) -> Target:
    """This GPU's target; skips the test where the flavour is not installed or does not run."""
    try:
        target = this_target(device_facts(real_cuda()))
        choose_flavour((target,), flavour)
    except EngineError as error:
        pytest.skip(str(error))
    return target


@pytest.fixture
def tower(built: Built) -> Iterator[VisionTower]:
    opened = opening.open_tower(built.bundle, "cpu", built.flavour)
    yield opened
    opened.close()


def assert_alike(got: FrameReport, expected: FrameReport) -> None:
    """Of tokens that are alike float16 may choose others: compare what both kept."""
    common, ours, theirs = np.intersect1d(got.kept, expected.kept, return_indices=True)
    assert len(common) >= 0.8 * len(expected.kept)
    assert by_token(expected.tokens[theirs], got.tokens[ours]).min_cosine > 0.97


def test_every_engine_is_accepted_against_onnx_runtime(built: Built) -> None:
    library = library_of(built.bundle, built.target.name)
    assert not waiting(library, choose_flavour((built.target,), built.flavour))
    chain = library.listed().chain_cosine.get(built.flavour)
    assert chain is not None
    assert chain.cosine >= CHAIN_COSINE


def test_accepted_engines_are_not_compared_again(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--target", "this-device", "--backend", built.flavour]
    assert build_command.main([str(built.bundle.root), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "engines are there already" in printed
    assert "compared" not in printed


def test_captured_frames_equal_the_same_bundle_on_the_cpu(built: Built, tower: VisionTower) -> None:
    session = StreamSession(tower, SETTINGS)
    cpu = StreamSession(opening.open_tower(built.bundle, "cpu"), SETTINGS)
    for frame in opening.frames(str(CLIP), 24):
        got, expected = session.push(frame), cpu.push(frame)
        assert got.kind == expected.kind
        assert_alike(got, expected)
    assert session.captured == {"reference", "reuse"}


def test_graphs_give_the_same_bits_as_plain_calls(tower: VisionTower) -> None:
    captured, plain = (StreamSession(tower, SETTINGS, captured=way) for way in (True, False))
    for frame in opening.frames(str(CLIP), 20):
        one, other = captured.push(frame), plain.push(frame)
        np.testing.assert_array_equal(one.recomputed, other.recomputed)
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert captured.captured == {"reference", "reuse"}
    assert plain.captured == set()


def test_two_sessions_share_engines(tower: VisionTower) -> None:
    frames = opening.frames(str(CLIP), 16)
    alone = StreamSession(tower, SETTINGS)
    expected = [alone.push(frame).tokens for frame in frames]
    first, second = StreamSession(tower, SETTINGS), StreamSession(tower, SETTINGS)
    for frame, tokens in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(first.push(frame).tokens, tokens)
        np.testing.assert_array_equal(second.push(frame).tokens, tokens)


def test_commands_run_on_the_device(built: Built, run_main: Run) -> None:
    backend = ["--backend", built.flavour]
    ran = run_main(bench_command.main, built.bundle.root, *backend, "--frames", "16")
    assert ran.returncode == 0, ran.stderr
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=1))
    assert figures["captured"] == ["reference", "reuse"]
    assert figures["reuse_ms_p50"] > 0
    clip = ["--video", CLIP, "--frames", "8", "--json", "-"]
    assert run_main(run_command.main, built.bundle.root, *backend, *clip).returncode == 0
    kept = list(built.bundle.root.rglob(KERNELS))
    assert bool(kept) == (built.flavour == "tensorrt-rtx")


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_questions_are_answered_by_engines(built: Built, policy: Policy) -> None:
    """Of a question of another length than engines have, behind a window that has wrapped."""
    memory = MemorySettings(memory=policy, window=56, top_pages=3)
    tokens = np.random.default_rng(0).standard_normal((8, SETTINGS.budget, 128))
    answers = []
    for name in (built.flavour, "onnxruntime"):
        backend = opening.open_backend(built.bundle, "cpu", name, context=1024)
        language = open_stream_language(built.bundle, backend, memory, SETTINGS.budget)
        for kept in tokens.astype(np.float16):
            language.append(kept)
        answer = language.ask("What is moving in the street?", 4)
        answers.append((answer.logits, language.facts().tokens, answer.prompt_tokens))
        assert "".join(answer)
        if isinstance(backend, TensorRtBackend):
            assert language.model.buckets.chunks == (16, 64)
            assert language.model.spec.max_positions == 4096 - 64  # a call's own rows
            backend.close()
    (device, *held), (cpu, *expected) = answers
    assert held == expected
    assert by_token(cpu[None], device[None]).min_cosine > 0.99


def test_a_run_answers_on_the_device(built: Built, run_main: Run) -> None:
    arguments = ["--video", CLIP, "--frames", 4, "--ask", "Who?", "--max-new-tokens", 4]
    ran = run_main(
        run_command.main, built.bundle.root, "--backend", built.flavour, *arguments, "--json", "-"
    )
    assert ran.returncode == 0, ran.stderr
    (question,) = json.loads(ran.stdout.splitlines()[-1])["language"]["questions"]
    assert question["answer"]
    assert question["answer_tokens"] <= 4
    backend = ["--backend", built.flavour]
    ran = run_main(bench_command.main, built.bundle.root, *backend, "--prefill", "--frames", 2)
    assert json.loads(ran.stdout.splitlines()[-1])["backend"] == built.flavour


@pytest.mark.gpu
def test_onnx_runtime_computes_on_the_gpu(request: pytest.FixtureRequest) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    real_cuda()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime without its CUDA provider")
    bundle = Bundle.open(request.getfixturevalue("half_demo_bundle"))
    device = StreamSession(opening.open_tower(bundle, "cuda"), SETTINGS)
    cpu = StreamSession(opening.open_tower(bundle, "cpu"), SETTINGS)
    for frame in opening.frames(str(CLIP), 8):
        assert_alike(device.push(frame), cpu.push(frame))
