"""--crop: a part of every picture of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stc.errors import SettingsError, StcError
from stc.runtime.video.open import crop_flag, open_video
from stc.runtime.video.source.source import Crop
from tests.clips import read_frames
from tests.test_run_questions import VIDEO, run


def test_frames_show_the_part_alone() -> None:
    whole = read_frames(VIDEO, fps=0.5)
    with open_video(VIDEO, fps=0.5, crop=(352, 112, 160, 140)) as source:
        parts = list(source)
    assert [one.time_s for one in parts] == [one.time_s for one in whole]
    for part, frame in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part.rgb, frame.rgb[112:252, 352:512])
        assert part.rgb.flags.c_contiguous


@pytest.mark.parametrize(
    ("crop", "told"),
    [
        ((0, 0, 0, 9), "--crop width: got 0"),
        ((-1, 0, 9, 9), "--crop x: got -1"),
        ((0, 0.5, 9, 9), "--crop y: got 0.5, expected a whole number"),
        ((0, 0, 9), "--crop: got (0, 0, 9), expected x, y, width and height in px"),
        ("0,0,9,9", "--crop: got '0,0,9,9', expected x, y"),
    ],
)
def test_what_is_no_part_is_refused_before_anything_is_opened(crop: Any, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        open_video("missing.mp4", crop=crop)
    assert told in str(error.value)


def test_a_part_beyond_the_picture_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--frames", "1", "--crop", "400,300,113,84") == 2
    assert capsys.readouterr().err == (
        f"error: {VIDEO}: 512x384 px, of which --crop takes up to 513, 384; "
        "choose x, y, width and height inside the picture\n"
    )
    assert run("--frames", "1", "--crop", "400,300,112,84") == 0


@pytest.mark.parametrize("flag", [("--crop", "-5,0,9,9"), ("--crop=-5,0,9,9",)])
def test_a_part_that_begins_with_a_minus_is_told_as_such(
    flag: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--frames", "1", *flag) == 2
    assert capsys.readouterr().err.startswith("error: --crop x: got -5, expected at least 0")


@pytest.mark.parametrize("text", ["1,2,3", "a,0,1,1", "1,,2,3", "1.5,0,1,1"])
def test_a_value_that_is_no_part_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run("--frames", "1", "--crop", text)
    except SystemExit as left:
        code = int(left.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: --crop: ") and error.count("\n") == 1


def test_the_flag_is_read_as_four_numbers() -> None:
    assert crop_flag("1,2,30,40") == [1, 2, 30, 40]
    part = Crop(*crop_flag("1,0,2,1")).of(np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "it")
    assert part.tolist() == [[[3, 4, 5], [6, 7, 8]]]
    with pytest.raises(StcError):
        Crop(0, 0, 5, 1).of(np.zeros((2, 4, 3), np.uint8), "it")


def test_the_overlay_shows_the_part(tmp_path: Path) -> None:
    path = tmp_path / "part.mp4"
    assert run("--frames", "2", "--crop", "0,0,400,100", "--overlay", str(path)) == 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
    assert width > 2 * height
