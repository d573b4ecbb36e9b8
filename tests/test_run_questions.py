"""`stc-run` with questions."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeEngine
from stc.errors import EngineError, LanguageError
from stc.runtime.answers import conversation
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.commands import run as run_command
from stc.runtime.memory.settings import POLICIES
from stc.runtime.report import FrameReport, Prefill
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from tests.kept_tokens import POOLED
from tests.language_cases import BEFORE, language_case
from tests.test_answers import stream

VIDEO = str(Path(__file__).parent / "data" / "street.mp4")
QUESTION = "What is moving?"


def run(*arguments: str, video: str = VIDEO) -> int:
    return run_command.main([str(language_case().bundle.root), "--video", video, *arguments])


def test_questions_are_answered_when_they_are_due(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    code = run(
        *("--frames", "8", "--fps", "2", "--preset", "off", "--max-new-tokens", "5"),
        *("--ask", "Who is there?", "--ask-at", f"2:{QUESTION}", "--json", str(out)),
    )
    assert code == 0
    language = json.loads(out.read_text())["language"]
    first, second = language["questions"]
    assert (first["question"], first["frames"], first["time_s"]) == (QUESTION, 5, 2.0)
    assert (second["question"], second["frames"]) == ("Who is there?", 8)
    for asked in (first, second):
        assert asked["answer_tokens"] == 5
        assert asked["stopped"] == "length"
        assert asked["first_token_ms"] > 0
        assert asked["memory"]["tokens"] == BEFORE + asked["frames"] * POOLED
    assert language["prefill_ms_p50"] > 0
    printed = capsys.readouterr().out
    assert f"[2.0 s] {QUESTION}\n> {first['answer']}\n" in printed


def test_of_many_questions_the_newest_are_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conversation, "MAX_ANSWERS", 2)
    out = tmp_path / "run.json"
    asked = ("first?", "second?", "third?")
    questions = [word for text in asked for word in ("--ask", text)]
    assert run("--frames", "1", "--max-new-tokens", "2", *questions, "--json", str(out)) == 0
    language = json.loads(out.read_text())["language"]
    assert language["questions_asked"] == 3
    assert [one["question"] for one in language["questions"]] == ["second?", "third?"]
    printed = capsys.readouterr().out
    assert all(f"] {text}\n" in printed for text in asked)


def test_prefill_figures_count_frames_that_were_not_a_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.json"
    told: list[Prefill] = []
    prefilled = StreamLanguage.prefilled

    def watched(self: StreamLanguage) -> Prefill:
        told.append(prefilled(self))
        return told[-1]

    monkeypatch.setattr(StreamLanguage, "prefilled", watched)
    flags = ["--frames", "8", "--prefill-every", "3", "--max-new-tokens", "1", "--ask", QUESTION]
    assert run(*flags, "--json", str(out)) == 0
    language = json.loads(out.read_text())["language"]
    assert [one.frames for one in told if one.frames] == [3, 3, 2]
    assert language["frames_prefilled"] == 8
    per_frame_ms = sum(one.ms for one in told) / 8
    assert language["prefill_ms_per_frame"] == pytest.approx(per_frame_ms)


def test_frames_per_second_count_prefill_wherever_it_was_done(tmp_path: Path) -> None:
    """At the question, here: no batch of 10 is full."""
    out = tmp_path / "run.json"
    flags = ["--frames", "6", "--prefill-every", "10", "--ask", QUESTION, "--max-new-tokens", "2"]
    assert run(*flags, "--json", str(out)) == 0
    document = json.loads(out.read_text())
    summary, language = document["summary"], document["language"]
    kinds = [kind for kind in (summary["reference"], summary["reuse"]) if kind]
    push_ms = sum(kind["frames"] * kind["total"]["mean_ms"] for kind in kinds)
    prefill_ms = language["prefill_ms_per_frame"] * language["frames_prefilled"]
    assert prefill_ms > 0
    assert summary["frames_per_second"] == pytest.approx(6e3 / (push_ms + prefill_ms))


def test_the_answer_is_that_of_the_frames_seen(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    run("--frames", "6", "--fps", "2", "--preset", "off", "--ask", QUESTION, "--json", str(out))
    (asked,) = json.loads(out.read_text())["language"]["questions"]
    case = language_case()
    tower = VisionTower(OnnxRuntimeBackend(case.bundle), case.bundle.manifest.vision, "fp32")
    session = StreamSession(tower, PRESETS["off"], stream(case))
    with open_video(VIDEO, fps=2) as source:
        for frame, _ in zip(source, range(6), strict=False):
            session.push(frame)
    answer = session.ask(QUESTION)
    assert "".join(answer) == asked["answer"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_memory_and_batch_runs(policy: str, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    flags = ["--frames", "12", "--preset", "off", "--memory", policy, "--prefill-every", "3"]
    if policy != "all":
        flags += ["--window", "16"]
    if policy == "rekv":
        flags += ["--top-pages", "2", "--host-memory-mb", "1", "--spill", str(tmp_path)]
    assert run(*flags, "--ask", QUESTION, "--json", str(out)) == 0
    (asked,) = json.loads(out.read_text())["language"]["questions"]
    memory = asked["memory"]
    assert memory["policy"] == policy
    assert memory["tokens"] == BEFORE + (12 * POOLED if policy == "all" else 16)
    assert memory["host_pages"] == (8 if policy == "rekv" else 0)
    prompt = asked["prompt_tokens"]
    after = len(language_case().prompt().after(QUESTION))
    assert prompt == BEFORE + {"all": 48, "window": 16, "rekv": 8}[policy] + after


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ask", " "], "question: empty"),
        (["--ask", "a <video>"], "question: contains <video>"),
        (["--ask-at", "soon:What?"], "--ask-at: got 'soon:What?', expected SECONDS:TEXT"),
        (["--ask-at=-1:What?"], "--ask-at: got '-1:What?'"),
        (["--ask-at", "-.5:What?"], "--ask-at: got '-.5:What?'"),
        (["--ask-at", "1_0:What?"], "--ask-at: got '1_0:What?'"),
        (["--ask", "a", "--max-new-tokens", "0"], "--max-new-tokens: got 0"),
        (["--ask", "caf\udce9"], "question: bytes that are no letters, expected text in UTF-8"),
        (["--ask", "a", "--temperature", "-1"], "--temperature: got -1.0"),
        (["--ask", "a", "--top-p", "0.5"], "--top-p: requires --temperature above 0"),
        (["--ask", "a", "--memory", "some"], "--memory: got 'some'"),
        (["--ask", "a", "--memory", "all", "--window", "9"], "--window: has no effect"),
        (["--ask", "a", "--top-pages", "3"], "--top-pages: requires --memory rekv"),
        (["--ask", "a", "--memory", "rekv", "--spill-mb", "3"], "requires --spill DIR"),
        (["--ask", "a", "--memory", "rekv", "--top-pages", "100000"], "--top-pages: got 100000, "),
        (
            ["--ask", "a", "--memory", "rekv", "--top-pages", "74", "--preset", "off"],
            "frames of 4 tokens, expected at most 73, what the model's 400 positions less question",
        ),
        (["--ask", "a", "--window", "3", "--preset", "off"], "at least the 4 of one language"),
        (["--ask", "a", "--window", "16", "--prefill-every", "5", "--preset", "off"], "the 20 of"),
        (["--ask", "a", "--window", "390"], "at most 295, the model's 400 positions"),
        (["--ask", "a", "--prefill-every", "0"], "--prefill-every: got 0"),
        (["--ask", " ".join([QUESTION] * 100)], "question: 5 tokens of context and "),
        (["--window", "16"], "--window: requires --ask, --ask-at, --questions or --chat"),
        (["--max-new-tokens", "9"], "requires --ask, --ask-at, --questions or --chat"),
        (["--chat"], "--chat: stdin is no terminal; use --ask TEXT"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--frames", "1", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error


def test_an_answer_that_can_never_fit_is_refused_before_the_first_frame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has 400 positions, some of them for what stands before the video."""
    pushed: list[Frame] = []
    push = StreamSession.push

    def counted(self: StreamSession, frame: Frame) -> FrameReport:
        pushed.append(frame)
        return push(self, frame)

    monkeypatch.setattr(StreamSession, "push", counted)
    flags = ["--frames", "1", "--max-new-tokens"]
    for asked in (["--ask", QUESTION], ["--ask-at", f"0:{QUESTION}"]):
        capsys.readouterr()
        assert run(*flags, "400", *asked) == 2
        told = capsys.readouterr().err
        start = "error: --max-new-tokens: got 400, expected at most "
        end = ", what a question leaves of the model's 400 positions\n"
        room = int(told.removeprefix(start).removesuffix(end))
        assert run(*flags, str(room + 1), *asked) == 2
        assert not pushed
        assert run(*flags, str(room - POOLED), "--preset", "off", *asked) == 0
        assert len(pushed) == 1
        pushed.clear()


@pytest.mark.parametrize("flags", [["--ask-at", "soon:x"], ["--window", "9"], ["--chat"]])
def test_mistaken_flags_are_told_before_anything_is_read(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command.main(["no-bundle", "--video", "no-video", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flags[0]}: ")


def test_a_window_larger_than_free_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token_bytes = language_case().language().token_bytes
    monkeypatch.setattr(
        "stc.runtime.memory.settings.available_host_bytes", lambda: 2 * 50 * token_bytes
    )
    assert run("--frames", "1", "--ask", "a", "--window", "51") == 2
    assert "at most 50, half of the memory that is free" in capsys.readouterr().err
    assert run("--frames", "1", "--ask", "a", "--max-new-tokens", "1") == 0
    rekv = ["--frames", "1", "--ask", "a", "--memory", "rekv", "--preset", "off"]
    assert run(*rekv, "--top-pages", "12") == 2
    assert "--top-pages: got 12, frames of 4 tokens, expected at most 11" in capsys.readouterr().err
    assert run(*rekv, "--top-pages", "11", "--window", "7") == 2
    assert "half of the memory that is free, less 44 fetched" in capsys.readouterr().err


def test_a_bundle_without_a_language_side_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = language_case()
    root = tmp_path / "bundle"
    root.mkdir()
    for file in case.bundle.root.iterdir():
        (root / file.name).symlink_to(file) if file.is_dir() else (root / file.name).write_bytes(
            file.read_bytes()
        )
    (root / "graphs").unlink()
    (root / "graphs").mkdir()
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["language"], manifest["variants"] = None, {}
    graphs = manifest["graphs"]
    for name in [name for name in graphs if name.startswith(("qkv", "attend", "text", "head"))]:
        del graphs[name]
    manifest["files"] = [file for file in manifest["files"] if "language" not in file["path"]]
    (root / "manifest.json").write_text(json.dumps(manifest))
    for path in [*(graph["file"]["path"] for graph in graphs.values()), "graphs/weights.bin"]:
        (root / path).write_bytes((case.bundle.root / path).read_bytes())
    assert run_command.main([str(root), "--video", VIDEO, "--frames", "1", "--ask", "a"]) == 2
    error = capsys.readouterr().err
    assert "has no language side; export again with: stc-export" in error


def test_a_failed_question_is_told_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN logits at the first question, as a broken checkpoint would yield."""
    out = tmp_path / "run.json"
    call = OnnxRuntimeEngine.__call__
    broken = 1

    def sick(self: OnnxRuntimeEngine, *arguments: Any) -> Any:
        nonlocal broken
        outputs = call(self, *arguments)
        if self.name == "head" and broken:
            broken -= 1
            outputs["logits"].numpy()[:] = np.nan
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", sick)
    flags = ["--frames", "8", "--fps", "2", "--preset", "off", "--max-new-tokens", "3"]
    code = run(*flags, "--ask-at", f"1:{QUESTION}", "--ask", QUESTION, "--json", str(out))
    assert code == 2
    first, second = json.loads(out.read_text())["language"]["questions"]
    assert first["error"].startswith("head: NaN or infinity in logits")
    assert (first["question"], first["answer"]) == (QUESTION, "")
    assert second["answer_tokens"] == 3
    assert second["memory"]["tokens"] == BEFORE + 8 * POOLED
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: head: NaN or infinity in logits")


def test_frames_that_cannot_be_remembered_are_told_and_the_stream_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    flags = ["--frames", "80", "--preset", "off", "--memory", "all", "--max-new-tokens", "3"]
    code = run(*flags, "--ask", QUESTION, "--ask", "Who is there?", "--json", str(out))
    assert code == 2
    document = json.loads(out.read_text())
    assert document["summary"]["frames"] == 80
    language = document["language"]
    assert (language["frames_prefilled"], language["frames_left_out"]) == (73, 7)
    assert [asked["answer_tokens"] for asked in language["questions"]] == [3, 3]
    written = capsys.readouterr().err
    errors = [line for line in written.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and len(set(errors)) == 1
    assert written.endswith(f"{errors[0]}\n")  # again, since the command ends with 2
    assert errors[0].startswith("error: --memory all: 297 tokens remembered and 4 more")
    assert "7 frames could not be remembered" in written


def test_nan_in_a_prefill_costs_those_frames_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    call = OnnxRuntimeEngine.__call__
    calls = 0

    def sick(self: OnnxRuntimeEngine, *arguments: Any) -> Any:
        nonlocal calls
        outputs = call(self, *arguments)
        calls += self.name == "qkv_02"
        if self.name == "qkv_02" and calls in (3, 4):  # once more to find the culprit
            outputs["value"].numpy()[:] = np.nan
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", sick)
    flags = ["--frames", "8", "--preset", "off", "--max-new-tokens", "3", "--prefill-every", "2"]
    assert run(*flags, "--ask", QUESTION, "--json", str(out)) == 2
    language = json.loads(out.read_text())["language"]
    assert (language["frames_prefilled"], language["frames_left_out"]) == (6, 2)
    (asked,) = language["questions"]
    assert asked["answer_tokens"] == 3
    assert asked["memory"]["tokens"] == BEFORE + 6 * POOLED
    assert "error: qkv_02: NaN or infinity in value" in capsys.readouterr().err


@pytest.mark.parametrize("masked", [False, True])
def test_ctrl_c_during_an_answer_keeps_what_was_given(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that a library makes an error of."""
    out = tmp_path / "run.json"
    ask = StreamLanguage.ask

    def interrupted(self: StreamLanguage, *arguments: Any) -> Any:
        answer = ask(self, *arguments)
        decode = answer._decode

        def pressed(token: int) -> Any:
            if len(answer.token_ids) == 3:
                with suppress(KeyboardInterrupt) if masked else nullcontext():
                    signal.raise_signal(signal.SIGINT)
                raise EngineError("embed", "a callback failed")
            return decode(token)

        answer._decode = pressed
        return answer

    monkeypatch.setattr(StreamLanguage, "ask", interrupted)
    assert run("--frames", "3", "--ask", QUESTION, "--json", str(out)) == 0
    (asked,) = json.loads(out.read_text())["language"]["questions"]
    assert (asked["answer_tokens"], asked["stopped"]) == (3, "cancelled")
    assert "error" not in asked


def test_a_session_without_a_language_side_refuses_questions() -> None:
    case = language_case()
    tower = VisionTower(OnnxRuntimeBackend(case.bundle), case.bundle.manifest.vision, "fp32")
    with pytest.raises(LanguageError, match="the stream was opened without a language side"):
        StreamSession(tower, PRESETS["off"]).ask(QUESTION)
