"""A generated scene as a video with its questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stc.runtime.commands.scene import lossless, main
from stc.runtime.evaluate.question_file import read_questions
from stc.scenes import FPS, make_scene
from stc.scenes.chance import generator
from tests.clips import read_frames

SEED = 477


def test_decoding_gives_the_frames_back(tmp_path: Path) -> None:
    path = tmp_path / "scene.mkv"
    assert main(["--seed", str(SEED), "--output", str(path)]) == 0
    frames = read_frames(path)
    expected = make_scene("test", SEED).frames()
    np.testing.assert_array_equal(np.stack([frame.rgb for frame in frames]), expected)
    assert [frame.time_s for frame in frames] == [k / FPS for k in range(len(expected))]


def test_questions_come_when_their_frame_does(tmp_path: Path) -> None:
    path = tmp_path / "scene.mkv"
    flags = ["--split", "validation", "--seed", "3", "--questions", "6"]
    assert main([*flags, "--output", str(path)]) == 0
    asked = read_questions(path.with_suffix(".json"))
    scene = make_scene("validation", 3)
    drawn = scene.questions(generator(3), 6)
    assert {(one.text, one.at_s, one.expected) for one in asked} == {
        (one.text, one.frame / FPS, one.answer) for one in drawn
    }
    assert [one.at_s for one in asked] == sorted(one.at_s or 0.0 for one in asked)
    times = [frame.time_s for frame in read_frames(path)]
    assert {one.at_s for one in asked} <= set(times)


def test_every_level_of_every_colour_comes_back(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)
    frames = np.zeros((2, 6, 256, 3), np.uint8)
    frames[0] = np.random.default_rng(0).integers(0, 256, frames[0].shape, np.uint8)
    for channel in range(3):
        frames[1, channel, :, channel] = levels
    path = tmp_path / "levels.mkv"
    path.write_bytes(lossless(frames, 2))
    np.testing.assert_array_equal(np.stack([one.rgb for one in read_frames(path)]), frames)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scene.mp4", "--output: got "),
        ("missing/scene.mkv", "cannot be written (No such file or directory)"),
        ("folder.mkv", "cannot be written (is a folder)"),
        ("taken.mkv", "cannot be written (Is a directory)"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.mkv").mkdir()
    (tmp_path / "taken.json").mkdir()
    before = sorted(tmp_path.iterdir())
    assert main(["--seed", "1", "--output", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --output") and error.count("\n") == 1
    assert told in error
    assert sorted(tmp_path.iterdir()) == before


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert main(["--seed", "2", "--output", str(tmp_path / f"{name}.mkv")]) == 0
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "other"))
    assert one == other
    frames = [read_frames(tmp_path / f"{name}.mkv") for name in ("one", "other")]
    for mine, theirs in zip(*frames, strict=True):
        np.testing.assert_array_equal(mine.rgb, theirs.rgb)
