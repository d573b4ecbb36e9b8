"""Orientations that phones, editors and photo cameras note: pictures are shown upright."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stc.runtime.commands import run as run_command
from stc.runtime.video.decoding.decoder import upright
from tests.clips import read_frames, turn, write_clip
from tests.field.pixels import by_ffmpeg, needs_ffmpeg

Outcome = CompletedProcess[str]
Matrix = tuple[float, float, float, float]

EIGHT: list[Matrix] = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
EIGHT += [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]


def marked() -> NDArray[np.uint8]:
    """64 x 48 pixels of which no two of the eight orientations look alike."""
    picture = np.full((48, 64, 3), 40, np.uint8)
    picture[:16, :24] = 240
    picture[32:, :16] = 140
    return picture


def clip(folder: Path, matrix: Matrix, name: str = "clip.mp4") -> Path:
    return turn(write_clip(folder / name, [marked()]), matrix)


def mapped(picture: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Every pixel (x, y) at (a x + c y, b x + d y), as the matrix is defined."""
    a, b, c, d = map(int, matrix)
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    shown[to_y, to_x] = picture
    return shown


def assert_alike(
    got: NDArray[np.uint8], expected: NDArray[np.uint8], difference: float = 5
) -> None:
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < difference


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov"])
@pytest.mark.parametrize("matrix", EIGHT)
def test_all_eight_orientations_are_turned_by_the_matrix_itself(
    tmp_path: Path, matrix: Matrix, name: str
) -> None:
    """Front cameras mirror, editors flip, phones turn: the pixels where the matrix puts them."""
    (frame,) = read_frames(clip(tmp_path, matrix, name))
    assert_alike(frame.rgb, mapped(marked(), matrix))
    assert frame.rgb.flags.c_contiguous
    assert frame.rgb.flags.writeable


@needs_ffmpeg
@pytest.mark.parametrize(
    "matrix",
    [
        *EIGHT,
        (2, 0, 0, 2),
        (0, 0.5, -0.5, 0),
        (-3, 0, 0, 1),
        (1, 0, 0.2, 1),
        (0.7071, 0.7071, -0.7071, 0.7071),
        (0.9848, 0.1736, -0.1736, 0.9848),
        (0.7071, -0.7071, 0.7071, 0.7071),
        (0.99999, 0.001, -0.001, 0.99999),
        (0, 0, 0, 0),
        (1, 0, 1, 0),
    ],
)
def test_every_matrix_is_followed_as_ffmpeg_follows_it(tmp_path: Path, matrix: Matrix) -> None:
    """Scaled, sheared, odd and impossible matrices of editors and broken writers."""
    path = clip(tmp_path, matrix)
    (frame,) = read_frames(path)
    assert_alike(frame.rgb, by_ffmpeg(path, *frame.rgb.shape[:2]))


def test_an_odd_angle_turns_within_the_pictures_own_size(tmp_path: Path) -> None:
    """A gimbal or an editor that notes 45 degrees: clockwise, with black corners."""
    half = math.sqrt(0.5)
    (frame,) = read_frames(clip(tmp_path, (half, half, -half, half)))
    expected = Image.fromarray(marked()).rotate(-45, Image.Resampling.BILINEAR)
    assert_alike(frame.rgb, np.asarray(expected))
    assert frame.rgb[0, 0].max() == frame.rgb[-1, -1].max() == 0
    assert frame.rgb.flags.writeable


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (0, 5, 0, 0)])
def test_a_matrix_without_a_direction_changes_nothing(tmp_path: Path, matrix: Matrix) -> None:
    """Broken writers leave zeros in the header."""
    (frame,) = read_frames(clip(tmp_path, matrix))
    assert_alike(frame.rgb, marked())


@given(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 4))
def test_whatever_the_matrix_says_a_picture_remains(matrix: tuple[int, int, int, int]) -> None:
    """Damaged headers: no matrix may end a stream."""
    shown = upright(marked(), matrix)
    assert shown.dtype == np.uint8
    assert sorted(shown.shape) == [3, 48, 64]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_shown_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    """A still of a phone or a camera that sends JPEG pictures with EXIF in each."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(marked()).save(path, exif=exif, quality=95)
    (frame,) = read_frames(path)
    with Image.open(path) as photo:
        assert_alike(frame.rgb, np.asarray(ImageOps.exif_transpose(photo)))


def test_the_overlay_and_its_still_show_the_upright_picture(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """A mirroring front camera, from the file to what the user looks at."""
    matrix = (-1, 0, 0, 1)
    path = turn(write_clip(tmp_path / "clip.mp4", [marked()] * 2), matrix)
    overlay = tmp_path / "o.mp4"
    done = run_main(run_command.main, demo_bundle, "--video", path, "--overlay", overlay)
    assert done.returncode == 0
    with Image.open(tmp_path / "o.png") as still:
        shown = np.asarray(still.convert("L")).astype(int)
    # The picture fills the upper part: the bright mark stands at its upper right corner alone.
    drawn = shown[:480]
    columns = np.flatnonzero(drawn.max(0) > 30)
    left, right = (drawn[20:140, at : at + 180] for at in (columns[0] + 20, columns[-1] - 200))
    assert right.mean() > 1.3 * left.mean()
