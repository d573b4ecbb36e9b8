"""Colour matrices and ranges that cameras, phones and screen recorders tag, and those they do not.

The reference is libav's own filter graph: the scale filter as ffmpeg's command uses it.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from stc.runtime.video.decoding.decoder import Decoder
from tests.clips import numbered, read_frames, write_clip
from tests.field.pixels import by_ffmpeg, needs_ffmpeg

STREET = Path(__file__).parents[1] / "data" / "street.mp4"

BT709, UNSPECIFIED, RESERVED, FCC, BT470, BT601, SMPTE240M = 1, 2, 3, 4, 5, 6, 7
YCGCO, BT2020, BT2020_CONSTANT, ICTCP = 8, 9, 10, 14
UNTAGGED, LIMITED, FULL = 0, 1, 2

LUMA = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
"""Shares of red and blue in the luma."""


def picture(pix_fmt: str, matrix: int, colour_range: int) -> VideoFrame:
    """One colour, far from grey, so that every matrix and range shows another RGB value."""
    frame = VideoFrame(64, 48, "yuv444p")
    for plane, level in zip(frame.planes, (150, 90, 170), strict=True):
        plane.update(bytes([level]) * plane.buffer_size)
    if pix_fmt != "yuv444p":
        frame = frame.reformat(format=pix_fmt, src_color_range=LIMITED, dst_color_range=LIMITED)
    frame.colorspace, frame.color_range = matrix, colour_range
    frame.pts, frame.time_base = 0, Fraction(1, 10)
    return frame


def decoded(frame: VideoFrame) -> list[int]:
    """Its RGB value as the video sources give it."""
    decoder = Decoder(av.open(str(STREET)), "street.mp4")
    rgb = decoder.rgb(frame)
    decoder.close()
    assert rgb.shape == (48, 64, 3)
    return [int(level) for level in rgb[24, 32]]


def by_libav(frame: VideoFrame) -> list[int]:
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=64, height=48, format=frame.format, time_base=frame.time_base),
        graph.add("scale", "in_color_matrix=auto:in_range=auto"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    graph.vpush(frame)
    return [int(level) for level in graph.vpull().to_ndarray()[24, 32]]


def near(value: list[int]) -> object:
    return pytest.approx(value, abs=2)


@pytest.mark.parametrize("colour_range", [UNTAGGED, LIMITED, FULL])
@pytest.mark.parametrize("matrix", [UNSPECIFIED, BT709, FCC, BT470, BT601, SMPTE240M, BT2020])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "nv12", "yuyv422"])
def test_matrix_and_range_are_those_of_the_tags(
    pix_fmt: str, matrix: int, colour_range: int
) -> None:
    """HD cameras, phones, NTSC tapes, 10-bit files and raw webcams: as ffmpeg converts them."""
    assert decoded(picture(pix_fmt, matrix, colour_range)) == near(
        by_libav(picture(pix_fmt, matrix, colour_range))
    )


@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", LUMA)
def test_the_values_are_those_of_the_standards(matrix: int, colour_range: int) -> None:
    """The same by the formulas of BT.601, BT.709 and BT.2020."""
    red_share, blue_share = LUMA[matrix]
    if colour_range == FULL:
        y, u, v = 150 / 255, (90 - 128) / 255, (170 - 128) / 255
    else:
        y, u, v = (150 - 16) / 219, (90 - 128) / 224, (170 - 128) / 224
    red, blue = y + 2 * (1 - red_share) * v, y + 2 * (1 - blue_share) * u
    green = (y - red_share * red - blue_share * blue) / (1 - red_share - blue_share)
    expected = [round(255 * value) for value in (red, green, blue)]
    assert decoded(picture("yuv444p", matrix, colour_range)) == near(expected)


@pytest.mark.parametrize("colour_range", [UNTAGGED, LIMITED, FULL])
@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuvj422p", "gray", "gray10le", "gbrp", "bgr0"])
def test_formats_of_one_range_keep_it_whatever_the_tag_says(
    pix_fmt: str, colour_range: int
) -> None:
    """JPEG cameras, thermal cameras and screen recordings, also with tags that contradict them."""
    untagged = by_libav(picture(pix_fmt, UNSPECIFIED, UNTAGGED))
    assert decoded(picture(pix_fmt, UNSPECIFIED, colour_range)) == near(untagged)


@pytest.mark.parametrize(
    ("matrix", "read_as"),
    [
        (0, BT601),
        (RESERVED, BT601),
        (YCGCO, BT601),
        (ICTCP, BT601),
        (BT2020_CONSTANT, BT2020),
    ],
)
def test_a_matrix_that_libav_cannot_convert_ends_no_stream(matrix: int, read_as: int) -> None:
    """Screen recorders and HDR masters: read as the nearest matrix libav has, BT.601 if none is."""
    for colour_range in (UNTAGGED, LIMITED, FULL):
        expected = by_libav(picture("yuv420p", read_as, colour_range))
        assert decoded(picture("yuv420p", matrix, colour_range)) == near(expected)


def coloured() -> NDArray[np.uint8]:
    tile = numbered(2)
    tile[:24], tile[24:, 32:] = (200, 60, 40), (40, 60, 200)
    return tile


@needs_ffmpeg
@pytest.mark.parametrize("colour_range", [UNTAGGED, LIMITED, FULL])
@pytest.mark.parametrize("matrix", [UNSPECIFIED, BT709, BT601, BT2020, FCC, SMPTE240M])
def test_a_tagged_file_has_the_colours_that_ffmpeg_shows(
    tmp_path: Path, matrix: int, colour_range: int
) -> None:
    """A whole H.264 file, its tags in the bit stream."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = colour_range
        frame = VideoFrame.from_ndarray(coloured(), format="rgb24")
        frame = frame.reformat(format="yuv420p")
        frame.colorspace, frame.color_range = matrix, colour_range
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (read,) = read_frames(path)
    difference = np.abs(read.rgb.astype(int) - by_ffmpeg(path, 48, 64))
    # Where two colours meet, chroma is interpolated differently.
    assert np.percentile(difference, 80) <= 3


def test_one_converter_follows_tags_that_change_midway() -> None:
    """Joined recordings of two cameras: each picture has its own matrix and range."""
    decoder = Decoder(av.open(str(STREET)), "street.mp4")
    cases = [(BT709, LIMITED), (BT601, FULL), (BT601, LIMITED), (UNSPECIFIED, UNTAGGED)] * 2
    for matrix, colour_range in cases:
        rgb = decoder.rgb(picture("yuv420p", matrix, colour_range))
        assert rgb[24, 32].tolist() == near(by_libav(picture("yuv420p", matrix, colour_range)))
    decoder.close()


def test_a_whole_clip_keeps_its_colours(tmp_path: Path) -> None:
    """The plainest file there is: what was encoded is what is read."""
    path = write_clip(tmp_path / "clip.mkv", [coloured()], codec="ffv1", pix_fmt="yuv444p")
    (frame,) = read_frames(path)
    assert np.abs(frame.rgb.astype(int) - coloured()).max() <= 3
