"""A source or an engine that fails midway ends a run with all that was computed, and exit 2."""

from __future__ import annotations

import io
import itertools
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from stc.errors import DeviceError, EngineError, StcError, VideoError
from stc.runtime.commands import run as run_command
from stc.runtime.report import FrameReport
from stc.runtime.show.live_table import LiveTable
from stc.runtime.show.overlay import OverlayWriter
from stc.runtime.stream.run import StreamRun
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.file import VideoFile
from stc.runtime.video.source.source import Frame, VideoSource
from stc.shell.command import Console
from tests.as_user import CLIP, frames_of, standing, start
from tests.clips import numbered, numbered_clip, write_clip
from tests.device_cases import oracle_session
from tests.frame_reports import POOLED, TOKENS
from tests.rtsp_camera import RtspCamera
from tests.vision_cases import moving_frames

Outcome = subprocess.CompletedProcess[str]


class Recorded(VideoSource):
    """Three frames, then `end` is raised."""

    is_live = False

    def __init__(self, end: Exception, frames: int = 3) -> None:
        super().__init__("recorded")
        self._end = end
        self._frames = iter(moving_frames(frames))

    def __next__(self) -> Frame:
        for frame in self._frames:
            return frame
        raise self._end

    def close(self) -> None:
        pass


def test_what_ended_the_frames_is_told() -> None:
    cases = [
        (StopIteration(), None, "end", 3),
        (StopIteration(), 3, "frames", 3),
        (StopIteration(), 9, "end", 3),
        (VideoError("recorded", "is gone"), None, "loss", 3),
        (VideoError("recorded", "is gone"), 2, "frames", 2),
    ]
    for end, most, ended_by, count in cases:
        run = taken(Recorded(end), most)
        assert run.summary().frames == count
        assert run.ended_by == ended_by
        assert run.failure is (end if ended_by == "loss" else None)


def taken(source: VideoSource, most: int | None) -> StreamRun:
    """A run that has taken its frames."""
    run = run_of(source, most)
    with LiveTable(TOKENS, POOLED, console=Console(file=io.StringIO())) as table:
        run.take(table)
    return run


def run_of(source: VideoSource, most: int | None) -> StreamRun:
    return StreamRun(source, oracle_session(), print, most=most)


def test_a_source_without_a_first_frame_is_an_error() -> None:
    with pytest.raises(VideoError, match="is gone"):
        taken(Recorded(VideoError("recorded", "is gone"), frames=0), None)


def test_the_nearer_end_is_expected() -> None:
    source = Recorded(StopIteration())
    assert run_of(source, None).expected is None
    assert run_of(source, 5).expected == 5
    source.frames_expected = 3
    assert run_of(source, 5).expected == 3
    assert run_of(source, 2).expected == 2


DISK = VideoError("clip.mp4", "cannot be read on", fix="check the disk")
ENGINE = EngineError("update_03", "the GPU is gone", fix="see dmesg")


@pytest.mark.parametrize(
    ("owner", "method", "failure", "ended_by", "told"),
    [
        (VideoFile, "__next__", DISK, "loss", "the source was lost"),
        (StreamSession, "push", ENGINE, "error", "a frame could not be computed"),
    ],
    ids=["source", "engine"],
)
def test_a_stream_that_fails_midway_keeps_what_was_computed(
    owner: type,
    method: str,
    failure: StcError,
    ended_by: str,
    told: str,
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., Outcome],
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = getattr(owner, method)
    calls = itertools.count()

    def failing(*arguments: object) -> object:
        if next(calls) == 3:
            raise failure
        return whole(*arguments)

    monkeypatch.setattr(owner, method, failing)
    numbered_clip(tmp_path)
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    done = run_main(run_command.main, demo_bundle, "--video", "clip.mp4", *outputs)
    assert done.returncode == 2
    assert f"{told}; this is the stream so far\n" in done.stderr
    assert "\n3 frames" in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {failure}"
    document = json.loads((tmp_path / "o.json").read_text())
    assert (document["ended_by"], document["summary"]["frames"]) == (ended_by, 3)
    assert frames_of(tmp_path / "o.mp4") == 3
    assert set(standing(tmp_path)) == {"clip.mp4", "o.mp4", "o.png", "o.json"}


def test_an_overlay_that_fails_midway_takes_nothing_with_it(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., Outcome],
) -> None:
    monkeypatch.chdir(tmp_path)
    append = OverlayWriter._append

    def failing(writer: OverlayWriter, frame: Frame, report: FrameReport) -> None:
        if frame.index == 2:
            raise OSError(28, "No space left on device")
        append(writer, frame, report)

    monkeypatch.setattr(OverlayWriter, "_append", failing)
    numbered_clip(tmp_path, 5)
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    done = run_main(run_command.main, demo_bundle, "--video", "clip.mp4", *outputs)
    assert done.returncode == 2
    assert done.stderr.count("the stream goes on without it") == 1
    assert done.stderr.count("No space left") == 1
    assert done.stderr.splitlines()[-1].startswith("error: o.mp4: cannot be written (No space left")
    document = json.loads((tmp_path / "o.json").read_text())
    assert (document["ended_by"], document["summary"]["frames"]) == ("end", 5)
    assert set(standing(tmp_path)) == {"clip.mp4", "o.json"}


def test_every_failure_is_told_and_a_lost_gpu_is_asked_nothing(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., Outcome],
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = StreamSession.push

    def lost(session: StreamSession, frame: Frame) -> FrameReport:
        if frame.index == 3:
            raise DeviceError("device", "was lost (cudaErrorIllegalAddress)")
        return whole(session, frame)

    def failing(writer: OverlayWriter, path: Path | str) -> None:
        raise VideoError(path, "cannot be written (disk full)")

    monkeypatch.setattr(StreamSession, "push", lost)
    monkeypatch.setattr(OverlayWriter, "save_still", failing)
    numbered_clip(tmp_path)
    outputs = ["--overlay", "o.mp4", "--json", "o.json", "--ask", "What is moving?"]
    done = run_main(run_command.main, demo_bundle, "--video", "clip.mp4", *outputs)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: o.png: cannot be written (disk full)",
        "error: device: was lost (cudaErrorIllegalAddress)",
    ]
    document = json.loads((tmp_path / "o.json").read_text())
    assert (document["summary"]["frames"], document["language"]["questions"]) == (3, [])


def test_a_still_that_cannot_be_written_is_refused_before_the_stream(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    (tmp_path / "o.png").mkdir()
    flags = ["--video", numbered_clip(tmp_path), "--overlay", tmp_path / "o.mp4"]
    done = run_main(run_command.main, demo_bundle, *flags)
    assert done.returncode == 2
    assert "is a folder, expected a file" in done.stderr


def test_a_stream_that_fails_at_its_first_frame_leaves_nothing(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., Outcome],
) -> None:
    def failing(session: StreamSession, frame: Frame) -> NoReturn:
        raise ENGINE

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StreamSession, "push", failing)
    numbered_clip(tmp_path)
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    done = run_main(run_command.main, demo_bundle, "--video", "clip.mp4", *outputs)
    assert (done.returncode, done.stderr) == (2, f"error: {ENGINE}\n")
    assert set(standing(tmp_path)) == {"clip.mp4"}


def test_a_camera_that_stays_away_keeps_what_was_computed(
    demo_bundle: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", map(numbered, range(20)))
    outputs = ["--overlay", "o.mp4", "--json", "o.json", "--give-up-s", 0.3]
    with RtspCamera(clip) as camera:
        process = start(tmp_path, "stc-run", demo_bundle, "--video", camera.address, *outputs)
        assert process.stderr is not None
        assert "frame 0" in process.stderr.readline()
    with process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: {camera.address.replace('viewer:secret', '***')}: no frame for")
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["ended_by"] == "loss"
    assert frames_of(tmp_path / "o.mp4") == document["summary"]["frames"] >= 1


def test_the_document_says_what_ended_the_stream(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    clip = numbered_clip(tmp_path, 3)
    for frames, ended_by in ((2, "frames"), (5, "end")):
        flags = ["--video", clip, "--frames", frames, "--json", "-"]
        done = run_main(run_command.main, demo_bundle, *flags)
        assert json.loads(done.stdout)["ended_by"] == ended_by
    with start(tmp_path, "stc-run", demo_bundle, "--video", CLIP, "--json", "-") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=60)
    assert json.loads(stdout)["ended_by"] == "interrupt"


@pytest.mark.parametrize(
    ("give_up_s", "told"),
    [
        ("0", "--give-up-s: got 0.0, expected more than 0 seconds"),
        ("nan", "--give-up-s: got nan"),
        ("5", "--give-up-s: requires a live --video"),
    ],
)
def test_a_wait_that_cannot_be_is_one_line(
    give_up_s: str, told: str, demo_bundle: Path, run_main: Callable[..., Outcome]
) -> None:
    done = run_main(run_command.main, demo_bundle, "--video", CLIP, "--give-up-s", give_up_s)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert told in line
