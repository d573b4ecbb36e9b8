"""The overlay: marks where the indices say, in a video that is whole or absent."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.codec.codec import UnknownCodecError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stc.errors import VideoError
from stc.runtime.report import FrameReport
from stc.runtime.show.marks import KEPT_RGB, RECOMPUTED_RGB, TokenMarks
from stc.runtime.show.overlay import OverlayWriter
from stc.runtime.video.source.source import Frame
from tests.frame_reports import difference_reports, frame_report, video_frames
from tests.squares import square_grid

SIDE, POOLED_SIDE = 27, 14
GRID = square_grid(SIDE)
GREY = 110


def _grey_frame(index: int, width: int, height: int) -> Frame:
    rgb = np.full((height, width, 3), GREY, np.uint8)
    return Frame(index=index, time_s=index / 5, rgb=rgb)


def _decoded(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(path) as container:
        return [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]


def _cell_of_pixel(height: int, width: int, side: int) -> NDArray[np.int64]:
    """Index of the token each pixel lies in: int64 [height, width]."""
    rows = ((np.arange(height) + 0.5) * side / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * side / width).astype(np.int64)
    return rows[:, None] * side + columns


def _indices(side: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, side * side - 1), unique=True, min_size=1, max_size=most)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(120, 260),
    height=st.integers(120, 260),
    side=st.integers(1, 8),
    picked=st.data(),
)
def test_exactly_the_marked_cells_change(
    width: int, height: int, side: int, picked: st.DataObject
) -> None:
    pooled_side = -(-side // 2)
    recomputed = np.sort(picked.draw(_indices(side, side**2)))
    kept = np.sort(picked.draw(_indices(pooled_side, pooled_side**2)))
    picture = Image.new("RGB", (width, height), (GREY, GREY, GREY))
    report = frame_report(1, recomputed=recomputed, kept=kept)
    TokenMarks(width, height, square_grid(side)).draw(picture, report)
    changed = (np.asarray(picture) != GREY).any(axis=-1)
    in_recomputed = np.isin(_cell_of_pixel(height, width, side), recomputed)
    in_kept = np.isin(_cell_of_pixel(height, width, pooled_side), kept)
    assert changed[in_recomputed].all()
    assert not changed[~in_recomputed & ~in_kept].any()
    for index in range(pooled_side**2):
        row, column = divmod(index, pooled_side)
        y = int((row + 0.5) * height / pooled_side)
        x = int((column + 0.5) * width / pooled_side)
        dot = np.array_equal(np.asarray(picture)[y, x], KEPT_RGB)
        assert dot == (index in kept)


def test_pixels_under_no_token_stay_unmarked() -> None:
    picture = Image.new("RGB", (384, 384), (GREY, GREY, GREY))
    report = frame_report(1, recomputed=np.arange(SIDE**2), kept=np.arange(POOLED_SIDE**2))
    TokenMarks(384, 384, GRID, covered=(378 / 384, 378 / 384)).draw(picture, report)
    changed = (np.asarray(picture) != GREY).any(axis=-1)
    assert changed[:378, :378].all()
    assert not changed[378:].any()
    assert not changed[:, 378:].any()


def test_a_reference_frame_is_bordered_and_lightly_tinted() -> None:
    picture = Image.new("RGB", (640, 480), (GREY, GREY, GREY))
    report = frame_report(0, "reference", kept=np.array([0]))
    TokenMarks(640, 480, GRID).draw(picture, report)
    pixels = np.asarray(picture).astype(int)
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == RECOMPUTED_RGB).all()
    inside = pixels[60:-10, 60:-10]
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 1  # no boxes
    tint = inside[0, 0] - GREY
    assert 0 < np.abs(tint).max() < 25


def test_the_written_video_shows_the_marks_of_each_frame(tmp_path: Path) -> None:
    frames = video_frames("street.mp4", 6)
    reports = list(difference_reports(frames))
    path, rate = tmp_path / "overlay.mp4", 1 / (frames[1].time_s - frames[0].time_s)
    with OverlayWriter(path, GRID) as writer:
        for frame, report in zip(frames, reports, strict=True):
            writer.add(frame, report)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == pytest.approx(rate)
        assert stream.codec_context.colorspace == 6  # BT.601, what the pixels are
    shown = _decoded(path)
    assert len(shown) == len(frames)
    cells = _cell_of_pixel(480, 640, SIDE)
    pooled = _cell_of_pixel(480, 640, POOLED_SIDE)
    # Halved chroma smears contours and dots over the edge of their cells.
    inner = np.ones((480, 640), dtype=bool)
    for axis in (0, 1):
        for shift_px in (-4, 4):
            inner &= np.roll(cells, shift_px, axis) == cells
    for picture, frame, report in zip(shown, frames, reports, strict=True):
        if report.kind == "reference":
            continue
        plain = np.asarray(Image.fromarray(frame.rgb).resize((640, 480)), np.float64)
        yellower = (picture[:480] - plain) @ np.array([0.5, 0.5, -1.0])
        shift = _mean_by_cell(yellower, cells, inner & ~np.isin(pooled, report.kept))
        marked = np.isin(np.arange(SIDE**2), report.recomputed)
        assert np.nanmin(shift[marked]) > 12
        assert np.nanmax(np.abs(shift[~marked])) < 10
        for index in range(POOLED_SIDE**2):
            row, column = divmod(index, POOLED_SIDE)
            y, x = int((row + 0.5) * 480 / POOLED_SIDE), int((column + 0.5) * 640 / POOLED_SIDE)
            off = np.abs(picture[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1)) - KEPT_RGB).max()
            assert (off < 40) == (index in report.kept)


def _mean_by_cell(
    values: NDArray[np.float64], cells: NDArray[np.int64], among: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean of `values` in each cell over the pixels `among`; NaN where there is none."""
    counts = np.bincount(cells[among], minlength=SIDE**2)
    sums = np.bincount(cells[among], weights=values[among], minlength=SIDE**2)
    return np.where(counts > 20, sums / np.maximum(counts, 1), np.nan)


@pytest.mark.parametrize(
    ("width", "height", "picture_px"),
    [
        (160, 120, (640, 480)),
        (511, 383, (640, 480)),
        (641, 481, (641, 481)),
        (270, 480, (480, 853)),
        (1920, 1080, (1280, 720)),
        (2000, 20, (1280, 13)),
        (1, 1, (480, 480)),
    ],
)
def test_any_size_becomes_even_and_legible(
    tmp_path: Path, width: int, height: int, picture_px: tuple[int, int]
) -> None:
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, GRID) as writer:
        writer.add(_grey_frame(0, width, height), frame_report(0))
    (picture,) = _decoded(path)
    shown_height, shown_width = picture.shape[:2]
    assert shown_height % 2 == shown_width % 2 == 0
    assert picture_px[0] <= shown_width <= max(picture_px[0] + 1, 480)
    legend = picture[picture_px[1] + 2 :]
    assert legend.shape[0] >= 60
    assert np.median(legend) < 40  # its own dark ground, not the picture
    assert (legend.min(axis=-1) > 200).sum() > 100  # with letters on it


def test_the_legend_does_not_cover_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, GRID) as writer:
        writer.add(_grey_frame(0, 640, 480), frame_report(0, recomputed=np.array([0])))
    (picture,) = _decoded(path)
    assert np.abs(picture[400:478].astype(int) - GREY).max() < 12


def test_a_change_of_size_midway_is_stretched_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, GRID) as writer:
        for index, size in enumerate([(640, 480), (320, 200), (801, 333)]):
            writer.add(_grey_frame(index, *size), frame_report(index, recomputed=np.array([728])))
    pictures = _decoded(path)
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    for picture in pictures:
        assert np.abs(picture[200:400, 400:600].astype(int) - GREY).max() < 12


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "A.MP4"])
def test_other_containers_are_written_too(tmp_path: Path, name: str) -> None:
    with OverlayWriter(tmp_path / name, GRID) as writer:
        writer.add(_grey_frame(0, 640, 480), frame_report(0))
    assert len(_decoded(tmp_path / name)) == 1


def test_without_libx264_the_video_is_mpeg4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = av.Codec

    def without_x264(name: str, mode: Literal["r", "w"] = "r") -> av.Codec:
        if name == "libx264":
            raise UnknownCodecError(name)
        return whole(name, mode)

    monkeypatch.setattr(av, "Codec", without_x264)
    path = tmp_path / "overlay.mp4"
    with OverlayWriter(path, GRID) as writer:
        for index in range(3):
            writer.add(_grey_frame(index, 640, 480), frame_report(index, recomputed=np.array([0])))
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    pictures = _decoded(path)
    assert len(pictures) == 3
    assert np.abs(pictures[2][300:400, 300:400].astype(int) - GREY).max() < 12


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.webm", "unknown ending '.webm', expected .mp4"),
        ("a", "unknown ending"),
        ("none/a.mp4", "No such file or directory"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_a_path_that_cannot_be_a_video_is_refused_before_the_first_frame(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with (
        pytest.raises(VideoError, match=says) as caught,
        OverlayWriter(tmp_path / name, GRID),
    ):
        pytest.fail("the body ran")
    assert "\n" not in str(caught.value)


def test_every_frame_is_shown_at_its_own_time(tmp_path: Path) -> None:
    path, times_s = tmp_path / "overlay.mp4", (30.0, 30.04, 31.5, 31.5, 31.4, 34.0)
    with OverlayWriter(path, GRID) as writer:
        for index, time_s in enumerate(times_s):
            frame = replace(_grey_frame(index, 64, 48), time_s=time_s)
            writer.add(frame, frame_report(index))
    with av.open(path) as container:
        shown_s = [frame.time for frame in container.decode(video=0)]
    # Two frames of one time, or of an earlier one, follow one another as closely as can be.
    assert shown_s == pytest.approx([0.0, 0.04, 1.5, 1.501, 1.502, 4.0])


def test_a_failed_frame_ends_the_video_though_the_body_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    (frame,) = video_frames("street.mp4", 1)
    with (
        pytest.raises(VideoError, match="cannot be written"),
        OverlayWriter(path, GRID) as writer,
        _largest_file(0),
        pytest.raises(VideoError),
    ):
        for index in range(100):
            writer.add(frame, frame_report(index))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond `size_bytes`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [0, 40, 3000])
def test_a_full_disk_is_one_line_and_leaves_the_old_video(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "overlay.mp4"
    path.write_bytes(b"old")
    with (
        _largest_file(size_bytes),
        pytest.raises(VideoError, match=r"cannot be written \(File too large\)"),
        OverlayWriter(path, GRID) as writer,
    ):
        writer.add(_grey_frame(0, 640, 480), frame_report(0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("added", [0, 2])
@pytest.mark.parametrize("interruption", [ValueError, OSError, KeyboardInterrupt])
def test_an_exception_passes_through_and_leaves_nothing(
    tmp_path: Path, added: int, interruption: type[BaseException]
) -> None:
    with (
        pytest.raises(interruption, match="mine"),
        OverlayWriter(tmp_path / "overlay.mp4", GRID) as writer,
    ):
        for index in range(added):
            writer.add(_grey_frame(index, 640, 480), frame_report(index))
        raise interruption("mine")
    assert list(tmp_path.iterdir()) == []


def test_no_frame_is_no_video(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match="no frame to write"),
        OverlayWriter(tmp_path / "overlay.mp4", GRID),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_still_is_the_reuse_frame_with_the_most_connected_tokens(tmp_path: Path) -> None:
    grid = np.arange(SIDE**2).reshape(SIDE, SIDE)
    patch, scattered = grid[3:9, 3:9].ravel(), grid[::5, ::5].ravel()
    with OverlayWriter(tmp_path / "overlay.mp4", GRID) as writer:
        writer.add(_grey_frame(0, 640, 480), frame_report(0, "reference"))
        for index, recomputed in enumerate([scattered, patch, scattered], 1):
            writer.add(_grey_frame(index, 640, 480), frame_report(index, recomputed=recomputed))
        writer.add(_grey_frame(4, 640, 480), frame_report(4, "reference"))
    writer.save_still(tmp_path / "still.png")
    pixels = np.asarray(Image.open(tmp_path / "still.png"))[:480]
    cells = _cell_of_pixel(480, 640, SIDE)
    outside = ~np.isin(cells, patch) & ~np.isin(
        _cell_of_pixel(480, 640, POOLED_SIDE), frame_report(1).kept
    )
    assert (pixels[outside] == GREY).all()
    assert (pixels[np.isin(cells, patch)] != GREY).any(axis=-1).all()


def test_the_still_of_a_dense_run_is_its_last_frame(tmp_path: Path) -> None:
    with OverlayWriter(tmp_path / "overlay.mp4", GRID) as writer:
        with pytest.raises(VideoError, match="no frame to save"):
            writer.save_still(tmp_path / "still.png")
        for index in range(2):
            report: FrameReport = frame_report(index, "reference", kept=np.array([195 - index]))
            writer.add(_grey_frame(index, 640, 480), report)
        writer.save_still(tmp_path / "still.png")
    pixels = np.asarray(Image.open(tmp_path / "still.png"))
    assert tuple(pixels[int(13.5 * 480 / 14), int(12.5 * 640 / 14)]) == KEPT_RGB
    with pytest.raises(VideoError, match="No such file"):
        writer.save_still(tmp_path / "none" / "still.png")


@pytest.mark.parametrize("missing", ["av", "PIL"])
def test_a_missing_library_is_named_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(VideoError, match=r"not found; pip install 'stc\[video\]'"):
        OverlayWriter(tmp_path / "overlay.mp4", GRID)


def test_displays_import_without_video_libraries() -> None:
    program = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "import stc.runtime.show.overlay, stc.runtime.show.live_table\n"
        "import stc.runtime.stream.run"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)
